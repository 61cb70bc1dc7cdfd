"""What a recipe made for small grey pictures should have on other ones: their channels, and a size that fits them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from mim_image.looking import Look

UNITS, LARGEST = 8, 64
"""Units along each side, and pixels of the longest side that small recipes are given."""
SMALLEST = 32
"""Pictures with a shorter side below this keep the recipe's size and patch."""
PLAIN = "core:vit"
"""The encoder that takes patches of any size; others have strides of their own."""


def is_small(tokenizer: Any) -> bool:
    """Whether a recipe's pictures are grey, or smaller than `LARGEST`."""
    return bool(tokenizer.channels == 1 or max(tokenizer.size) < LARGEST)


def in_colour(look: Look) -> bool:
    """Whether most of the pictures that were looked at are in colour."""
    colour = sum(number for kind, number in look.kinds.items() if kind.startswith(("colour", "CMYK")))
    return 2 * colour > look.looked - look.broken


def fitting_side(look: Look) -> int | None:
    """Height and width for these pictures: `LARGEST`, or what their shorter sides have, in eighths; None for smaller
    ones."""
    short = median(min(size) for size in look.sizes) if look.sizes else 0
    return None if short < SMALLEST else int(min(LARGEST, short // UNITS * UNITS))


def changes(look: Look, parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Role -> option -> value.

    Args:
        look: What the pictures hold.
        parts: Role -> every part of the run.
    """
    tokenizer, updates = parts["tokenizer"].options, dict[str, dict[str, Any]]()
    if in_colour(look) and tokenizer.channels == 1:
        takers = [role for role, part in parts.items() if getattr(part.options, "channels", None) == 1]
        updates = {role: {"channels": 3} for role in takers}
    side = fitting_side(look) if "encoder" in parts and parts["encoder"].name == PLAIN else None
    if side is not None and max(tokenizer.size) < side:
        patch = side // UNITS
        updates.setdefault("tokenizer", {}).update(size=(side, side), patch=(patch, patch))
        method = parts["method"].options
        if "local" in getattr(method, "views", {}).values():  # these views show as large a share as before
            sizes = zip(method.local_size, tokenizer.size, strict=True)
            units = [max(1, round(UNITS * new / old)) for new, old in sizes]
            updates["method"] = {"local_size": tuple(patch * number for number in units)}
    if updates:  # those of the recipe's own pictures
        updates["data"] = {"mean": None, "std": None}
    return updates
