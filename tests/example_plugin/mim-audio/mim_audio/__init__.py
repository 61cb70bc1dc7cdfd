"""Masked modeling of sound, as a third party writes it."""
