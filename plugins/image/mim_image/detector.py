"""Fine-tuning for objects: boxes, classes and masks, on ViTDet's pyramid (arXiv 2203.16527)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from mim_core import (
    FINE_TUNED,
    DataSource,
    Encoder,
    Mask,
    MimError,
    Outcome,
    Parts,
    Record,
    Sample,
    Score,
    SimplePyramid,
    Supervised,
    Table,
    Taught,
    Tokenizer,
    counted,
)
from torch import Tensor

from mim_image.boxes import NOTHING, coco_masks, unpacked
from mim_image.coco_data import BoxSource, CocoImages
from mim_image.coco_files import Instances
from mim_image.detection_scores import coco_scores
from mim_image.detections import Detection, as_json, commonest_box, in_picture, results
from mim_image.detector_heads import MASK, Found, HeadKind, HeadSizes, make_heads

STEPS_OF_TEST = 8
"""Most pictures per forward pass of a test."""
MEAN_BOX, UNTRAINED = "mean box", "untrained detector"
"""Rows that stand beside a detector's."""
SURE = 0.5
"""Score from which an object is counted in a row of a table."""
COLUMNS: Mapping[Literal["bbox", "segm"], str] = {"bbox": "", "segm": "mask "}
"""What is judged -> how its columns begin."""


