"""What is judged: features of labelled samples, by row of the table, and the probes that use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mim_core.errors import MimError
from mim_core.host.registry import Entry, Registry
from mim_core.recipes.config import EvaluateConfig
from mim_core.scores import Score

if TYPE_CHECKING:
    from mim_core.data.source import DataSource
    from mim_core.methods.method import Method


@dataclass(frozen=True)
class SplitFeatures:
    """What a row's encoder makes of both splits: float32 [n, D] and [m, D]."""

    train: Tensor
    test: Tensor


@dataclass
class Study:
    """What an evaluation works on.

    Attributes:
        config: The evaluation options.
        labels: int64 [n] of the training split, and [m] of the test split.
        classes: Names of the classes.
        rows: Features of both splits, by row.
        notes: What to print under the table.
        source: The data, for evaluations that need more than one vector per sample.
        methods: What gives the methods of the rows that have one, by row; each is built when it is called for.
        device: Where to compute.
        samples: Numbers of these samples within both splits; empty where that is not known, and before labels are
            asked for.
        headings: What stands above the scores, as the evaluations say that gave any.
    """

    config: EvaluateConfig
    labels: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    rows: dict[str, SplitFeatures]
    notes: list[str] = field(default_factory=list)
    source: DataSource | None = None
    methods: Mapping[str, Callable[[], Method]] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    samples: tuple[Tensor, ...] = ()
    headings: list[str] = field(default_factory=list)


def run_study(study: Study, registry: Registry) -> list[Score]:
    """All evaluations that the study asks for."""
    scores: list[Score] = []
    for name in study.config.on:
        scores += _given(registry.get("evaluations", name), study)
    return scores


def _given(entry: Entry, study: Study) -> list[Score]:
    """What an evaluation gives, under its heading."""
    scores: list[Score] = entry.resolve()(study)
    if entry.heading and entry.heading not in study.headings:
        study.headings.append(entry.heading)
    return scores


def run_usable(study: Study, registry: Registry) -> list[Score]:
    """The same; evaluations that these data or this encoder do not serve are left out, with a note that says why.

    Raises:
        MimError: None of them can be run.
    """
    scores: list[Score] = []
    refused: dict[str, list[str]] = {}
    for name in study.config.on:
        entry = registry.get("evaluations", name)
        try:
            scores += _given(entry, study)
        except MimError as error:
            refused.setdefault(str(error), []).append(entry.full_name)
    if refused and not scores:
        raise MimError("\n".join(f"{', '.join(names)}: {why}" for why, names in refused.items()))
    study.notes += [f"Left out: {', '.join(names)}. {why}" for why, names in refused.items()]
    return scores
