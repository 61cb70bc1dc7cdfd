"""Judging features, and reports."""