class Detector(Supervised):
    """Boxes and classes of objects, and their masks: torchvision's Mask R-CNN, Faster R-CNN or RetinaNet on ViTDet's
    simple feature pyramid over a plain encoder.

    The encoder's own norm stays in front of the pyramid, attention is global in all blocks and positions are the
    encoder's: ViTDet has windows, and relative positions. What is random in the data is done in `prepare`; heads work
    in float32.

    `forward` keeps law 3 in its first half alone. The pyramid has static shapes, and that half is what
    --train.compile compiles. Proposals follow from the weights, and torchvision draws those that the loss is taken
    over from the generator that the loop seeds at every step: so a run resumes to the bit, and neither an exported
    program nor one compiled graph can be made of the whole. Losses of mask-rcnn and faster-rcnn are means over the
    regions of a micro-batch; micro-batches and ranks count alike, however many regions each has.
    """

    learns_from: ClassVar[str] = "image:coco"
    train_options: ClassVar[Mapping[str, Any]] = {
        "base_lr": 1e-4,
        "batch_size": 16,
        "lr_batch": 16,
        "weight_decay": 0.1,
        "epochs": 50.0,
        "warmup_epochs": 0.5,
    }

    @dataclass(frozen=True)
    class Config:
        """Options of the detector."""

        init: Path | None = None
        """Checkpoint that the weights of tokenizer and encoder are taken from; none: as drawn. finetune fills it in."""
        head: HeadKind = "mask-rcnn"
        """mask-rcnn: boxes and masks; faster-rcnn: boxes alone; retinanet: boxes alone, without proposals."""
        classes: int = 0
        """Number of classes; 0 takes the data's categories."""
        names: tuple[str, ...] = ()
        """What the classes are called, in their order; none takes the data's."""
        ids: tuple[int, ...] = ()
        """Ids of their categories, which answers have; none takes the data's."""
        channels: int = 256
        """Channels of the pyramid's levels and of the heads."""
        hidden: int = 1024
        """Width of the layer that tells the class of a region."""
        convolutions: int = 4
        """Convolutions of a region's head, and of a mask's."""
        regions: int = 512
        """Regions of a picture that the loss is taken over."""
        proposals: int = 1000
        """Proposals of a picture that are kept."""
        least_score: float = 0.05
        """Smallest score of a detection."""
        detections: int = 100
        """Most detections of a picture; COCO counts 100."""

        def __post_init__(self) -> None:
            sizes = (self.channels, self.hidden, self.regions, self.proposals, self.detections)
            if min(sizes) < 1 or self.convolutions < 0 or self.classes < 0 or not 0 <= self.least_score < 1:
                raise MimError(
                    "method: channels, hidden, regions, proposals and detections must be at least 1, convolutions and "
                    "classes not negative, and least_score in [0, 1)."
                )
            if (self.names and len(self.names) != self.classes) or (self.ids and len(self.ids) != self.classes):
                raise MimError(
                    f"method: names are {len(self.names)} and ids {len(self.ids)}, for {self.classes} classes."
                )

    @classmethod
    def build(cls, config: Any, parts: Parts) -> Detector:
        """Roles: tokenizer and encoder."""
        tokenizer = parts.tokenizer()
        return cls(tokenizer, parts.encoder(tokenizer), config)

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Config) -> None:
        super().__init__(tokenizer, encoder)
        if config.classes < 1:
            raise ValueError("classes must be at least 1; finetune takes their number from the data's categories")
        self.config, self.classes = config, config.classes
        self.size, self.grid, patch = _places(tokenizer)
        sizes = HeadSizes(
            config.channels,
            config.hidden,
            config.convolutions,
            config.regions,
            config.proposals,
            config.least_score,
            config.detections,
        )
        self.head = make_heads(config.head, config.classes, self.size, patch, sizes)
        self.pyramid = SimplePyramid(encoder.width, config.channels, self.head.finest)
        self.ids = config.ids or tuple(range(1, config.classes + 1))
        self.names = config.names or tuple(map(str, self.ids))

    # ---- data --------------------------------------------------------------------------------------------------------

    @property
    def masks(self) -> bool:
        """Whether masks are learned."""
        return self.config.head == "mask-rcnn"

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With the data's categories."""
        coco_masks()
        categories = BoxSource(source, options.head == "mask-rcnn").inner.categories
        options = replace(options, classes=options.classes or len(categories))
        if options.classes != len(categories):
            return options  # `check` refuses it
        return replace(options, names=options.names or tuple(categories.values()), ids=options.ids or tuple(categories))

    def check(self, source: DataSource) -> None:
        """Refuses data with other categories.

        Raises:
            MimError: The categories have other names or ids.
        """
        if not isinstance(source, CocoImages) or source.coco is None:
            return
        categories = source.categories
        if tuple(categories) != self.ids or (self.config.names and tuple(categories.values()) != self.names):
            own, theirs = (", ".join(list(names)[:8]) for names in (self.names, categories.values()))
            raise MimError(f"The method's categories are {own}; the data's are {theirs}, or have other ids.")

    def training_source(self, source: DataSource) -> DataSource:
        """Pictures with boxes."""
        return BoxSource(source, self.masks)

    # ---- the two halves ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(
        self,
        sample: Sample,
        mask: Mask | Tensor | Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> Taught:
        """Splits the picture, with nothing hidden.

        Args:
            sample: The batch, with "boxes" float32 [B, n, 4], "classes" int64 [B, n], `NOTHING` in rows without an
                object, and "masks", see `mim_image.boxes.Objects.padded`; in evaluation mode it may lack them.
            mask: Must be None.
            step: Not used.
            progress: Not used.

        Raises:
            ValueError: A mask is given, or what is to be learned is missing.
        """
        prepared = super().prepare({**self._empty(sample), **sample}, mask, step=step, progress=progress)
        names = ("classes", "masks") if self.masks and prepared.answers.shape[1] else ("classes",)
        given = {**self._empty(sample), **sample}
        lacking = [name for name in names if name not in given]
        if lacking:
            raise ValueError(f"the sample has no {', no '.join(lacking)} to learn from; it has {', '.join(sample)}")
        return replace(prepared, beside={name: given[name] for name in names})

    def answers(self, sample: Sample) -> Float[Tensor, "B n 4"]:
        """The boxes.

        Raises:
            ValueError: The sample has none.
        """
        if "boxes" not in sample:
            raise ValueError(f"the sample has no boxes to learn from; it has {', '.join(sample)}")
        return sample["boxes"]

    def _empty(self, sample: Sample) -> Sample:
        """No rows of boxes, where none are to be learned from: in evaluation, and where operations are counted."""
        first = next(iter(sample.values()))
        if self.training and not first.is_meta:
            return {}
        boxes = torch.zeros(len(first), 0, 4, device=first.device)
        return {"boxes": boxes, "classes": torch.zeros(len(first), 0, dtype=torch.int64, device=first.device)}

    def blank(self, sample: Sample) -> Sample:
        """No rows of boxes."""
        return {}

    def levels(self, prepared: Taught) -> tuple[dict[str, Tensor], Tensor]:
        """(the pyramid's levels "p2" to "p6", the encoder's output [B, P + N, D]).

        Raises:
            ValueError: The encoder does not give one token of each patch.
        """
        encoded = self.encoded(prepared)
        tokens = encoded.tokens
        if tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"the pyramid needs one token of each of the {self.grid[0]} x {self.grid[1]} patches, and this encoder "
                f"gives {tokens.shape[1]}"
            )
        maps = tokens.transpose(1, 2).unflatten(2, self.grid)
        return self.pyramid(maps), torch.cat([encoded.prefix, tokens], dim=1)

    def forward(self, prepared: Taught) -> Outcome:
        """The sum of the head's losses. In evaluation mode its predictions are "boxes" [B, n, 4], "scores", "classes"
        [B, n] with `NOTHING` where there is none, and "masks" [B, n, 28, 28], all on the picture as it is shown."""
        levels, latent = self.levels(prepared)
        if latent.is_meta:  # operations are counted
            return Outcome(self.head.largest_work(levels), {}, {}, latent)
        with torch.autocast(latent.device.type, enabled=False):  # places have too few digits in bfloat16
            levels = {name: level.float() for name, level in levels.items()}
            taught = self.training or prepared.answers.shape[1] > 0
            losses = self.head.losses(levels, self._targets(prepared)) if taught else {}
            with torch.no_grad():
                predictions = {} if self.training else self._padded(self.head.detections(levels))
        loss = torch.stack([*losses.values()]).sum() if losses else latent.new_zeros((), dtype=torch.float32)
        return Outcome(loss, losses, predictions, latent)

    def _targets(self, prepared: Taught) -> Found:
        """The objects of each picture, without rows that hold none."""
        targets: Found = []
        for row, boxes in enumerate(prepared.answers):
            classes = prepared.beside["classes"][row]
            valid = classes != NOTHING
            targets.append({"boxes": boxes[valid], "labels": classes[valid] + self.head.first})
            if self.masks:
                packed = prepared.beside["masks"][row] if "masks" in prepared.beside else None
                targets[-1]["masks"] = (
                    boxes.new_zeros(0, *self.size, dtype=torch.uint8)
                    if packed is None
                    else unpacked(packed[valid], self.size[1])
                )
        return targets

    def _padded(self, detections: Found) -> dict[str, Tensor]:
        """Detections with as many rows in every picture."""
        shapes: dict[str, tuple[int, ...]] = {"boxes": (4,), "scores": (), "classes": ()}
        if self.masks:
            shapes["masks"] = (MASK, MASK)
        each = [
            {
                **one,
                "classes": one["labels"] - self.head.first,
                **({"masks": one["masks"][:, 0]} if self.masks else {}),
            }
            for one in detections
        ]
        most, made = self.config.detections, dict[str, Tensor]()
        for name, shape in shapes.items():
            empty = float(NOTHING) if name == "classes" else 0.0
            made[name] = torch.full((len(each), most, *shape), empty, device=each[0]["boxes"].device)
            for row, one in enumerate(each):
                made[name][row, : len(one["boxes"])] = one[name].float()
        return made

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles the half that has static shapes: encoder and pyramid."""
        self.encoder.compile(*args, **options)
        self.pyramid.compile(*args, **options)

    # ---- answers -----------------------------------------------------------------------------------------------------

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """Detections as `forward` gives them, with boxes in pixels of the whole picture, and "size" [B, 2], its height
        and width.

        Raises:
            MimError: A program is to be written of it.
        """
        if torch.compiler.is_exporting():
            raise MimError(
                "A detector is no program: how many objects there are follows from the picture. Its encoder can be "
                "exported: --to timm."
            )
        detections = dict(self(self.prepare(sample)).predictions)
        shown = sample.get("picture")
        if shown is None:  # pictures that are not from a file
            shown = detections["boxes"].new_tensor([*self.size, *self.size]).expand(len(detections["boxes"]), -1)
        return in_picture(detections, shown)

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """How many objects there are of which a score is at least 0.5, the surest one, and all as COCO has them."""
        detections = results(answers, self.ids)
        names = dict(self._categories())
        sure = [each for each in detections if each["score"] >= SURE]
        row: dict[str, str | int | float] = {"objects": len(sure), "found": _listed(sure, names)}
        height, width = (int(side) for side in answers["size"])
        return Record(row, facts={"height": height, "width": width, "found": detections})

    def together(self, samples: Sequence[tuple[str, Any]], source: DataSource) -> Mapping[str, bytes]:
        """``detections.json``, in COCO's format of data sets, and ``results.json``, in that of results."""
        names = dict(self._categories())
        return as_json([Detection(name, **facts) for name, facts in samples], names, source)

    # ---- scores ------------------------------------------------------------------------------------------------------

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """COCO's AP, AP50 and AP75 of boxes, and of masks, by pycocotools; beside the same detector untrained, and the
        commonest class with the mean box of the training objects in every picture.

        Raises:
            MimError: No test picture can be read, or none has an object other than a crowd.
        """
        assert isinstance(source, BoxSource)
        truth = source.inner.coco.instances["test"]  # type: ignore[union-attr]
        own, seen = self._detected(source, device, batch_size)
        if not seen:
            raise MimError(f"None of the {len(truth.pictures):,} test pictures can be read.")
        judged = truth.take([*seen])
        sized = (replace(picture, size=size) for picture, size in zip(judged.pictures, seen.values(), strict=True))
        judged = replace(judged, pictures=tuple(sized))
        if not any(not each.crowd for each in judged.objects()):
            raise MimError(f"{truth.path}: no test picture has an object, so there is nothing to judge.")
        rows = {MEAN_BOX: commonest_box(source, judged)}
        if self.built_from:
            rows[UNTRAINED] = self._untrained()._detected(source, device, batch_size)[0]
        rows[FINE_TUNED] = own
        if notes is not None:
            notes += self._notes(source, len(seen), len(truth.pictures) - len(seen))
        return self._scores(rows, judged)

    def _scores(self, rows: Mapping[str, list[dict[str, Any]]], judged: Instances) -> list[Score]:
        """Of each row of the table, for boxes and masks; and AP of each class beside them."""
        scores, each = list[Score](), dict[str, Mapping[int, float]]()
        for row, detections in rows.items():
            for kind, start in COLUMNS.items():
                if kind == "segm" and not (self.masks and row != MEAN_BOX):
                    continue
                made = coco_scores(judged.as_coco(), detections, kind)
                scores += [Score(row, start + n, made.stats[n], error=made.errors[n]) for n in ("AP", "AP50", "AP75")]
                each |= {f"{start}AP": made.by_category} if row == FINE_TUNED else {}
        counts = Counter(one.category for one in judged.objects() if not one.crowd)
        table = tuple(
            (name, counts[id_], *(_ap(own[id_]) for own in each.values())) for id_, name in self._categories()
        )
        self.tables = {"classes": Table(("class", "objects", *each), table)}
        return scores

    def _categories(self) -> Iterator[tuple[int, str]]:
        return zip(self.ids, self.names, strict=True)

    def _untrained(self) -> Detector:
        """The same detector as drawn."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = type(self).build(self.config, Parts(self.built_from))
        made.built_from = self.built_from
        return made

    def _detected(
        self, source: BoxSource, device: torch.device, batch_size: int
    ) -> tuple[list[dict[str, Any]], dict[int, tuple[int, int]]]:
        """(what is found in the test pictures, in COCO's format of results; number -> width and height of those that
        can be read)."""
        pictures, detections, seen = source.known["test"], list[dict[str, Any]](), dict[int, tuple[int, int]]()
        split = source.pictures("test")
        for batch, predictions in self.predicted(source, split, device, min(batch_size, STEPS_OF_TEST)):
            answers = in_picture(predictions, batch["picture"])
            for row, number in enumerate(batch["sample"].tolist()):
                height, width = (int(side) for side in batch["picture"][row, :2])
                seen[number] = (width, height)
                own = results({name: value[row] for name, value in answers.items()}, self.ids)
                detections += [{"image_id": pictures[number].id, **each} for each in own]
        return detections, seen

    def _notes(self, source: BoxSource, seen: int, lost: int) -> list[str]:
        notes = [
            f"{len(source):,} training pictures, {seen:,} test pictures, {counted(self.classes, 'class', 'classes')}. "
            "AP: average precision, the mean over classes and overlaps of 0.5 to 0.95, by pycocotools. In brackets: "
            "standard errors over the test pictures, by a jackknife in 20 groups."
        ]
        note = source.split.note
        return (
            notes
            + ([f"{lost:,} test pictures cannot be used and are left out."] if lost else [])
            + ([note] if note else [])
        )


def _places(tokenizer: Tokenizer) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(size of the pictures, their grid of patches, pixels along a patch).

    Raises:
        ValueError: Units do not lie on a grid of square patches, at least two along each side.
    """
    grid, (shape, *others) = tokenizer.layout.grid, tokenizer.shapes.values()
    if others or grid is None or len(grid) != 2 or len(shape) != 3:
        raise ValueError("a pyramid needs one picture, cut into patches on a grid of two axes")
    size, patch = (shape[1], shape[2]), shape[1] // grid[0]
    if min(grid) < 2 or (grid[0] * patch, grid[1] * patch) != size:
        raise ValueError(
            f"a pyramid needs square patches, at least 2 x 2 of them; these are {grid[0]} x {grid[1]} of a picture of "
            f"{size[0]} x {size[1]}"
        )
    return size, (grid[0], grid[1]), patch


def _listed(detections: list[dict[str, Any]], names: Mapping[int, str]) -> str:
    """Names and scores of the surest, such as "bag 0.98, coat 0.71"."""
    return ", ".join(f"{names[each['category_id']]} {each['score']:.2f}" for each in detections[:10])


def _ap(value: float) -> float | str:
    """As it stands in a table: nothing where a class has no objects."""
    return "" if value < 0 else round(value, 6)
