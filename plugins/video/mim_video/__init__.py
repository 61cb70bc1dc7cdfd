"""Masked video modeling for mim-core."""

__version__ = "0.1.0"
