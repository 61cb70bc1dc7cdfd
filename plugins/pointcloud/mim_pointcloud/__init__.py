"""Masked modeling of point clouds: Point-MAE's parts, readers of meshes and clouds, and the official data sets."""

__version__ = "0.1.0"
