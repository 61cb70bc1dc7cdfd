"""Methods that are trained on labels: full fine-tuning of a pre-trained encoder, in the same loop as pre-training.

`Supervised` is what such methods share: nothing is hidden, the answers come with the sample, and a test split judges
them. `Classifier` puts a head on pooled tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mim_core.data.labelled import LabelledSource
from mim_core.data.loading import Readable, loader
from mim_core.data.source import DataSource, Labelled, Picture, Sample
from mim_core.methods.method import Features, Method, encode_all
from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Layout, tensor_tree
from mim_core.parts.mask import Mask
from mim_core.parts.tokenizer import Tokenizer
from mim_core.scores import Score, Table


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

    Attributes:
        tables: What the last `test` found beside its scores, by name, such as "classes" and "confusion": each is
            written beside the scores, as NAME.csv and NAME.json.
    """

    beside: tuple[str, ...] = ()
    """Entries of the sample, int64 [B], that `forward` is handed as they are."""
    train_options: ClassVar[Mapping[str, Any]] = {}
    """Training options in which this method departs from what `finetune` starts from."""
    learns_from: ClassVar[str] = ""
    """The data source that has its answers, where most have none: `finetune` takes it in the place of the run's, with
    the options that both have, but for the root."""
    replaces: tuple[str, ...] = ()
    """Starts of the names of weights of pre-training that the method does without, because its head has its own."""
    lacks_units: bool = False
    """Samples may lack some of their units: `encoded` has zeros there, which the head knows or may see."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder) -> None:
        super().__init__()
        self.tokenizer, self.encoder = tokenizer, encoder
        self.tables: dict[str, Table] = {}

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """The options with what only the data knows, such as the number of classes; ``options`` have
        ``init`` (Path | None), where the encoder's weights are from.

        Raises:
            MimError: The data has no labels.
        """
        raise NotImplementedError

    def training_source(self, source: DataSource) -> DataSource:
        """The labelled training split."""
        return LabelledSource(source)

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
            ValueError: A mask is given, or the sample lacks answers, or units that it needs.
        """
        if mask is not None:
            raise ValueError("a method that is trained on labels hides nothing; leave the mask out")
        patches = self.tokenizer.split(sample)
        first = next(iter(sample.values()))
        hidden = Mask.nothing_hidden(first.shape[0], patches.layout, first.device)
        hidden = replace(hidden, kept_valid=self._valid_units(patches.layout))
        return Taught(
            patches.values,
            patches.layout,
            hidden,
            self.answers(sample),
            {name: entry(sample, name) for name in self.beside},
        )

    def _valid_units(self, layout: Layout) -> Bool[Tensor, "B N"] | None:
        """Which units the samples have; None where they have all.

        Raises:
            ValueError: They lack some and the method needs all, or a sample has none.
        """
        valid = layout.valid
        if valid is None:
            return None
        if not self.lacks_units or not self.encoder.pads:
            raise ValueError(_lacking(layout))
        if not torch.compiler.is_compiling() and not valid.is_meta and not bool(valid.any(dim=1).all()):
            raise ValueError("a sample has none of its units")
        return valid

    def encoded(self, prepared: Taught) -> Encoded:
        """Tokens of all units, zeros where a sample lacks one."""
        encoded: Encoded = self.encoder(self.tokenizer.embed(prepared.inputs), prepared.layout, prepared.mask)
        valid = prepared.mask.kept_valid
        if valid is None:
            return encoded
        tokens, *levels = (x.masked_fill(~valid[:, :, None], 0.0) for x in (encoded.tokens, *encoded.levels))
        return replace(encoded, tokens=tokens, levels=tuple(levels))

    def encode(self, sample: Sample) -> Features:
        """Features of every unit, as training on labels has made them. Needs no labels."""
        return encode_all(self.tokenizer, self.encoder, sample)

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """The predictions of `forward`, which is given `blank` answers."""
        return dict(self(self.prepare({**self.blank(sample), **sample})).predictions)

    def told(self) -> dict[str, int]:
        """Entries int64 [B] that `predict` must be given beside the modalities -> how many values each has."""
        return {}

    def blank(self, sample: Sample) -> Sample:
        """Entries that stand for answers where none are known: class 0."""
        first = next(iter(sample.values()))
        return {"label": torch.zeros(first.shape[0], dtype=torch.int64, device=first.device)}

    @torch.no_grad()
    def predicted(
        self, source: DataSource, split: Labelled, device: torch.device, batch_size: int
    ) -> Iterator[tuple[Sample, dict[str, Tensor]]]:
        """(batch, predictions), both on the host, over the items of a split that can be read, in their order. A batch
        has the items' ``index`` [b], and the ``sample`` [b] that each is a view of, with its ``label`` [b]."""
        from mim_core.methods.build import working

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
                predictions = self(self.prepare(ready)).predictions
            yield batch, {name: value.float().cpu() for name, value in predictions.items()}

    def right(self, batch: Sample, predictions: Mapping[str, Tensor]) -> Float[Tensor, " B"] | None:
        """The share of each sample's answer that is right, of a batch of `predicted`; NaN where nothing can be wrong.
        None: answers have no parts of which some are right."""
        return None

    def compared(self, sample: Sample, predictions: Mapping[str, Tensor], source: DataSource) -> dict[str, Picture]:
        """One sample, as the source's `finish` left it, and its answers beside the right ones, as pictures by what they
        are called; for methods that tell `right`."""
        return {}

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


def _lacking(layout: Layout) -> str:
    """That samples lack units, of which modalities, and what to do."""
    text = "training on labels needs every unit of every modality; samples lack some"
    assert layout.valid is not None
    spans = {name: layout.span(name) for name, _ in layout.segments}
    valid = torch.ones(1, layout.count, dtype=torch.bool) if layout.valid.is_meta else layout.valid
    names = [n for n, (first, part) in spans.items() if not bool(valid[:, first : first + part.count].all())]
    if not names:
        return text
    ways = " ".join(f"--use {name}.tokenizer=none" for name in names)
    return f"{text} of {', '.join(names)}. Train without: {ways}"
