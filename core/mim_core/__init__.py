"""mim-core: masked modeling with replaceable parts.

Importing this package imports no torch, so that plugins stay light; everything below is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from mim_core.errors import MimError
from mim_core.hookspecs import hookimpl
from mim_core.version import PLUGIN_API, __version__

_LAZY = {
    "Draw": "mask",
    "Mask": "mask",
    "Layout": "layout",
    "Patches": "layout",
    "Sample": "layout",
    "Tokenizer": "tokenizer",
    "PatchTokenizer": "tokenizer",
    "JoinedTokenizer": "tokenizer",
    "Masker": "masker",
    "Target": "target",
    "ValueTarget": "target",
    "Encoded": "encoder",
    "Encoder": "encoder",
    "Decoder": "decoder",
    "Features": "method",
    "Head": "method",
    "MaskedAutoencoder": "method",
    "Method": "method",
    "Outcome": "method",
    "Prepared": "method",
    "DataSource": "data",
    "Part": "recipe",
    "RunConfig": "recipe",
    "TrainConfig": "recipe",
    "EvaluateConfig": "recipe",
    "build_method": "build",
    "load_recipe": "recipe",
    "installed": "plugins",
}

__all__ = ["PLUGIN_API", "MimError", "__version__", "hookimpl", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mim_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mim_core.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
