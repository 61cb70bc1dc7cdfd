"""Maps of features as pictures: no data source knows how they look."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from mim_core.data.source import Picture
from mim_core.evaluation.looks import grid_picture, principal

HIDDEN = 0.75
"""The grey of units that the encoder did not see."""


def feature_pictures(
    rows: Mapping[str, Float[Tensor, "B D *grid"]], hidden: Tensor | None = None
) -> dict[str, list[Picture]]:
    """The first three principal components of all the maps together as red, green and blue, so that alike features of
    any two of them have alike colours.

    Args:
        rows: Maps of features, by what they are called.
        hidden: What of "masked" was hidden, bool, of the maps' shape; it is grey.
    """
    first = next(iter(rows.values()))
    grid = tuple(first.shape[2:])
    flat = {name: maps.float().flatten(2).transpose(1, 2).cpu() for name, maps in rows.items()}
    places = principal(torch.cat([units.flatten(0, 1) for units in flat.values()]), 3)[0]
    low, high = (places.quantile(at, dim=0) for at in (0.02, 0.98))
    colours = ((places - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    pictures, start = {}, 0
    for name, units in flat.items():
        count = units.shape[0] * units.shape[1]
        own = colours[start : start + count].reshape(*units.shape[:2], 3)
        if name == "masked" and hidden is not None:
            gone = hidden.flatten(2).any(dim=1).cpu()
            own = own.masked_fill(gone[:, :, None], HIDDEN)
        pictures[name], start = [grid_picture(each, grid) for each in own], start + count
    return pictures
