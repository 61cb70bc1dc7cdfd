"""Recipes: runs as named parts with options."""
