"""Of several joined modalities, those that a sample lacks, predicted from those that it has: all of these is seen, and
the heads of the others are asked (MultiMAE, arXiv 2204.01678, section 4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mim_core.data.source import Sample
from mim_core.errors import MimError
from mim_core.parts.tokenizer import JoinedTokenizer, zeros


@torch.no_grad()
def from_given(method: Any, sample: Sample) -> dict[str, Tensor]:
    """What the heads make of the modalities that are there, each [B, ...] in its modality's own shape. Units that a
    sample lacks of what is given (``MODALITY.present``, the places behind a short caption) are hidden; samples that
    lack the same ones are answered together.

    Args:
        method: A `MaskedAutoencoder` in evaluation mode.
        sample: A batch with some of the method's modalities.

    Raises:
        MimError: There is one modality, none or all are given, or no head has a way back to what was asked.
    """
    tokenizer = method.tokenizer
    if not isinstance(tokenizer, JoinedTokenizer):
        raise MimError(
            "This run has one modality, of which it predicts hidden parts; mim-core show RUN draws them. To train a "
            "head on labels: mim-core finetune RUN; for the encoder's features: mim-core embed RUN FOLDER."
        )
    lacking = tokenizer.lacking(sample)
    wanted = {n: h for n, h in method.heads.items() if h.segment in lacking and h.answers_in_kind}
    if len(lacking) == len(tokenizer.parts) or not wanted or method.views():
        known = sorted({str(h.segment) for h in method.heads.values() if h.answers_in_kind})
        raise MimError(
            f"Which modalities are given? --given names some of {', '.join(tokenizer.parts)}, and leaves out one that "
            f"can be predicted: {', '.join(known) or 'none of this run can'}."
        )
    rows, device = len(next(iter(sample.values()))), next(iter(sample.values())).device
    shapes = {name: shape for part in lacking for name, shape in tokenizer.part(part).shapes.items()}
    whole = {**zeros(shapes, tokenizer.ids, rows, device), **sample}
    layout = tokenizer.split(whole).layout
    counts = [torch.full((rows, part.count), n in lacking, device=device) for n, part in layout.segments]
    hidden = torch.cat(counts, dim=1)
    if layout.valid is not None:
        hidden = hidden | ~layout.valid
    outputs = dict[str, Tensor]()
    patterns, which = hidden.unique(dim=0, return_inverse=True)
    for number in range(len(patterns)):
        own = (which == number).nonzero()[:, 0]
        answers = _answers(method, wanted, {name: value[own] for name, value in whole.items()}, hidden[own])
        for name, value in answers.items():
            outputs.setdefault(name, value.new_zeros(rows, *value.shape[1:]))[own] = value
    return outputs


def _answers(method: Any, wanted: Mapping[str, Any], sample: Sample, hidden: Tensor) -> dict[str, Tensor]:
    """What heads make of samples of which the same units are hidden, bool [B, N]."""
    tokenizer, patches, outputs = method.tokenizer, method.tokenizer.split(sample), {}
    prepared = method.prepare(sample, hidden)
    outcome = method(prepared)
    for name, head in wanted.items():
        own, asked = head.local(patches, prepared.mask)
        answers = head.target.to_input_space(outcome.predictions[name], own, asked)
        if answers is not None and isinstance(own.values, Tensor):
            filled = placed(own.values, asked.query_ids, answers, asked.query_valid)
            outputs[name] = tokenizer.part(str(head.segment)).join(filled, own.layout)
    return outputs


def placed(values: Tensor, ids: Tensor, answers: Tensor, valid: Tensor | None = None) -> Tensor:
    """A copy of values [B, N, ...] with answers [B, Q, ...] at ids, those that are ``valid``, bool [B, Q]."""
    flat = answers.reshape(*ids.shape, -1).to(values.dtype)
    whole = values.flatten(2)
    if valid is not None:  # the others are written behind the last, and cut off
        ids, whole = ids.where(valid, whole.shape[1]), nn.functional.pad(whole, (0, 0, 0, 1))
    index = ids[:, :, None].expand_as(flat)
    return whole.scatter(1, index, flat)[:, : values.shape[1]].reshape(values.shape)
