"""Fine-tuning for depth at every pixel (MultiMAE, arXiv 2204.01678, section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from mim_core import (
    FINE_TUNED,
    DataSource,
    Encoder,
    MimError,
    Outcome,
    Record,
    Sample,
    Score,
    Taught,
    Tokenizer,
)
from torch import Tensor
from torch.nn import functional as F

from mim_multimodal import predicted_files
from mim_multimodal.dense_heads import HeadKind
from mim_multimodal.dense_methods import ERRORS, STEPS_OF_TEST, DenseMethod, DenseOptions
from mim_multimodal.dense_scores import SMALLEST, berhu, depth_errors, depth_scores
from mim_multimodal.map_sources import ANSWER, MapSource


class DepthRegressor(DenseMethod):
    """Depth at every pixel, in the file's own unit. Pixels without a measurement do not count."""

    label = "depth"

    @dataclass(frozen=True)
    class Config(DenseOptions):
        """Options of the depth regressor."""

        head: HeadKind = "dpt"
        """linear, convnext, dpt (MultiMAE's for depth, from four blocks) or upernet."""
        mean: float = 0.0
        """Depth that the network answers 0 for; finetune takes the mean of training maps."""
        std: float = 0.0
        """Depth that one of its units is; 0: finetune takes the deviation of training maps."""
        whole: bool = False
        """Whether depths are whole numbers of at most 16 bits, as millimetres often are: predict then writes PNG, else
        .npy. finetune finds it in the training maps, with std."""
        loss: Literal["berhu", "l1", "mse"] = "berhu"
        """berhu: absolute errors, quadratic where large (MultiMAE); l1; mse."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Config) -> None:
        if not 0 < config.std < math.inf:
            raise ValueError(f"std must be positive, got {config.std}; finetune takes it from the data")
        super().__init__(tokenizer, encoder, config, 1)

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With mean and deviation of some of the data's training maps.

        Raises:
            MimError: The training maps have no depth, or one depth alone.
        """
        if options.std:
            return options
        items = MapSource(source, cls.label, source.size).train  # type: ignore[attr-defined]
        maps = [items[index][ANSWER].double() for index in range(0, len(items), max(1, len(items) // 100))]
        known = torch.cat([values[values.isfinite()] for values in maps])
        if len(known) < 2 or not float(known.std()):
            raise MimError("The training maps have no depth, or one depth alone.")
        whole = bool((known == known.round()).all()) and float(known.min()) >= 0 and float(known.max()) < 2**16
        return replace(options, mean=float(f"{known.mean():.6g}"), std=float(f"{known.std():.6g}"), whole=whole)

    def _empty(self, rows: int, device: torch.device) -> Tensor:
        return torch.full((rows, 1, *self.size), torch.nan, device=device)

    def forward(self, prepared: Taught) -> Outcome:
        """The loss over measured pixels, of depths brought to mean 0 and deviation 1; predictions "depth" [B, 1, H, W]
        are in the file's unit."""
        depth, latent = self.answered(prepared)
        valid = prepared.answers.isfinite()
        wanted = ((prepared.answers - self.config.mean) / self.config.std).masked_fill(~valid, 0.0)
        loss = self._loss(depth.float(), wanted, valid)
        return Outcome(loss, {"depth": loss}, {"depth": depth.float() * self.config.std + self.config.mean}, latent)

    def _loss(self, depth: Float[Tensor, "B 1 H W"], wanted: Tensor, valid: Tensor) -> Tensor:
        if self.config.loss == "berhu":
            return berhu(depth, wanted, valid)
        kind = F.l1_loss if self.config.loss == "l1" else F.mse_loss
        each = kind(depth, wanted, reduction="none").masked_fill(~valid, 0.0)
        return each.sum() / valid.sum().clamp(min=1)

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """Depth "depth" [B, 1, H, W] in the unit of the files that were learned from."""
        return {"depth": super().predict(sample)["depth"].float()}

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """Least, mean and largest depth; and the map, all in the unit of the files that were learned from: as PNG of 16
        bits where these are whole numbers, else as .npy, float32."""
        depth = answers["depth"]
        row = {name: float(f"{value:.6g}") for name, value in zip(("min", "mean", "max"), _spread(depth), strict=True)}
        if self.config.whole:
            return Record(row, {"-depth.png": predicted_files.whole_depth(depth)})
        return Record(row, {"-depth.npy": predicted_files.float_depth(depth)})

    def right(self, batch: Sample, predictions: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
        """The share of the measured pixels within a factor of 1.25."""
        answer, depth = batch[ANSWER].float(), predictions["depth"]
        known = answer.isfinite()
        return (_within(depth, answer) & known).flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1)

    def _maps(self, sample: Sample, predictions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        right, depth = sample[ANSWER].float(), predictions["depth"]
        scaled = ((each - self.config.mean) / self.config.std for each in (right, depth))
        return *scaled, _within(depth, right) | ~right.isfinite()

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """RMSE in the file's unit, AbsRel and delta 1 over all measured pixels, beside the mean depth of the training
        maps.

        Raises:
            MimError: No test item can be read, or none has a depth.
        """
        test = source.labelled("test")
        answers, right = list[Tensor](), list[Tensor]()
        for batch, predictions in self.predicted(source, test, device, min(batch_size, STEPS_OF_TEST)):
            answers.append(predictions["depth"])
            right.append(batch[ANSWER].float())
        if not answers:
            raise MimError(f"None of the {len(test.labels):,} test items can be read.")
        depth = torch.cat(right)
        valid = depth.isfinite()
        if not valid.any():
            raise MimError("No pixel of the test items has a depth.")
        depth = depth.masked_fill(~valid, 0.0)
        rows = {"mean depth": torch.full_like(depth, self.config.mean), FINE_TUNED: torch.cat(answers)}
        if notes is not None:
            notes.append(
                f"{len(test.labels):,} test items. Errors are in the unit of the files; pixels without a measurement "
                f"do not count. delta 1: the share of pixels within a factor of 1.25. {ERRORS}"
            )
        columns = {"RMSE": ("rmse", True), "AbsRel": ("abs_rel", True), "delta 1": ("delta_1", False)}
        scores = []
        for row, answer in rows.items():
            values, errors = depth_scores(answer, depth, valid), depth_errors(answer, depth, valid)
            cells = {column: (values[name], errors.get(name), lower) for column, (name, lower) in columns.items()}
            scores += [Score(row, c, v, lower_is_better=lower, error=error) for c, (v, error, lower) in cells.items()]
        return scores


def _within(depth: Tensor, right: Tensor) -> Tensor:
    """Where two depths are within a factor of 1.25, as delta 1 counts them."""
    safe, real = depth.clamp(min=SMALLEST), right.clamp(min=SMALLEST)
    return torch.maximum(safe / real, real / safe) < 1.25


def _spread(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return values.min(), values.mean(), values.max()
