"""Weights of other code bases, in and out."""
