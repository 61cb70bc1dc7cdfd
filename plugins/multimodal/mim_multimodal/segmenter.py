"""Fine-tuning for a class at every pixel (MultiMAE, arXiv 2204.01678, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from mim_core import (
    FINE_TUNED,
    MAJORITY,
    DataSource,
    Encoder,
    Labelled,
    MimError,
    Outcome,
    Record,
    Sample,
    Score,
    Table,
    Taught,
    Tokenizer,
    pixel_loss,
)
from torch import Tensor

from mim_multimodal import predicted_files
from mim_multimodal.dense_methods import ERRORS, STEPS_OF_TEST, DenseMethod, DenseOptions
from mim_multimodal.dense_scores import ClassCounts, GroupedCounts
from mim_multimodal.map_sources import ANSWER, IGNORE


class Segmenter(DenseMethod):
    """A class for every pixel. Pixels of 255 do not count."""

    label = "semseg"

    @dataclass(frozen=True)
    class Config(DenseOptions):
        """Options of the segmenter."""

        classes: int = 0
        """Number of classes; 0 takes the data's."""
        names: tuple[str, ...] = ()
        """What the classes are called, in their order; none takes the data's."""
        beside: float = 0.4
        """upernet: weight of the loss of the head beside it."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Config) -> None:
        if config.classes < 2:
            raise ValueError(
                f"classes must be at least 2, got {config.classes}; finetune takes their number from the data"
            )
        super().__init__(tokenizer, encoder, config, config.classes)
        self.classes = config.classes

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With the number and the names of the data's classes.

        Raises:
            MimError: Neither the options nor the data say how many classes there are.
        """
        count = options.classes or getattr(source, "class_count", None)
        if not count:
            raise MimError(
                "How many classes do the maps have? Name them in classes.txt, one a line, or give --data.classes N."
            )
        names = tuple(getattr(source, "classes", ()) or ())
        return replace(options, classes=count, names=options.names or (names if len(names) == count else ()))

    def _empty(self, rows: int, device: torch.device) -> Tensor:
        return torch.full((rows, *self.size), IGNORE, dtype=torch.int64, device=device)

    def forward(self, prepared: Taught) -> Outcome:
        """The mean cross-entropy over the pixels that have a class; predictions "semseg" are logits [B, K, H, W]."""
        logits, latent = self.answered(prepared)
        loss = pixel_loss(logits, prepared.answers)
        beside = getattr(self.head, "beside", None)
        if beside is not None:
            loss = loss + self.config.beside * pixel_loss(beside, prepared.answers)
        return Outcome(loss, {"semseg": loss}, {"semseg": logits}, latent)

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """Probabilities "semseg" [B, K, H, W]."""
        return {"semseg": super().predict(sample)["semseg"].float().softmax(dim=1)}

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """The share of each class that is there, and a map of class ids as PNG."""
        ids = answers["semseg"].argmax(dim=0)
        names = self.config.names or tuple(map(str, range(self.classes)))
        shares = ids.flatten().bincount(minlength=self.classes).double() / ids.numel()
        row = {names[number]: round(float(shares[number]), 6) for number in range(self.classes) if shares[number]}
        return Record(row, {"-semseg.png": predicted_files.class_map(ids)})

    def right(self, batch: Sample, predictions: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
        """The share of the pixels with a class that got it."""
        answer = batch[ANSWER]
        known = answer != IGNORE
        hits = (predictions["semseg"].argmax(dim=1) == answer) & known
        return hits.flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1)

    def _maps(self, sample: Sample, predictions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        right, classes = sample[ANSWER], predictions["semseg"].argmax(dim=0)
        return right, classes, (classes == right) | (right == IGNORE)

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """Mean IoU, mean accuracy and the share of pixels that are right, beside the commonest class of the training
        maps.

        Raises:
            MimError: No test item can be read, or no pixel has a class.
        """
        train, test = source.labelled("train"), source.labelled("test")
        seen = torch.stack([_map_of(train, index) for index in range(min(len(train.labels), 200))])
        common = int(seen[seen != IGNORE].long().bincount(minlength=self.classes).argmax())
        counts = {row: GroupedCounts(self.classes, IGNORE) for row in (MAJORITY, FINE_TUNED)}
        for batch, predictions in self.predicted(source, test, device, min(batch_size, STEPS_OF_TEST)):
            right = batch[ANSWER].long()
            counts[FINE_TUNED].add(predictions["semseg"].argmax(dim=1), right, batch["sample"])
            counts[MAJORITY].add(torch.full_like(right, common), right, batch["sample"])
        own = counts[FINE_TUNED].whole()
        self.tables = self._tables(own)
        if not own.table.sum():
            raise MimError(f"No pixel of the {len(test.labels):,} test items has a class, or none can be read.")
        if notes is not None:
            notes += [*self._notes(len(train.labels), len(test.labels), own), ERRORS]
        columns = {"mIoU": "mean_iou", "mean class accuracy": "mean_accuracy", "pixels": "pixel_accuracy"}
        return [
            Score(row, column, float(grouped.whole().scores()[name]), error=grouped.errors()[name])
            for row, grouped in counts.items()
            for column, name in columns.items()
        ]

    def _tables(self, counts: ClassCounts) -> dict[str, Table]:
        """Scores of each class, and the pixels of each class by the class that they got."""
        names = self.config.names or tuple(f"class {number}" for number in range(self.classes))
        scores = counts.scores()
        kinds = ("iou", "class_accuracy", "dice")
        each = zip(names, counts.table.sum(dim=1).tolist(), *(scores[kind].tolist() for kind in kinds), strict=True)
        rows = tuple((name, n, *(round(v, 6) if v == v else "" for v in values)) for name, n, *values in each)
        pairs = tuple((name, *row) for name, row in zip(names, counts.table[:, :-1].tolist(), strict=True))
        return {
            "classes": Table(("class", "pixels", "IoU", "accuracy", "Dice"), rows),
            "confusion": Table(("true class", *names), pairs),
        }

    def _notes(self, train: int, test: int, counts: ClassCounts) -> list[str]:
        names = self.config.names or tuple(f"class {number}" for number in range(self.classes))
        each = counts.scores()["iou"]
        listing = ", ".join(
            f"{name} {float(value):.3f}" for name, value in zip(names, each, strict=True) if value == value
        )
        return [f"{train:,} training items, {test:,} test items, {self.classes} classes. IoU of each: {listing}."]


def _map_of(split: Labelled, index: int) -> Tensor:
    answer: Tensor = split.items[index][ANSWER]
    return answer
