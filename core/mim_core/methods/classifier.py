"""Training an encoder on labels: encode all units, pool them, and a linear head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.data.labelled import LabelledSource
from mim_core.data.source import DataSource, Labelled, Sample
from mim_core.errors import MimError
from mim_core.methods.class_tables import class_scores, confusion
from mim_core.methods.freezing import freeze
from mim_core.methods.method import Outcome, Record
from mim_core.methods.mixing import Mix, draw_mix, mixed, mixed_labels
from mim_core.methods.supervised import Supervised, Taught
from mim_core.parts.encoder import Encoded, Encoder, init_transformer
from mim_core.parts.layout import take
from mim_core.parts.mask import Mask
from mim_core.parts.norm import BatchNorm
from mim_core.parts.tokenizer import Tokenizer
from mim_core.scores import FINE_TUNED, MAJORITY, Score, class_weights
from mim_core.standard_errors import HOW, class_mean_error, share_error
from mim_core.text import shown

if TYPE_CHECKING:
    from mim_core.methods.assembly import Parts


# ---- classes ---------------------------------------------------------------------------------------------------------

Pool = Literal["mean", "max", "prefix", "first", "mean-max", "prefix-max"]


class Classifier(Supervised):
    """One class per sample: encode all units, pool, and a head.

    ``head`` "mlp" with ``pool`` "prefix-max" is Point-MAE's for classification (arXiv 2203.06604, section 4.2 and its
    code): two hidden layers of 256, each with batch normalisation, ReLU and dropout, on the class token beside the
    largest values of all tokens.
    """

    weights: Tensor | None
    lacks_units = True

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
        """One vector per sample: the mean of its tokens, their largest values, the first prefix (class) token, the
        first token of all units, or two of them side by side."""
        norm: Literal["encoder", "pooled"] = "encoder"
        """encoder: its own norm, on every token; pooled: a new norm on the pooled vector in its place (MAE's and
        VideoMAE's fine-tuning)."""
        head: Literal["linear", "mlp", "probe"] = "linear"
        """linear: one layer; mlp: hidden layers with batch normalisation, ReLU and dropout before it; probe: one layer
        behind batch normalisation without weights (MAE's linear probing)."""
        head_std: float | None = None
        """Deviation of the normal that the last layer's weights are drawn from; none: as other layers."""
        freeze: int = 0
        """Blocks of the encoder that stay as they are, from the input on, with all that is in front of them; -1: the
        whole encoder."""
        mixup: float = 0.0
        """Average each sample with another one of its batch, by a share from Beta(mixup, mixup); 0: do not."""
        cutmix: float = 0.0
        """Take a box from the other sample instead, in half of the batches where mixup is on too; 0: do not."""
        mix_chance: float = 1.0
        """Share of batches that are mixed."""
        repeats: int = 1
        """Samples that training makes of each item it reads, each augmented by draws of its own (VideoMAE: 2)."""
        hidden: tuple[int, ...] = (256, 256)
        """Widths of the hidden layers of the mlp."""
        dropout: float = 0.5
        """Share of a hidden layer's values that training leaves out."""
        head_dropout: float = 0.0
        """Share of the pooled values that training leaves out in front of the head (VideoMAE on UCF101: 0.5)."""
        label_smoothing: float = 0.0
        """Share of the answer that is spread over all classes."""
        balance: bool = False
        """Weigh classes alike in the loss: a sample counts by one over the share of its class among the training
        samples. finetune takes the weights from the data."""
        class_weights: tuple[float, ...] = ()
        """The weight of each class in the loss; none: those of balance, or 1."""

        def __post_init__(self) -> None:
            if min(self.mixup, self.cutmix) < 0 or not 0 <= self.mix_chance <= 1:
                raise MimError("method: mixup and cutmix must not be negative, and mix_chance must lie in [0, 1].")
            if self.freeze < -1 or self.repeats < 1 or not (self.head_std is None or self.head_std > 0):
                raise MimError("method: freeze must be at least -1, repeats at least 1, and head_std positive.")
            if not all(0 <= share < 1 for share in (self.dropout, self.head_dropout, self.label_smoothing)):
                raise MimError("method: dropout, head_dropout and label_smoothing must lie in [0, 1).")
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
        if config.pool.startswith("prefix") and encoder.prefix == 0:
            raise ValueError(
                f"pool {config.pool!r} needs an encoder with a class token; core:vit has one with --encoder.class-token"
            )
        if config.class_weights and len(config.class_weights) != config.classes:
            raise ValueError(f"class_weights are {len(config.class_weights)}, for {config.classes} classes")
        self.config, self.classes = config, config.classes
        self.fc_norm = self._take_norm(encoder) if config.norm == "pooled" else None
        weights = torch.tensor(config.class_weights) if config.class_weights else None
        self.register_buffer("weights", weights, persistent=False)
        self.head = self._head(encoder.width * (2 if "-" in config.pool else 1))
        init_transformer(self.head)
        if config.head_std is not None:
            trunc_normal_(self.head[-1].weight, std=config.head_std)  # type: ignore[index]
        if config.mixup or config.cutmix:
            self._check_mixing()
        freeze(self, config.freeze)

    def _take_norm(self, encoder: Encoder) -> nn.LayerNorm:
        """A norm for the pooled vector, and none for the encoder's tokens.

        Raises:
            ValueError: The encoder has another kind of norm at its end, or several vectors are pooled.
        """
        if "-" in self.config.pool:
            raise ValueError(f"norm 'pooled' is for one pooled vector, and pool is {self.config.pool!r}")
        own = getattr(encoder, "norm", None)
        if isinstance(own, nn.Identity):  # weights that were fine-tuned so have none to be replaced
            return nn.LayerNorm(encoder.width, eps=getattr(getattr(encoder, "config", None), "norm_eps", 1e-6))
        if not isinstance(own, nn.LayerNorm):
            raise ValueError("norm 'pooled' takes the place of the encoder's own, and this encoder has no LayerNorm")
        encoder.norm = nn.Identity()
        self.replaces = ("encoder.norm.",)
        return nn.LayerNorm(encoder.width, eps=own.eps)

    def _check_mixing(self) -> None:
        """Raises ValueError where samples cannot be mixed."""
        grid, shapes = self.tokenizer.layout.grid, self.tokenizer.shapes
        if grid is None or self.tokenizer.ids or (self.config.cutmix and any(len(s) < 3 for s in shapes.values())):
            raise ValueError(
                "mixup averages samples place by place, and cutmix takes boxes of two axes; these units do not lie on "
                "such a grid, or are no measured values. Leave mixup and cutmix at 0"
            )

    def training_source(self, source: DataSource) -> DataSource:
        """The labelled training split, each item as often as ``repeats`` says."""
        return LabelledSource(source, self.config.repeats)

    @torch.no_grad()
    def prepare(
        self,
        sample: Sample,
        mask: Mask | Tensor | Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> Taught:
        """As `Supervised.prepare`; in training mode samples and labels are mixed, where the options say so. Answers are
        then float [B, classes]. Partners are of one micro-batch on one device."""
        config, answers = self.config, None
        if self.training and (config.mixup or config.cutmix):
            shapes = self.tokenizer.shapes
            first = next(iter(shapes))
            size, label = tuple(sample[first].shape[2:]), self.answers(sample)
            # the loop seeds torch by seed, step and micro-batch; a key of the batch would have to be waited for
            key = torch.initial_seed() & ((1 << 63) - 1)
            mix = draw_mix(key, config.mixup, config.cutmix, config.mix_chance, size) or Mix(1.0)
            sample = {name: mixed(value, mix) if name in shapes else value for name, value in sample.items()}
            answers = self.shares_mixed(label, mix.left(size))
        prepared = super().prepare(sample, mask, step=step, progress=progress)
        return prepared if answers is None else replace(prepared, answers=answers)

    def shares_mixed(self, label: Tensor, left: float) -> Float[Tensor, "B K"]:
        """The answers of mixed samples: ``left`` of a sample's own label, the rest of its partner's."""
        return mixed_labels(label, self.classes, left)

    def _head(self, width: int) -> nn.Module:
        layers: list[nn.Module] = []
        for hidden in self.config.hidden if self.config.head == "mlp" else ():
            layers += [nn.Linear(width, hidden), BatchNorm(hidden), nn.ReLU(), nn.Dropout(self.config.dropout)]
            width = hidden
        if self.config.head == "probe":
            layers.append(BatchNorm(width, eps=1e-6, affine=False))
        return nn.Sequential(*layers, nn.Linear(width, self.classes))

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With the number and the names of the data's classes, and their weights where classes are to be weighed
        alike."""
        train = LabelledSource(source).split
        options = replace(options, classes=options.classes or len(train.classes))
        if not options.names and options.classes == len(train.classes):
            options = replace(options, names=tuple(map(shown, train.classes)))
        if not options.balance or options.class_weights or options.classes != len(train.classes):
            return options
        weights = class_weights(train.labels, options.classes).tolist()
        return replace(options, class_weights=tuple(round(weight, 6) for weight in weights))

    def check(self, source: DataSource) -> None:
        """Refuses data with another number of classes.

        Raises:
            MimError: The numbers differ, or the names of the classes do.
        """
        classes = source.labelled("train").classes
        if len(classes) != self.classes:
            raise MimError(
                f"The method is for {self.classes} classes (--method.classes); the data has {len(classes)}: "
                f"{', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}."
            )
        other = [name for name in map(shown, classes) if self.config.names and name not in self.config.names]
        if other:
            raise MimError(
                f"The method's classes are {', '.join(self.config.names[:8])}; the data has {', '.join(other[:8])}. "
                "Classes are told apart by their order, so those of other data must have the same names."
            )

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """The probabilities of the classes [B, classes]."""
        return {"class": self.probabilities(super().predict(sample)["class"]).float()}

    def probabilities(self, logits: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """Of the classes, which sum to one; a sample's are the mean over its views, see `shares_of`."""
        return shares_of(logits)

    def label_names(self) -> tuple[str, ...]:
        """What the classes are called, or else their numbers."""
        return self.config.names or tuple(map(str, range(self.classes)))

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """The most probable class, its probability, and those of all classes under their names."""
        shares, names = answers["class"], self.label_names()
        first = int(shares.argmax())
        each = {f"p({name})": round(float(share), 6) for name, share in zip(names, shares, strict=True)}
        return Record({"class": names[first], "probability": round(float(shares[first]), 6), **each})

    def forward(self, prepared: Taught) -> Outcome:
        """The cross-entropy, the mean over the batch, each sample with its class's weight; predictions "class" are
        logits [B, classes]."""
        encoded = self.encoded(prepared)
        pooled = self._pooled(encoded, prepared.mask.kept_valid)
        if self.config.head_dropout:
            pooled = F.dropout(pooled, self.config.head_dropout, self.training)
        logits = self.head(pooled)
        loss = self.losses(logits.float(), prepared.answers).mean()
        latent = torch.cat([encoded.prefix, encoded.tokens], dim=1)
        return Outcome(loss, {"class": loss}, {"class": logits}, latent)

    def losses(self, logits: Float[Tensor, "B K"], answers: Tensor) -> Float[Tensor, " B"]:
        """The loss of each sample: cross-entropy, with its class's weight."""
        each = F.cross_entropy(logits, answers, label_smoothing=self.config.label_smoothing, reduction="none")
        if self.weights is None:
            return each
        return each * (answers @ self.weights if answers.is_floating_point() else self.weights[answers])

    def _pooled(self, encoded: Encoded, valid: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B D"]:
        """One vector per sample, twice the encoder's width for two kinds, of the units that it has."""
        tokens = encoded.tokens
        kinds = {
            "mean": lambda: tokens.mean(dim=1) if valid is None else tokens.sum(dim=1) / valid.sum(dim=1, keepdim=True),
            "max": lambda: (tokens if valid is None else tokens.masked_fill(~valid[:, :, None], -math.inf)).amax(dim=1),
            "prefix": lambda: encoded.prefix[:, 0],
            "first": lambda: tokens[:, 0] if valid is None else take(tokens, valid.int().argmax(dim=1)[:, None])[:, 0],
        }
        pooled = torch.cat([kinds[kind]() for kind in self.config.pool.split("-")], dim=1)
        return pooled if self.fc_norm is None else self.fc_norm(pooled)

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """Accuracy, and the mean over the classes of each one's accuracy; beside the most frequent training class. A
        sample's answer is the class of the largest mean probability over its views."""
        train, test = source.labelled("train"), source.labelled("test")
        shares, read = self.test_shares(source, test, device, batch_size)
        predictions, labels, names = shares.argmax(dim=1), test.labels[read], self.label_names()
        each = class_scores(predictions, labels, names)
        self.tables = {"classes": each, "confusion": confusion(predictions, labels, names)}
        five = top_share(shares, labels, 5)
        top = [Score(FINE_TUNED, "top-5 accuracy", five, error=share_error(five, len(labels)))]
        top = top if self.classes > 10 else []
        majority = torch.full_like(labels, int(train.labels.bincount().argmax()))
        if notes is not None:
            notes.append(
                f"{len(train.labels):,} labelled training samples, {len(labels):,} test samples, {self.classes} "
                "classes."
            )
            lost = len(test.labels) - len(labels)
            notes += [f"{lost:,} test files cannot be used and are left out."] if lost else []
            notes += [note for note in {train.note, test.note} if note]
            notes.append(HOW)
        return [*accuracies(MAJORITY, majority, labels), *accuracies(FINE_TUNED, predictions, labels), *top]

    def test_shares(
        self, source: DataSource, split: Labelled, device: torch.device, batch_size: int
    ) -> tuple[Float[Tensor, "m K"], Bool[Tensor, " n"]]:
        """Probabilities of the samples of a split that can be read, the mean over the views of each, in float64; and
        which of all samples these are.

        Raises:
            MimError: None can be read.
        """
        seen = torch.zeros(len(split.labels))
        sums = torch.zeros(len(split.labels), self.classes, dtype=torch.float64)
        for batch, predictions in self.predicted(source, split, device, batch_size):
            sums.index_add_(0, batch["sample"], self.probabilities(predictions["class"]))
            seen.index_add_(0, batch["sample"], torch.ones(len(batch["sample"])))
        read = seen == split.views
        if not read.any():
            raise MimError(f"None of the {len(split.labels):,} labelled {split.name} samples can be read.")
        return sums[read] / split.views, read

    def wrong(self, shares: Float[Tensor, "n K"], labels: Tensor) -> list[tuple[int, str, str, float]]:
        """The samples that got a wrong answer, the surest first: (number, the truth, the answer, its probability).

        Args:
            shares: Probabilities of samples.
            labels: Of the same samples.
        """
        predictions, names = shares.argmax(dim=1), self.label_names()
        off = (predictions != labels).nonzero()[:, 0]
        sure = shares[off, predictions[off]]
        order = sure.argsort(descending=True, stable=True).tolist()
        rows = [(int(off[i]), float(sure[i])) for i in order]
        return [(row, names[int(labels[row])], names[int(predictions[row])], share) for row, share in rows]


def shares_of(logits: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
    """Probabilities of the classes in float64. A sample's are the mean over its views, as VideoMAE's code has it; the
    mean of the logits, or votes, would give other answers."""
    return logits.double().softmax(dim=-1)


def top_share(scores: Float[Tensor, "n K"], labels: Int[Tensor, " n"], count: int) -> float:
    """The share of samples whose class is among the ``count`` best."""
    best = scores.topk(min(count, scores.shape[1]), dim=1).indices
    return float((best == labels[:, None]).any(dim=1).double().mean())


def accuracies(row: str, predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> list[Score]:
    """Accuracy, and the mean of the accuracies of the classes that occur among the labels."""
    right = (predictions == labels).float()
    whole = float(right.mean())
    each = torch.stack([right[labels == label].mean() for label in labels.unique()])
    within = class_mean_error(right, labels)
    return [
        Score(row, "accuracy", whole, error=share_error(whole, len(labels))),
        Score(row, "mean class accuracy", float(each.mean()), error=within),
    ]
