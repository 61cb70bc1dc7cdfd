"""Methods: parts joined into something to train."""
