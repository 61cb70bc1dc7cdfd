"""Versions: of the package, and of the interface that plugins are written against."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("mim-core")
except metadata.PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0+unknown"


PLUGIN_API = 2
"""Rises only when a hook or a protocol breaks."""
