"""How abnormal each place of a sample is, from a masked autoencoder: the error of what it predicts of hidden units,
averaged over keyed masks that together hide every unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mim_core import randomness
from mim_core.data.source import Sample
from mim_core.errors import MimError
from mim_core.evaluation.reconstruction import reconstruct
from mim_core.parts.tokenizer import JoinedTokenizer


def covering_masks(units: int, hidden: int, covers: int) -> Iterator[Tensor]:
    """Masks that together hide every unit ``covers`` times at least: bool [units], each with ``hidden`` units of a
    random order, one part of it after the other; the last part begins the order anew. The same numbers give the same
    masks, for every sample.

    Args:
        units: Of a sample.
        hidden: In each mask.
        covers: Orders that are drawn.
    """
    for cover in range(covers):
        key = randomness.make_key(0, cover, torch.zeros(1, dtype=torch.int64))
        order = randomness.permutation(key, "cover", units)[0]
        for start in range(0, units, hidden):
            places = torch.arange(start, start + hidden) % units
            mask = torch.zeros(units, dtype=torch.bool)
            mask[order[places]] = True
            yield mask


@torch.no_grad()
def score_maps(method: Any, sample: Sample, covers: int) -> Tensor:
    """Scores of every place, float32 [B, ...] with the last axes of the modality: what the method says itself, or the
    squared error of its predictions of hidden units, a mean over channels and masks.

    Args:
        method: A `Method` in evaluation mode.
        sample: One batch of one modality.
        covers: See `covering_masks`.

    Raises:
        MimError: The method predicts no values that could be compared with the input.
    """
    own: Tensor | None = method.score_maps(sample, covers)
    if own is not None:
        return own.float()
    if method.rebuilds != "hidden" or isinstance(method.tokenizer, JoinedTokenizer):
        raise MimError(
            f"{type(method).__name__} gives no anomaly scores: a masked autoencoder of one modality does, and methods "
            "that have a way of their own."
        )
    layout = method.tokenizer.layout
    rows, device = len(next(iter(sample.values()))), next(iter(sample.values())).device
    error: Tensor | None = None
    times: Tensor | None = None
    for mask in covering_masks(layout.count, method.masker.count(layout), covers):
        outputs = reconstruct(method, sample, mask.to(device).expand(rows, -1))
        rebuilt = next((each for each in outputs.values() if each.hidden is not None), None)
        if rebuilt is None or rebuilt.hidden is None:
            raise MimError(
                "This run predicts no values of hidden units on a grid, so there is no error of reconstruction; a run "
                "whose target is core:values has one."
            )
        hidden = rebuilt.hidden.float()
        one = ((rebuilt.rebuilt - rebuilt.input).float().square() * hidden).mean(dim=1)
        error = one if error is None else error + one
        times = hidden.mean(dim=1) if times is None else times + hidden.mean(dim=1)
    assert error is not None
    assert times is not None
    return error / times.clamp(min=1e-12)
