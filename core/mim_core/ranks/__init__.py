"""Ranks: the processes that share a run."""
