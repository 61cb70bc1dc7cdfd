"""Training an encoder on several labels for each sample: any number of them may hold at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mim_core.data.labelled import LabelledSource
from mim_core.data.many_labels import ManyLabelsSource, read_many_labels
from mim_core.data.source import DataSource, Sample
from mim_core.errors import MimError
from mim_core.methods.class_tables import as_cell
from mim_core.methods.classifier import Classifier
from mim_core.methods.method import Record
from mim_core.methods.supervised import entry
from mim_core.ranking_scores import average_precision
from mim_core.scores import FINE_TUNED, Score, Table
from mim_core.standard_errors import GROUPS, jackknife_error
from mim_core.text import shown

SHARES = "label shares"
"""Row of a table: each label is as probable as it is frequent among the training samples."""


class MultiLabelClassifier(Classifier):
    """A yes or no for each label: encode all units, pool, and a head; binary cross-entropy."""

    config: Any

    @dataclass(frozen=True)
    class Config(Classifier.Config):
        """Options of the classifier."""

        labels_from: Path | None = None
        """Table of labels: a csv or tsv file whose first line names its columns, one of files (and perhaps one of
        splits), and for labels one column of names, such as cat|dog, or a column for each with 1 or 0. None: each
        sample has the class that the data says."""
        columns: tuple[str, ...] = ()
        """Its columns of labels; none: one called label, class or the like, or else every column of 1 and 0."""
        separator: str = ""
        """What stands between the names of one cell; empty: | or ;."""
        threshold: float = 0.5
        """A label is given where its probability is at least this."""
        balance: bool = False
        """Weigh yes and no alike in the loss of each label: a yes counts by the training samples without the label over
        those with it. finetune takes the weights from the data."""
        class_weights: tuple[float, ...] = ()
        """The weight of a yes of each label in the loss; none: those of balance, or 1."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.threshold < 1:
                raise MimError(f"method: threshold must lie in (0, 1), got {self.threshold}.")

    # ---- the data ----------------------------------------------------------------------------------------------------

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With the number and the names of the labels, the whole path of their table, and their weights where yes and
        no are to be weighed alike."""
        if options.labels_from is not None:
            options = replace(options, labels_from=options.labels_from.resolve())
        split = LabelledSource(_source(options, source)).split
        options = replace(options, classes=options.classes or len(split.classes))
        if not options.names and options.classes == len(split.classes):
            options = replace(options, names=tuple(map(shown, split.classes)))
        if not options.balance or options.class_weights or options.classes != len(split.classes):
            return options
        positives = split.labels.sum(dim=0)
        weights = ((len(split.labels) - positives) / positives.clamp(min=1)).tolist()
        return replace(options, class_weights=tuple(round(weight, 6) for weight in weights))

    def check(self, source: DataSource) -> None:
        """Refuses data with other labels."""
        super().check(_source(self.config, source))

    def training_source(self, source: DataSource) -> DataSource:
        """The labelled training split, each item as often as ``repeats`` says."""
        return LabelledSource(_source(self.config, source), self.config.repeats)

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def answers(self, sample: Sample) -> Int[Tensor, "B K"]:
        """1 for each label that a sample has."""
        return entry(sample, "label", self.classes)

    def blank(self, sample: Sample) -> Sample:
        """No label."""
        first = next(iter(sample.values()))
        return {"label": torch.zeros(first.shape[0], self.classes, dtype=torch.int64, device=first.device)}

    def shares_mixed(self, label: Int[Tensor, "B K"], left: float) -> Float[Tensor, "B K"]:
        """The same shares of both samples' labels."""
        own = label.float()
        return own * left + own.flip(0) * (1.0 - left)

    def losses(self, logits: Float[Tensor, "B K"], answers: Tensor) -> Float[Tensor, " B"]:
        """Binary cross-entropy, the mean over the labels. Smoothing takes its share to one half."""
        wanted = answers.to(logits.dtype)
        wanted = wanted * (1 - self.config.label_smoothing) + self.config.label_smoothing / 2
        weight = None if self.weights is None else self.weights
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none").mean(dim=1)

    # ---- answers -----------------------------------------------------------------------------------------------------

    def probabilities(self, logits: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """Of each label, on its own."""
        return logits.double().sigmoid()

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """The labels that are given, with | between, and the probability of every one under its name."""
        shares, names = answers["class"], self.label_names()
        given = "|".join(n for n, share in zip(names, shares, strict=True) if float(share) >= self.config.threshold)
        each = {f"p({name})": round(float(share), 6) for name, share in zip(names, shares, strict=True)}
        return Record({"labels": given, **each})

    def wrong(self, shares: Float[Tensor, "n K"], labels: Int[Tensor, "n K"]) -> list[tuple[int, str, str, float]]:
        """The samples with a wrong label, the surest first: (number, its labels, the wrong one, how sure)."""
        names, predicted = self.label_names(), shares >= self.config.threshold
        off = predicted != labels.bool()
        sure = torch.where(predicted, shares, 1 - shares).masked_fill(~off, -1.0)
        best, which = sure.max(dim=1)
        rows = []
        for number in best.argsort(descending=True, stable=True).tolist():
            if best[number] < 0:
                break
            label = int(which[number])
            truth = ", ".join(n for n, flag in zip(names, labels[number].tolist(), strict=True) if flag) or "none"
            mistake = names[label] if bool(predicted[number, label]) else f"not {names[label]}"
            rows.append((number, truth, mistake, float(best[number])))
        return rows

    # ---- the test ----------------------------------------------------------------------------------------------------

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """Mean average precision, and F1 of all answers together (micro) and as the mean over the labels (macro);
        beside each label's share of the training samples as its probability.

        Raises:
            MimError: No label is both there and absent among the test samples.
        """
        train, test = source.labelled("train"), source.labelled("test")
        shares, read = self.test_shares(source, test, device, batch_size)
        labels, names = test.labels[read], self.label_names()
        known = label_shares(train.labels).expand_as(shares)
        usable = int(_both_kinds(labels).sum())
        if not usable:
            raise MimError("No label is both there and absent among the test samples, so that nothing can be judged.")
        self.tables = {"classes": label_table(shares, labels, names, self.config.threshold)}
        if notes is not None:
            notes.append(
                f"{len(train.labels):,} labelled training samples, {len(labels):,} test samples, {self.classes} labels."
            )
            lost = len(test.labels) - len(labels)
            notes += [f"{lost:,} test files cannot be used and are left out."] if lost else []
            if usable < self.classes:
                notes.append(f"mAP and macro F1 are of the {usable} labels that are both there and absent in the test.")
            notes.append(
                f"A label is given from a probability of {self.config.threshold:g} on. In brackets: standard errors "
                f"over the test samples, by the jackknife with {GROUPS} groups."
            )
        rows = {SHARES: known, FINE_TUNED: shares}
        return [score for row, each in rows.items() for score in label_scores(row, each, labels, self.config.threshold)]


def _source(options: Any, source: DataSource) -> ManyLabelsSource:
    table = None
    if options.labels_from is not None:
        table = read_many_labels(options.labels_from, options.columns, options.separator)
    elif options.columns or options.separator:
        raise MimError("method: columns and separator are of a table; name it with --method.labels-from.")
    return ManyLabelsSource(source, table)


def label_shares(labels: Int[Tensor, "n K"]) -> Float[Tensor, " K"]:
    """How frequent each label is."""
    return labels.double().mean(dim=0)


def label_scores(row: str, shares: Float[Tensor, "n K"], labels: Int[Tensor, "n K"], threshold: float) -> list[Score]:
    """mAP, micro F1 and macro F1 with their standard errors; mAP and macro F1 are over the labels that some samples
    have and others have not."""
    right, predicted, usable = labels.bool(), shares >= threshold, _both_kinds(labels)

    def mean_precision(kept: Bool[Tensor, " n"]) -> float:
        each = [average_precision(shares[kept, k], right[kept, k]) for k in usable.nonzero()[:, 0].tolist()]
        return sum(each) / len(each)

    measures = {
        "mAP": mean_precision,
        "micro F1": lambda kept: float(f1(predicted[kept].flatten(), right[kept].flatten())),
        "macro F1": lambda kept: float(f1(predicted[kept][:, usable].T, right[kept][:, usable].T).mean()),
    }
    count = len(labels)
    every = torch.ones(count, dtype=torch.bool)
    return [Score(row, name, one(every), error=jackknife_error(one, count)) for name, one in measures.items()]


def f1(predicted: Bool[Tensor, "... n"], right: Bool[Tensor, "... n"]) -> Float[Tensor, ...]:
    """2 hits / (given + there); 0 where neither is any."""
    both = (predicted.sum(dim=-1) + right.sum(dim=-1)).double()
    return 2 * (predicted & right).sum(dim=-1).double() / both.clamp(min=1)


def label_table(
    shares: Float[Tensor, "n K"], labels: Int[Tensor, "n K"], names: tuple[str, ...], threshold: float
) -> Table:
    """Of each label: the test samples that have it, average precision, precision, recall and F1."""
    right, predicted, rows = labels.bool(), shares >= threshold, []
    usable = _both_kinds(labels)
    for number, name in enumerate(names):
        support, given = int(right[:, number].sum()), int(predicted[:, number].sum())
        hits = int((right[:, number] & predicted[:, number]).sum())
        value = average_precision(shares[:, number], right[:, number]) if usable[number] else None
        cells = (value, hits / given if given else None, hits / support if support else None)
        rows.append((name, support, *map(as_cell, cells), as_cell(float(f1(predicted[:, number], right[:, number])))))
    return Table(("label", "samples", "average precision", "precision", "recall", "F1"), tuple(rows))


def _both_kinds(labels: Int[Tensor, "n K"]) -> Bool[Tensor, " K"]:
    """Labels that some samples have and others have not."""
    positives = labels.bool().sum(dim=0)
    return (positives > 0) & (positives < len(labels))
