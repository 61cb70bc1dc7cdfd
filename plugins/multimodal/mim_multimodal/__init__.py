"""Masked modeling of several modalities at once: MultiMAE's parts, aligned folders, captions."""

__version__ = "0.1.0"
