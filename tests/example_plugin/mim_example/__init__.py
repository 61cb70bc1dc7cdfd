"""A third-party plugin of mim-core."""
