"""Methods that are trained on labels: full fine-tuning of a pre-trained encoder, in the same loop as pre-training.

`Supervised` is what such methods share: nothing is hidden, the answers come with the sample, and a test split judges
them. `Classifier` puts a head on pooled tokens. Every layer is trained at the same learning rate: no layer-wise decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.data import DataSource, Labelled, LabelledSource
from mim_core.encoder import Encoded, Encoder, init_transformer
from mim_core.errors import MimError
from mim_core.evaluation import MAJORITY, Score
from mim_core.layout import Layout, Sample, tensor_tree
from mim_core.loading import Readable, loader
from mim_core.mask import Mask
from mim_core.method import Features, Method, Outcome, encode_all
from mim_core.norm import BatchNorm
from mim_core.starting import positions_at
from mim_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mim_core.build import Parts

FINE_TUNED, SCRATCH = "fine-tuned", "trained from scratch"
"""Rows of a table of test scores."""


@tensor_tree
@dataclass(frozen=True)
class Taught:
    """All that the forward pass of a supervised method needs.

    Attributes:
        inputs: Values of all units [B, N, ...].
        layout: Where the units lie.
        mask: Of which nothing is hidden.
        answers: int64 [B], or [B, n] where there are n answers per sample.
        beside: What else a method's forward pass needs, by name.
    """

    inputs: Any
    layout: Layout
    mask: Mask
    answers: Tensor
    beside: dict[str, Tensor]


class Supervised(Method):
    """A method that is trained on labels. The encoder sees every unit.

    Subclasses give `forward`, `test` and `completed`, and may take other answers than the sample's label.

    Args:
        tokenizer: Splits samples into units and embeds them.
        encoder: Sees all units.
    """

    beside: tuple[str, ...] = ()
    """Entries of the sample, int64 [B], that `forward` is handed as they are."""
    train_options: ClassVar[Mapping[str, Any]] = {}
    """Training options in which this method departs from what `finetune` starts from."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder) -> None:
        super().__init__()
        self.tokenizer, self.encoder = tokenizer, encoder

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """The options with what only the data knows, such as the number of classes; ``options`` have
        ``init`` (Path | None), where the encoder's weights are from.

        Raises:
            MimError: The data has no labels.
        """
        raise NotImplementedError

    def training_source(self, source: DataSource) -> DataSource:
        """The labelled training split, once `check` has passed."""
        self.check(source)
        return LabelledSource(source)

    def check(self, source: DataSource) -> None:
        """Refuses data that this method cannot answer.

        Raises:
            MimError: Says what was made for what.
        """

    def answers(self, sample: Sample) -> Tensor:
        """The right answers: int64 [B], the classes, by default."""
        return entry(sample, "label")

    @torch.no_grad()
    def prepare(
        self,
        sample: Sample,
        mask: Mask | Tensor | Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> Taught:
        """Splits, with nothing hidden, and takes the answers.

        Args:
            sample: The batch, with int64 ``label`` [B].
            mask: Must be None.
            step: Not used.
            progress: Not used.

        Raises:
            ValueError: A mask is given, or the sample lacks units or answers.
        """
        if mask is not None:
            raise ValueError("a method that is trained on labels hides nothing; leave the mask out")
        patches = self.tokenizer.split(sample)
        if patches.layout.valid is not None:
            raise ValueError("training on labels needs every unit of every modality; samples lack some")
        first = next(iter(sample.values()))
        hidden = Mask.nothing_hidden(first.shape[0], patches.layout, first.device)
        return Taught(
            patches.values,
            patches.layout,
            hidden,
            self.answers(sample),
            {name: entry(sample, name) for name in self.beside},
        )

    def encoded(self, prepared: Taught) -> Encoded:
        """Tokens of all units."""
        return self.encoder(self.tokenizer.embed(prepared.inputs), prepared.layout, prepared.mask)

    def encode(self, sample: Sample) -> Features:
        """Features of every unit, as training on labels has made them. Needs no labels."""
        return encode_all(self.tokenizer, self.encoder, sample)

    @torch.no_grad()
    def predicted(
        self, source: DataSource, split: Labelled, device: torch.device, batch_size: int
    ) -> Iterator[tuple[Sample, dict[str, Tensor]]]:
        """(batch, predictions), both on the host, over the items of a split that can be read, in their order. A batch
        has the items' ``index`` [b], and the ``sample`` [b] that each is a view of, with its ``label`` [b]."""
        from mim_core.build import working

        self.eval().to(device)
        places = split.items_of(torch.arange(len(split.labels))).split(batch_size)
        for batch in loader(
            Readable(split.items, source.item_seconds), [part.tolist() for part in places], 0, Readable.collate
        ):
            if not batch:
                continue
            batch["sample"] = batch["index"] // split.views
            batch["label"] = split.labels[batch["sample"]]
            ready = source.finish({name: value.to(device) for name, value in batch.items()})
            with working(self):
                found = self(self.prepare(ready)).predictions
            yield batch, {name: value.float().cpu() for name, value in found.items()}

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """Scores on the test split in a row `FINE_TUNED`, beside what needs no training.

        Args:
            source: Its ``labelled`` splits are used.
            device: Where to compute; the method stays there, in evaluation mode.
            batch_size: Samples per forward pass; no effect on results.
            notes: Gets what a reader of the scores should know.

        Raises:
            MimError: There are no labelled test samples, or none can be read.
        """
        raise NotImplementedError


def entry(sample: Sample, name: str, *shape: int) -> Tensor:
    """An int64 entry [B, *shape] of a sample. On the meta device, where operations are counted, no data is read, and
    zeros stand for it.

    Raises:
        ValueError: The sample has none.
    """
    if name in sample:
        return sample[name]
    first = next(iter(sample.values()))
    if first.is_meta:
        return torch.zeros(first.shape[0], *shape, dtype=torch.int64, device=first.device)
    raise ValueError(f"the sample has no {name!r} to learn from; it has {', '.join(sample)}")


# ---- classes ---------------------------------------------------------------------------------------------------------

Pool = Literal["mean", "max", "prefix", "mean-max", "prefix-max"]


class Classifier(Supervised):
    """One class per sample: encode all units, pool, and a head.

    ``head`` "mlp" with ``pool`` "prefix-max" is Point-MAE's for classification (arXiv 2203.06604, section 4.2 and its
    code): two hidden layers of 256, each with batch normalisation, ReLU and dropout, on the class token beside the
    largest values of all tokens.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the classifier."""

        init: Path | None = None
        """Checkpoint that the weights of tokenizer and encoder are taken from; none: as drawn. finetune fills it in."""
        classes: int = 0
        """Number of classes; 0 takes the data's."""
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

        def __post_init__(self) -> None:
            if not 0 <= self.dropout < 1 or not 0 <= self.label_smoothing < 1:
                raise MimError("method: dropout and label_smoothing must lie in [0, 1).")
            if self.classes < 0 or any(width < 1 for width in self.hidden):
                raise MimError("method: classes must not be negative, and hidden widths must be at least 1.")

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
        self.config, self.classes = config, config.classes
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
        """With the number of classes of the data."""
        return options if options.classes else replace(options, classes=len(source.labelled("train").classes))

    def check(self, source: DataSource) -> None:
        """Refuses data with another number of classes."""
        found = source.labelled("train").classes
        if len(found) != self.classes:
            raise MimError(
                f"The method is for {self.classes} classes (--method.classes); the data has {len(found)}: "
                f"{', '.join(found[:8])}{', ...' if len(found) > 8 else ''}."
            )

    def forward(self, prepared: Taught) -> Outcome:
        """The cross-entropy, the mean over the batch; predictions "class" are logits [B, classes]."""
        encoded = self.encoded(prepared)
        logits = self.head(self._pooled(encoded))
        loss = F.cross_entropy(logits.float(), prepared.answers, label_smoothing=self.config.label_smoothing)
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


# ---- weights and data ------------------------------------------------------------------------------------------------


def take_encoder(method: Supervised, other: Method, path: Path) -> list[str]:
    """Copies tokenizer and encoder of another method into this one, by name and strictly; learned tokens that only one
    of them has, such as a class token, are left as they are.

    Returns:
        What was left, in words, for the screen.

    Raises:
        MimError: A weight is missing, not wanted, or of another shape; names it.
    """
    own, theirs = ({n: v for n, v in m.state_dict().items() if _is_kept(n)} for m in (method, other))
    resized = positions_at(method, other, own, theirs)
    theirs.update(resized)
    faults = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(value.shape)} here"
        for name, value in own.items()
        if name in theirs and theirs[name].shape != value.shape
    ]
    added = [name for name in own if name not in theirs]
    dropped = [name for name in theirs if name not in own]
    faults += [f"{name} is not there" for name in added if not _is_token(own[name])]
    faults += [f"{name} is not wanted here" for name in dropped if not _is_token(theirs[name])]
    if faults:
        more = f"\n  ... and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise MimError(
            f"The weights of {path} do not fit:\n  " + "\n  ".join(faults[:8]) + more + "\nTokenizer and encoder must "
            "have the sizes that they were pre-trained with."
        )
    method.load_state_dict({name: value for name, value in theirs.items() if name in own}, strict=False)
    said = [f"new, and trained from its drawn values: {', '.join(added)}"] if added else []
    said += [f"interpolated to the grid of this input size: {', '.join(resized)}"] if resized else []
    return said + ([f"in {path} and not used: {', '.join(dropped)}"] if dropped else [])


def _is_kept(name: str) -> bool:
    return name.startswith(("tokenizer.", "encoder."))


def _is_token(value: Tensor) -> bool:
    """A learned token [1, 1, D]: every axis but the last has length 1, as `Method.parameter_groups` has it."""
    return value.ndim > 2 and value.numel() == value.shape[-1]
