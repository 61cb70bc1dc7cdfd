"""What is checked of aligned data before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mim_core import MimError

from mim_multimodal import captions, maps
from mim_multimodal.items import Items
from mim_multimodal.layouts import MODALITIES

LOOKS = 200
"""Depth maps whose heads are looked at before a run, evenly spaced."""


def depth_kinds(items: Items) -> dict[str, str]:
    """Kinds of depth maps among some of the items -> the first file of each. What is wrong with a file is said when it
    is read."""
    indices = [i for i in range(len(items)) if items.has("depth", i)]
    kinds: dict[str, str] = {}
    for i in indices[:: max(1, len(indices) // LOOKS)]:
        file = items.file("depth", i)
        try:
            kinds.setdefault(maps.depth_kind(items.root / file), file)
        except Exception:
            continue
    return kinds


def check_caption(shape: Sequence[int]) -> None:
    """Raises MimError for captions that have no room for a word; their shape is (L,), or nothing where there are
    none."""
    if shape and shape[0] < captions.SHORTEST:
        raise MimError(
            f"Captions of {shape[0]} ids have no room for a word between start and end: give "
            f"--caption.tokenizer.length {captions.SHORTEST} at least."
        )


def check_options(config: Any) -> None:
    """Raises ValueError for options of `Aligned` that make no sense."""
    strange = sorted(set(config.folders) - set(MODALITIES))
    if strange:
        raise ValueError(f"folders are for {', '.join(MODALITIES)}, not for {', '.join(strange)}")
    strange = sorted(set(config.suffixes) - set(MODALITIES))
    if strange or any("/" in suffix for suffix in config.suffixes.values()):
        raise ValueError(f"suffixes are ends of names, for {', '.join(MODALITIES)}; got {config.suffixes}")
    if len(set(config.values)) < len(config.values) or any(not 0 <= value <= 65535 for value in config.values):
        raise ValueError(f"values must be different whole numbers from 0 to 65535, got {config.values}")
    if len(config.values) == 1:
        raise ValueError("values must list one for each class, at least 2")
    if config.void is not None and (config.values or not 0 <= config.void <= 65535):
        raise ValueError(
            f"void is an id from 0 to 65535 of maps that hold ids; got {config.void}"
            + (", and values, which list what counts already" if config.values else "")
        )
    if config.depth_limit is not None and config.depth_limit <= 0:
        raise ValueError(f"depth_limit must be positive, got {config.depth_limit}")
    low, high = config.area
    if not 0 < low <= high <= 1:
        raise ValueError(f"area must be two rising shares in (0, 1], got {config.area}")
    if not 0 < config.ratio[0] <= config.ratio[1]:
        raise ValueError(f"ratio must be two rising positive numbers, got {config.ratio}")
    for name, value in (("flip", config.flip), ("max_bad", config.max_bad)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    if not 0 < config.evaluate_crop <= 1:
        raise ValueError(f"evaluate_crop must lie in (0, 1], got {config.evaluate_crop}")
    if config.depth_bits not in (None, 8, 16):
        raise ValueError(f"depth_bits must be 8 or 16, got {config.depth_bits}")
    if config.classes is not None and config.classes < 2:
        raise ValueError(f"classes must be at least 2, got {config.classes}")
