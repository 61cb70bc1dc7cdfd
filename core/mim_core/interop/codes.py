"""Units that are ids which a trained tokenizer gives, a run of `core:vq`, frozen (4M, arXiv 2312.06647, section
2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mim_core.data.source import Sample
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.methods.quantised import QuantisedAutoencoder
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.tokenizer_ids import NamedTokenizer
from mim_core.recipes.config import EvaluateConfig, Part, ResolvedRun, RunConfig, TrainConfig
from mim_core.recipes.resolve import resolve
from mim_core.recipes.toml import from_toml, to_toml
from mim_core.runs.load import load_run

T = TypeVar("T", bound="CodeTokenizer")
ROLES = ("method", "tokenizer", "encoder", "decoder", "target")


class CodeTokenizer(NamedTokenizer):
    """Ids that a trained tokenizer gives, a run of a ``vq`` recipe: each unit of that run is a unit here, its id looked
    up in a table. It stands still, its weights are in every checkpoint of the run, and its parts in the run's recipe.

    Takes what that run takes; `join` gives what its decoder makes of ids.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the code tokenizer."""

        run: Path | None = None
        """The folder of a run that trained a tokenizer."""
        random: bool = False
        """Weights as they were drawn, for tests and to measure what training brings."""
        parts: str = ""
        """Its parts as a recipe has them, as text. Written into the run's recipe when it starts."""

    def __init__(self, config: Config, width: int) -> None:
        quantised, text = _opened(config)
        super().__init__(replace(config, parts=text), quantised.encoder.codes, width)
        self.quantised = quantised.requires_grad_(False).eval()
        self.layout, self.shapes = quantised.tokenizer.layout, quantised.tokenizer.shapes
        self.ids = quantised.tokenizer.ids
        self.gives_features = quantised.tokenizer.gives_features
        self.filled = config.random or (config.run is not None and config.run.exists())

    def train(self: T, mode: bool = True) -> T:
        """The run that gives ids stays in evaluation mode."""
        super().train(mode)
        self.quantised.train(False)
        return self

    def check_filled(self) -> None:
        """Refuses to name units with weights that were only drawn, where the ones that are meant are gone.

        Raises:
            ValueError: They are gone; names the option that gives them.
        """
        if not self.filled:
            where = self.config.run or "no run is named"
            raise ValueError(f"the trained tokenizer is not at hand: {where}; give it with --tokenizer.run FOLDER")

    @torch.no_grad()
    def split(self, sample: Sample) -> Patches:
        """The id of every unit, int64 [B, N, 1]."""
        layout = self.quantised.tokenizer.split(sample).layout
        return Patches(self.quantised.name(sample)[:, :, None], layout)

    @torch.no_grad()
    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """What the ids stand for, in the modality's own shape, or features of it; where there is none, that of the
        first id."""
        return self.quantised.rebuild(values[..., 0].clamp(min=0))


def codes_text(**parts: Part) -> str:
    """Parts by role, as the option ``parts`` of a code tokenizer."""
    return to_toml(resolve(RunConfig(parts=parts), installed()), installed())


def _opened(config: Any) -> tuple[QuantisedAutoencoder, str]:
    """The run's method and the text of its parts; where the run is gone and the parts are known, as they are drawn, for
    a checkpoint to fill."""
    gone = config.run is None or not config.run.exists()
    if config.parts and (gone or torch.get_default_device().type == "meta"):
        method, text = build_method(from_toml(config.parts, installed())), config.parts
    elif config.run is None:
        raise ValueError("say which run gives the ids: train one (a vq recipe), then --MODALITY.tokenizer.run FOLDER")
    else:
        opened = load_run(config.run, installed())
        method = opened.method
        own = {role: part for role, part in opened.recipe.parts.items() if role in ROLES}
        text = to_toml(ResolvedRun(own, TrainConfig(), EvaluateConfig(), ""), installed())
    if not isinstance(method, QuantisedAutoencoder):
        raise MimError(f"{config.run or 'It'} gives no ids: it is a {type(method).__name__}; train a vq recipe.")
    return method, text
