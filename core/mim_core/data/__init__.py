"""Data: sources, reading them in a keyed order, collections on disk."""
