"""What is asked of a batch before it is encoded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mim_core.data.source import Sample
from mim_core.errors import did_you_mean
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer

OTHERS = ("index", "key", "label")
"""Entries of a batch that are no modality."""


def check_sample(tokenizer: Tokenizer, sample: Sample) -> None:
    """Refuses a batch that would be encoded as something else than was meant. Reads the values, so it is not for a
    training step.

    Raises:
        ValueError: Of joined tokenizers, an entry that is no modality, with the nearest; batch sizes that differ;
            measured values that are whole numbers; values that are not finite. The sample is named.
    """
    known = known_entries(sample, tokenizer.shapes)
    joined = isinstance(tokenizer, JoinedTokenizer) and any(name in sample for name in tokenizer.shapes)
    strange = [name for name in sample if name not in known]
    if joined and strange:  # without any modality the tokenizer refuses
        guess = did_you_mean(strange[0], tokenizer.shapes)
        modalities = ", ".join(tokenizer.shapes)
        raise ValueError(f"the sample has {strange[0]!r}, which is no modality of this run: {modalities}.{guess}")
    check_sizes(tokenizer, sample)
    for name in tokenizer.shapes:
        values = sample.get(name)
        if values is not None and name not in tokenizer.ids and not values.is_floating_point():
            raise ValueError(
                f"{name} is {str(values.dtype).removeprefix('torch.')}, and the encoder takes floats, normalised as "
                "the data source's finish does it"
            )
        if values is None or not values.is_floating_point() or values.is_meta or torch.compiler.is_compiling():
            continue
        fine = finite_rows(values)
        present = sample.get(f"{name}.present")
        fine = fine if present is None else fine | ~present
        if not bool(fine.all()):
            raise ValueError(
                f"{name} of sample {int((~fine).nonzero()[0])} has values that are not finite (NaN or infinite); fill "
                "what was not measured, as the data source's finish does"
            )


def known_entries(sample: Sample, shapes: Mapping[str, tuple[int, ...]]) -> Sample:
    """The entries of a batch that are modalities, say which samples have one, or stand beside every batch. All where
    there is one modality: what else its method may want is its own matter."""
    known = {*shapes, *(f"{name}.present" for name in shapes), *OTHERS}
    return {name: value for name, value in sample.items() if name in known or len(shapes) == 1}


def check_sizes(tokenizer: Tokenizer, sample: Sample) -> None:
    """Raises ValueError where the modalities of a batch have different numbers of samples, or what says which samples
    have one is no bool [B]; reads shapes only."""
    for name in (f"{modality}.present" for modality in tokenizer.shapes):
        if name in sample and (sample[name].dtype != torch.bool or sample[name].ndim != 1):
            kind, shape = str(sample[name].dtype).removeprefix("torch."), list(sample[name].shape)
            raise ValueError(f"{name} must be bool [B], which samples have it, got {kind} {shape}")
    sizes = {
        name: sample[name].shape[0]  # not len, which would make a constant of it in a program that is exported
        for modality in tokenizer.shapes
        for name in (modality, f"{modality}.present")
        if name in sample
    }
    if any(size != next(iter(sizes.values())) for size in sizes.values()):
        listing = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"the modalities of a batch have different numbers of samples: {listing}")


def check_key(sample: Sample, rows: int) -> None:
    """Refuses a batch of ``rows`` samples from whose keys no masks can be drawn. Reads shapes only.

    Raises:
        ValueError: It has no ``key``, one of another type, or another number of them.
    """
    if "key" not in sample:
        raise ValueError("the sample has no 'key' (int64 [B]) to draw masks from; add one, or give a mask")
    key = sample["key"]
    if key.dtype != torch.int64 or key.shape != (rows,):
        raise ValueError(f"key must be int64 [{rows}], one per sample; got {key.dtype} {list(key.shape)}")


def finite_rows(values: Tensor) -> Tensor:
    """Which samples of a batch have only finite values, bool [B]."""
    return values.reshape(len(values), -1).isfinite().all(dim=1)
