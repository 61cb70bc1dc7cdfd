"""Parts: what a method is made of."""
