"""Runs on disk: folders, checkpoints, observers."""
