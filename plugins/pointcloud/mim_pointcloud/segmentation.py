"""Part segmentation: a part for every point, from three levels of the encoder (Point-MAE, arXiv 2203.06604, section 4.2
and its supplement)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from mim_core import (
    FINE_TUNED,
    BatchNorm,
    DataSource,
    Encoder,
    Labelled,
    Mask,
    MimError,
    Outcome,
    Picture,
    Readable,
    Record,
    Sample,
    Score,
    Supervised,
    Table,
    Taught,
    Tokenizer,
    confusion,
    entry,
    init_transformer,
    standard_errors,
)
from torch import Tensor, nn
from torch.nn import functional as F

from mim_pointcloud import geometry, metrics
from mim_pointcloud.layouts_store import shown
from mim_pointcloud.pictures import Axis, cloud_picture
from mim_pointcloud.written import colour_of, ply

if TYPE_CHECKING:
    from mim_core import Parts

    from mim_pointcloud.looking import Looks

MAJORITY = "majority part"
"""Row of the scores: for every point the most frequent part of its category."""
GREY, RED = (0.78, 0.78, 0.78), (0.85, 0.15, 0.12)
"""Of points that are right, and wrong."""
SHAPES_AT_ONCE = 32
"""Most shapes per forward pass of a test: every point of one has thousands of features."""


class PartSegmenter(Supervised):
    """A part of its shape's category for every point.

    The outputs of three blocks, each through the encoder's last norm, are put side by side at the centres of the
    groups. From there they are interpolated to all points and pass an MLP; beside them stand their largest and mean
    values over the shape and an embedding of the shape's category, which is given. The parts of that category alone
    compete in a test.
    """

    beside: tuple[str, ...] = ("label",)
    train_options: ClassVar[Mapping[str, Any]] = {"base_lr": 2e-4, "batch_size": 16, "lr_batch": 16}

    @dataclass(frozen=True)
    class Config:
        """Options of the part segmenter."""

        init: Path | None = None
        """Checkpoint that the weights of tokenizer and encoder are taken from; none: as drawn. finetune fills it in."""
        owners: tuple[int, ...] = ()
        """For every part number the category that it belongs to, -1 for none; nothing takes the data's."""
        names: tuple[str, ...] = ()
        """What the categories are called, in their order; nothing takes the data's."""
        levels: tuple[int, ...] = ()
        """Encoder blocks, from 1, whose outputs are used; nothing: those that end the thirds (4, 8 and 12 of 12)."""
        propagation: tuple[int, ...] = (1536, 1024)
        """Widths of the layers after the interpolation."""
        hidden: tuple[int, ...] = (512, 256)
        """Widths of the layers before the parts."""
        category: int = 64
        """Width of the category's embedding."""
        categories: int = 0
        """Categories that the embedding knows, where they are more than those with parts; 0: just those."""
        dropout: float = 0.5
        """Share of the first hidden layer's values that training leaves out."""

        def __post_init__(self) -> None:
            if not 0 <= self.dropout < 1:
                raise MimError(f"method: dropout must lie in [0, 1), got {self.dropout}.")
            if min((*self.propagation, *self.hidden, self.category)) < 1 or not self.propagation or not self.hidden:
                raise MimError("method: propagation and hidden need at least one width each, and widths at least 1.")

    @classmethod
    def build(cls, config: Any, parts: Parts) -> PartSegmenter:
        """Roles: tokenizer and encoder."""
        tokenizer = parts.tokenizer()
        return cls(tokenizer, parts.encoder(tokenizer), config)

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Config) -> None:
        super().__init__(tokenizer, encoder)
        if len(config.owners) < 2:
            raise ValueError("owners must name the categories of at least 2 parts; finetune takes them from the data")
        if set(config.owners) - {-1} != set(range(max(config.owners) + 1)):
            raise ValueError("owners must number categories from 0, and every category needs a part")
        self.config = config
        self.categories = max(config.categories, max(config.owners) + 1)
        allowed = torch.arange(self.categories)[:, None] == torch.tensor(config.owners)
        self.register_buffer("allowed", allowed, persistent=False)  # bool [categories, parts]
        self.levels = config.levels or thirds(encoder)
        encoder.give_levels(self.levels)
        if self.levels[-1] != thirds(encoder)[-1]:
            raise ValueError(f"levels end at block {self.levels[-1]}: the blocks after it would not learn")
        width = encoder.width * len(self.levels)
        self.category = nn.Sequential(
            nn.Linear(self.categories, config.category, bias=False), BatchNorm(config.category), nn.LeakyReLU(0.2)
        )
        self.propagation = _layers(width + 3, config.propagation)
        given = config.propagation[-1] + 2 * width + config.category
        layers = list(_layers(given, config.hidden))
        layers.insert(3, nn.Dropout(config.dropout))
        self.head = nn.Sequential(*layers, nn.Linear(config.hidden[-1], len(config.owners)))
        for part in (self.category, self.propagation, self.head):
            init_transformer(part)

    # ---- the data ----------------------------------------------------------------------------------------------------

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With the parts and the names of the data's categories."""
        if options.owners:
            return options
        return replace(options, owners=owners_of(source), names=tuple(map(shown, source.labelled("train").classes)))

    def check(self, source: DataSource) -> None:
        """Refuses data with other parts.

        Raises:
            MimError: The data has other parts, or numbers them in another way.
        """
        owners = owners_of(source)
        if owners != self.config.owners:
            raise MimError(
                f"The method is for {len(self.config.owners)} parts of {self.categories} categories (--method.owners); "
                f"the data has {len(owners)} of {max(owners) + 1}, or numbers them in another way."
            )

    def answers(self, sample: Sample) -> Tensor:
        """The parts of all points, int64 [B, P]."""
        return entry(sample, "parts", sample["points"].shape[1])

    @torch.no_grad()
    def prepare(
        self,
        sample: Sample,
        mask: Mask | Tensor | Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> Taught:
        """Splits, takes the answers, and finds the centres from which each point's features are interpolated.

        Raises:
            ValueError: A mask is given, or the sample has no ``parts`` [B, P] or ``label`` [B].
        """
        prepared = super().prepare(sample, mask, step=step, progress=progress)
        centres, places = prepared.layout.positions, sample["points"][..., :3].float()
        if centres is None:
            raise ValueError("part segmentation needs units that lie somewhere, as groups of points do")
        near, share = interpolation(places, centres)
        return replace(prepared, beside={**prepared.beside, "places": places, "near": near, "share": share})

    # ---- the network -------------------------------------------------------------------------------------------------

    def forward(self, prepared: Taught) -> Outcome:
        """The cross-entropy, the mean over all points; predictions "part" are logits [B, P, parts]."""
        encoded, beside = self.encoded(prepared), prepared.beside
        centres = torch.cat(encoded.levels, dim=2)
        known = F.one_hot(beside["label"], self.categories).to(centres.dtype)
        whole = torch.cat([centres.amax(dim=1), centres.mean(dim=1), self.category(known)], dim=1)
        spread = (geometry.gather(centres, beside["near"]) * beside["share"][..., None]).sum(dim=2)
        rows, points = spread.shape[:2]
        own = self.propagation(torch.cat([beside["places"], spread], dim=2).flatten(0, 1)).unflatten(0, (rows, points))
        each = torch.cat([own, whole[:, None].expand(-1, points, -1).to(own.dtype)], dim=2)
        logits = self.head(each.flatten(0, 1))
        loss = F.cross_entropy(logits.float(), prepared.answers.flatten())
        latent = torch.cat([encoded.prefix, encoded.tokens], dim=1)
        return Outcome(loss, {"part": loss}, {"part": logits.unflatten(0, (rows, points))}, latent)

    # ---- shapes without labels ---------------------------------------------------------------------------------------

    def blank(self, sample: Sample) -> Sample:
        """A shape's first category, and its first part at every point."""
        points = sample["points"]
        return {
            **super().blank(sample),
            "parts": torch.zeros(points.shape[:2], dtype=torch.int64, device=points.device),
        }

    def told(self) -> dict[str, int]:
        """The category of each shape, where there are several."""
        return {"label": self.categories} if self.categories > 1 else {}

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """Probabilities "part" [B, P, parts], among the parts of the shape's category, and the "points" [B, P, 3].

        Raises:
            MimError: There are several categories, and the sample has no ``label``.
        """
        if "label" not in sample and self.categories > 1:
            known = ", ".join(self.config.names) or f"0 to {self.categories - 1}"
            raise MimError(f"Of which category are these shapes? The method is told: --label NAME, of: {known}.")
        sample = {**self.blank(sample), **sample}
        allowed: Tensor = self.allowed[sample["label"]][:, None]  # type: ignore[index]
        logits = super().predict(sample)["part"].float().masked_fill(~allowed, -torch.inf)
        return {"part": logits.softmax(dim=2), "points": sample["points"][..., :3]}

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """How many points each part has; and the points as the method saw them, in the unit sphere, as a PLY file in
        colours."""
        parts = answers["part"].argmax(dim=1)
        numbers, counts = parts.unique(return_counts=True)
        row = {f"part {number}": int(count) for number, count in zip(numbers.tolist(), counts, strict=True)}
        return Record({"points": len(parts), **row}, {".ply": ply(answers["points"], parts)})

    # ---- the test ----------------------------------------------------------------------------------------------------

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """Instance mIoU (mean over shapes), class mIoU (over categories) and the share of points that are right, beside
        the most frequent part of each category among the training shapes.

        Raises:
            MimError: No test shape can be read.
        """
        train, test = source.labelled("train"), source.labelled("test")
        allowed: Bool[Tensor, "K parts"] = self.allowed.cpu()  # type: ignore[assignment]
        frequent = self._frequent(train)
        collected: dict[str, list[Tensor]] = {FINE_TUNED: [], MAJORITY: [], "right": [], "label": []}
        for batch, predictions in self.predicted(source, test, device, min(batch_size, SHAPES_AT_ONCE)):
            label = batch["label"]
            collected[FINE_TUNED].append(self._parts(predictions["part"], label))
            collected[MAJORITY].append(frequent[label][:, None].expand_as(batch["parts"]))
            collected["right"].append(batch["parts"])
            collected["label"].append(label)
        if not collected["label"]:
            raise MimError(f"None of the {len(test.labels):,} labelled test shapes can be read.")
        right, label = torch.cat(collected["right"]), torch.cat(collected["label"])
        rows = {row: torch.cat(collected[row]) for row in (MAJORITY, FINE_TUNED)}
        scores = [score for row, parts in rows.items() for score in _scores(row, parts, right, label, allowed)]
        self.tables = {
            "classes": self._table(rows[FINE_TUNED], right, label, allowed),
            "confusion": confusion(rows[FINE_TUNED].flatten(), right.flatten(), self.part_names()),
        }
        if notes is not None:
            notes.append(
                f"{len(train.labels):,} training shapes, {len(label):,} test shapes, {self.categories} categories, "
                f"{len(self.config.owners)} parts. A shape's category is given; a part that is neither there nor "
                "said to be there counts as right. In brackets: standard errors over the shapes."
            )
            lost = len(test.labels) - len(label)
            notes += [f"{lost:,} test files cannot be used and are left out."] if lost else []
        return scores

    def part_names(self) -> tuple[str, ...]:
        """Each part's category and number; the number alone of one that is not in use."""
        names = self.config.names or tuple(map(str, range(self.categories)))
        return tuple(f"{names[own]} {part}" if own >= 0 else str(part) for part, own in enumerate(self.config.owners))

    def right(self, batch: Sample, predictions: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
        """The share of the points that got their part."""
        return (self._parts(predictions["part"], batch["label"]) == batch["parts"]).double().mean(dim=1)

    def compared(self, sample: Sample, predictions: Mapping[str, Tensor], source: DataSource) -> dict[str, Picture]:
        """The right parts and those of the answer in colours, and in red the points that got another part."""
        points, right = sample["points"][:, :3], sample["parts"]
        predicted = self._parts(predictions["part"][None], sample["label"][None])[0]
        rows = {"truth": part_colours(right), "answer": part_colours(predicted)}
        rows["wrong"] = torch.where((predicted == right)[:, None], torch.tensor(GREY), torch.tensor(RED))
        up: Axis = getattr(source, "up", "y")
        return {
            name: cloud_picture(torch.cat([points.float().cpu(), colours], dim=1), rgb=3, up=up)
            for name, colours in rows.items()
        }

    def _parts(self, logits: Float[Tensor, "B P parts"], label: Int64[Tensor, " B"]) -> Int64[Tensor, "B P"]:
        """The most probable part of each point among those of its shape's category."""
        allowed: Bool[Tensor, "K parts"] = self.allowed.cpu()  # type: ignore[assignment]
        return logits.masked_fill(~allowed[label][:, None], -torch.inf).argmax(dim=2)

    def _table(self, predicted: Tensor, right: Tensor, label: Tensor, allowed: Tensor) -> Table:
        """The shapes, and their mean IoU with its standard error, of each category."""
        shapes = metrics.shape_iou(predicted, right, label, _parts_of(allowed))
        names = self.config.names or tuple(map(str, range(self.categories)))
        rows = []
        for number in label.unique().tolist():
            own = shapes[label == number]
            error = standard_errors.mean_error(own)
            shown_error = "" if error is None else round(error, 6)
            rows.append((names[number], len(own), round(float(own.mean()), 6), shown_error))
        return Table(("category", "shapes", "mIoU", "standard error"), tuple(rows))

    def _frequent(self, train: Labelled, shapes: int = 50) -> Int64[Tensor, " K"]:
        """The most frequent part of each category, over its first ``shapes`` training shapes."""
        items, frequent = Readable(train.items), []
        for category in range(self.categories):
            first = (train.labels == category).nonzero().flatten()[:shapes].tolist()
            parts = [item["parts"].flatten() for index in first if (item := items[index]) is not None]
            own = self.allowed[category].nonzero().flatten().cpu()  # type: ignore[index]
            counts = torch.cat(parts or [own]).bincount(minlength=len(self.config.owners))
            frequent.append(own[counts[own].argmax()])
        return torch.stack(frequent)


def part_colours(parts: Int64[Tensor, " P"]) -> Float[Tensor, "P 3"]:
    """The colour of each point's part, from 0 to 1."""
    return torch.tensor([colour_of(part) for part in parts.tolist()]).float() / 255


def thirds(encoder: Encoder) -> tuple[int, ...]:
    """The numbers, from 1, of the blocks that end the thirds of an encoder: 4, 8 and 12 of 12; fewer than three blocks
    are all taken.

    Raises:
        ValueError: The encoder has no blocks.
    """
    blocks = getattr(encoder, "blocks", None)
    depth = 0 if blocks is None else len(blocks)
    if depth == 0:
        raise ValueError("part segmentation takes features after blocks, and this encoder has none")
    return tuple(sorted({max(1, round(depth * third / 3)) for third in (1, 2, 3)}))


def owners_of(source: DataSource) -> tuple[int, ...]:
    """The category of every part number of a data source, whose ``parts`` maps category names to part numbers; -1 for
    a number that is not in use.

    Raises:
        MimError: It has no parts, or a category has none.
    """
    parts: Mapping[str, tuple[int, ...]] = getattr(source, "parts", {})
    if not parts:
        looks: Looks | None = getattr(source, "looks", None)
        column = looks is not None and any("part" in map(str.lower, one.unread) for one in looks.found)
        beside = (
            " Its files have a column named part, which is read in the layout of ShapeNetPart alone." if column else ""
        )
        raise MimError(
            f"This data has no part for every point to learn from.{beside} ShapeNetPart has, and own shapes laid out "
            "like it: --data.layout shapenetpart --data.root FOLDER, where FOLDER has synsetoffset2category.txt (lines "
            "CATEGORY FOLDER), CATEGORY/SHAPE.txt (lines x y z part) and train_test_split/"
            "shuffled_train_file_list.json, and the same for val and test (lists of shape_data/CATEGORY/SHAPE); an "
            "example is in the README of mim-pointcloud."
        )
    names = source.labelled("train").classes
    lacking = [name for name in names if not parts.get(name)]
    if lacking:
        raise MimError(f"The data says of no part that it belongs to: {', '.join(lacking)}.")
    owner = {part: number for number, name in enumerate(names) for part in parts[name]}
    if len(owner) < 2:
        raise MimError(f"All points of the training files have the same part, {min(owner)}: there is nothing to learn.")
    return tuple(owner.get(part, -1) for part in range(max(owner) + 1))


def interpolation(
    points: Float[Tensor, "B P 3"], centres: Float[Tensor, "B G 3"], count: int = 3
) -> tuple[Int64[Tensor, "B P k"], Float[Tensor, "B P k"]]:
    """The nearest centres of every point, and their shares: inverse squared distances, which sum to one (PointNet++,
    arXiv 1706.02413, equation 2). At a centre itself, it alone counts."""
    squared, near = geometry.nearest(points, centres, min(count, centres.shape[1]))
    weight = 1 / (squared * 1e8 + 1)  # of 1 / (squared + 1e-8) ONNX's optimizer takes the 1e-8 for 0
    return near, weight / weight.sum(dim=2, keepdim=True)


def _layers(given: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Rows [n, given] through linear layers, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(given, width), BatchNorm(width), nn.ReLU()]
        given = width
    return nn.Sequential(*layers)


def _scores(
    row: str,
    predicted: Int64[Tensor, "n P"],
    right: Int64[Tensor, "n P"],
    label: Int64[Tensor, " n"],
    allowed: Bool[Tensor, "K parts"],
) -> list[Score]:
    parts = _parts_of(allowed)
    each, instance, _ = metrics.part_iou(predicted, right, label, parts)
    shapes = metrics.shape_iou(predicted, right, label, parts)
    points = (predicted == right).double().mean(dim=1)
    return [
        Score(row, "instance mIoU", instance, error=standard_errors.mean_error(shapes)),
        Score(row, "class mIoU", each, error=standard_errors.class_mean_error(shapes, label)),
        Score(row, "points", float((predicted == right).float().mean()), error=standard_errors.mean_error(points)),
    ]


def _parts_of(allowed: Bool[Tensor, "K parts"]) -> dict[int, tuple[int, ...]]:
    """The parts of each category."""
    return {number: tuple(own.nonzero().flatten().tolist()) for number, own in enumerate(allowed)}
