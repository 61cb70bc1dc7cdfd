"""Training an encoder on labels: encode all units, pool them, and a linear head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.data.source import DataSource, Sample
from mim_core.errors import MimError
from mim_core.methods.method import Outcome, Record
from mim_core.methods.supervised import Supervised, Taught
from mim_core.parts.encoder import Encoded, Encoder, init_transformer
from mim_core.parts.norm import BatchNorm
from mim_core.parts.tokenizer import Tokenizer
from mim_core.scores import FINE_TUNED, MAJORITY, Score, class_weights
from mim_core.text import shown

if TYPE_CHECKING:
    from mim_core.methods.assembly import Parts


# ---- classes ---------------------------------------------------------------------------------------------------------

Pool = Literal["mean", "max", "prefix", "mean-max", "prefix-max"]


class Classifier(Supervised):
    """One class per sample: encode all units, pool, and a head.

    ``head`` "mlp" with ``pool`` "prefix-max" is Point-MAE's for classification (arXiv 2203.06604, section 4.2 and its
    code): two hidden layers of 256, each with batch normalisation, ReLU and dropout, on the class token beside the
    largest values of all tokens.
    """

    weights: Tensor | None

    @dataclass(frozen=True)
    class Config:
        """Options of the classifier."""

        init: Path | None = None
        """Checkpoint that the weights of tokenizer and encoder are taken from; none: as drawn. finetune fills it in."""
        classes: int = 0
        """Number of classes; 0 takes the data's."""
        names: tuple[str, ...] = ()
        """What the classes are called, in their order; none takes the data's."""
        pool: Pool = "mean"
        """One vector per sample: the mean of its tokens, their largest values, the first prefix (class) token, or two
        of them side by side."""
        head: Literal["linear", "mlp"] = "linear"
        """linear: one layer; mlp: hidden layers with batch normalisation, ReLU and dropout before it."""
        hidden: tuple[int, ...] = (256, 256)
        """Widths of the hidden layers of the mlp."""
        dropout: float = 0.5
        """Share of a hidden layer's values that training leaves out."""
        label_smoothing: float = 0.0
        """Share of the answer that is spread over all classes."""
        balance: bool = False
        """Weigh classes alike in the loss: a sample counts by one over the share of its class among the training
        samples. finetune takes the weights from the data."""
        class_weights: tuple[float, ...] = ()
        """The weight of each class in the loss; none: those of balance, or 1."""

        def __post_init__(self) -> None:
            if not 0 <= self.dropout < 1 or not 0 <= self.label_smoothing < 1:
                raise MimError("method: dropout and label_smoothing must lie in [0, 1).")
            if self.classes < 0 or any(width < 1 for width in self.hidden):
                raise MimError("method: classes must not be negative, and hidden widths must be at least 1.")
            if self.names and len(self.names) != self.classes:
                raise MimError(f"method: names are {len(self.names)}, for {self.classes} classes.")
            if self.class_weights and (min(self.class_weights) < 0 or not max(self.class_weights) < math.inf):
                raise MimError("method: class_weights must be finite and not negative.")

    @classmethod
    def build(cls, config: Any, parts: Parts) -> Classifier:
        """Roles: tokenizer and encoder."""
        tokenizer = parts.tokenizer()
        return cls(tokenizer, parts.encoder(tokenizer), config)

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Config) -> None:
        super().__init__(tokenizer, encoder)
        if config.classes < 2:
            raise ValueError(
                f"classes must be at least 2, got {config.classes}; the command finetune takes their number from "
                "the data"
            )
        if config.pool.startswith("prefix") and getattr(encoder, "cls_token", None) is None:
            raise ValueError(
                f"pool {config.pool!r} needs an encoder with a class token; core:vit has one with --encoder.class-token"
            )
        if config.class_weights and len(config.class_weights) != config.classes:
            raise ValueError(f"class_weights are {len(config.class_weights)}, for {config.classes} classes")
        self.config, self.classes = config, config.classes
        weights = torch.tensor(config.class_weights) if config.class_weights else None
        self.register_buffer("weights", weights, persistent=False)
        self.head = self._head(encoder.width * (2 if "-" in config.pool else 1))
        init_transformer(self.head)

    def _head(self, width: int) -> nn.Module:
        layers: list[nn.Module] = []
        for hidden in self.config.hidden if self.config.head == "mlp" else ():
            layers += [nn.Linear(width, hidden), BatchNorm(hidden), nn.ReLU(), nn.Dropout(self.config.dropout)]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, self.classes))

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With the number and the names of the data's classes, and their weights where classes are to be weighed
        alike."""
        train = source.labelled("train")
        options = replace(options, classes=options.classes or len(train.classes))
        if not options.names and options.classes == len(train.classes):
            options = replace(options, names=tuple(map(shown, train.classes)))
        if not options.balance or options.class_weights or options.classes != len(train.classes):
            return options
        found = class_weights(train.labels, options.classes).tolist()
        return replace(options, class_weights=tuple(round(weight, 6) for weight in found))

    def check(self, source: DataSource) -> None:
        """Refuses data with another number of classes."""
        found = source.labelled("train").classes
        if len(found) != self.classes:
            raise MimError(
                f"The method is for {self.classes} classes (--method.classes); the data has {len(found)}: "
                f"{', '.join(found[:8])}{', ...' if len(found) > 8 else ''}."
            )
        other = [name for name in map(shown, found) if self.config.names and name not in self.config.names]
        if other:
            raise MimError(
                f"The method's classes are {', '.join(self.config.names[:8])}; the data has {', '.join(other[:8])}. "
                "Classes are told apart by their order, so those of other data must have the same names."
            )

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """The probabilities of the classes [B, classes]."""
        return {"class": super().predict(sample)["class"].float().softmax(dim=1)}

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """The most probable class, its probability, and those of all classes under their names."""
        shares, names = answers["class"], self.config.names or tuple(map(str, range(self.classes)))
        first = int(shares.argmax())
        each = {f"p({name})": round(float(share), 6) for name, share in zip(names, shares, strict=True)}
        return Record({"class": names[first], "probability": round(float(shares[first]), 6), **each})

    def forward(self, prepared: Taught) -> Outcome:
        """The cross-entropy, the mean over the batch, each sample with its class's weight; predictions "class" are
        logits [B, classes]."""
        encoded = self.encoded(prepared)
        logits = self.head(self._pooled(encoded))
        smoothing = self.config.label_smoothing
        if self.weights is None:
            loss = F.cross_entropy(logits.float(), prepared.answers, label_smoothing=smoothing)
        else:
            each = F.cross_entropy(logits.float(), prepared.answers, label_smoothing=smoothing, reduction="none")
            loss = (each * self.weights[prepared.answers]).mean()
        latent = torch.cat([encoded.prefix, encoded.tokens], dim=1)
        return Outcome(loss, {"class": loss}, {"class": logits}, latent)

    def _pooled(self, encoded: Encoded) -> Float[Tensor, "B D"]:
        """One vector per sample, twice the encoder's width for two kinds."""
        kinds = {
            "mean": lambda: encoded.tokens.mean(dim=1),
            "max": lambda: encoded.tokens.amax(dim=1),
            "prefix": lambda: encoded.prefix[:, 0],
        }
        return torch.cat([kinds[kind]() for kind in self.config.pool.split("-")], dim=1)

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """Accuracy, and the mean over the classes of each one's accuracy; beside the most frequent training class. A
        sample's answer is the class of the largest mean probability over its views."""
        train, test = source.labelled("train"), source.labelled("test")
        sums, seen = torch.zeros(len(test.labels), self.classes), torch.zeros(len(test.labels))
        for batch, predictions in self.predicted(source, test, device, batch_size):
            sums.index_add_(0, batch["sample"], predictions["class"].softmax(dim=1))
            seen.index_add_(0, batch["sample"], torch.ones(len(batch["sample"])))
        read = seen == test.views
        if not read.any():
            raise MimError(f"None of the {len(test.labels):,} labelled test samples can be read.")
        found, labels = sums[read].argmax(dim=1), test.labels[read]
        majority = torch.full_like(labels, int(train.labels.bincount().argmax()))
        if notes is not None:
            notes.append(
                f"{len(train.labels):,} labelled training samples, {len(labels):,} test samples, {self.classes} "
                "classes."
            )
            lost = len(test.labels) - len(labels)
            notes += [f"{lost:,} test files cannot be used and are left out."] if lost else []
            notes += [note for note in {train.note, test.note} if note]
        return [*accuracies(MAJORITY, majority, labels), *accuracies(FINE_TUNED, found, labels)]


def accuracies(row: str, found: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> list[Score]:
    """Accuracy, and the mean of the accuracies of the classes that occur among the labels."""
    right = (found == labels).float()
    each = torch.stack([right[labels == label].mean() for label in labels.unique()])
    return [Score(row, "accuracy", float(right.mean())), Score(row, "mean class accuracy", float(each.mean()))]
