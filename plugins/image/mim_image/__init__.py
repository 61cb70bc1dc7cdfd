"""mim-image: masked image modeling as a plugin of mim-core."""
