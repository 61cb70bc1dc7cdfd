"""What a detector found: brought to the whole picture, and written in COCO's formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from mim_core import DataSource, shown
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from mim_image.boxes import NOTHING, back, coco_masks
from mim_image.coco_data import BoxSource
from mim_image.coco_files import Instances, read_instances

INSIDE = 0.5
"""Probability from which a pixel belongs to a mask."""


@dataclass(frozen=True)
class Detection:
    """What was found in one picture.

    Attributes:
        name: Its file.
        height: In pixels.
        width: In pixels.
        found: Rows of `results`.
    """

    name: str
    height: int
    width: int
    found: list[dict[str, Any]]


def in_picture(detections: Mapping[str, Tensor], shown_as: Float[Tensor, "B 4"]) -> dict[str, Tensor]:
    """Detections on pictures that were `mim_image.boxes.fitted`, with boxes in pixels of the whole ones, and "size"
    [B, 2], their height and width."""
    boxes = torch.stack(
        [back(own, sides) for own, sides in zip(detections["boxes"], shown_as.to(detections["boxes"]), strict=True)]
    )
    return {**detections, "boxes": boxes, "size": shown_as[:, :2]}


def results(answers: Mapping[str, Tensor], ids: Sequence[int]) -> list[dict[str, Any]]:
    """What was found in one picture, the surest first, in COCO's format of results, without the picture's id.

    Args:
        answers: "boxes" [n, 4], "scores", "classes" [n], perhaps "masks" [n, m, m], and "size" [2].
        ids: Of the categories.
    """
    height, width = (int(side) for side in answers["size"])
    detections: list[dict[str, Any]] = []
    for number in range(int((answers["classes"] != NOTHING).sum())):
        left, top, right, bottom = (round(value, 2) for value in answers["boxes"][number].tolist())
        if right <= left or bottom <= top:  # it lies beside the whole picture
            continue
        row: dict[str, Any] = {
            "category_id": ids[int(answers["classes"][number])],
            "score": round(float(answers["scores"][number]), 5),
            "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
        }
        if "masks" in answers:
            row["segmentation"] = _code(answers["masks"][number], answers["boxes"][number], (height, width))
        detections.append(row)
    return detections


def _code(mask: Float[Tensor, "m m"], box: Float[Tensor, " 4"], size: tuple[int, int]) -> dict[str, Any]:
    """A mask of a box as COCO's run lengths of the whole picture, one at a time: pictures may be large."""
    pasted = paste_masks_in_image(mask[None, None].float(), box[None].float(), size)[0, 0]
    flags = (pasted >= INSIDE).to(torch.uint8).t().contiguous().t().numpy()  # down the columns, as pycocotools wants it
    code = coco_masks().encode(flags)
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def commonest_box(source: BoxSource, judged: Instances) -> list[dict[str, Any]]:
    """What can be said without looking: the commonest class of the training objects, with the mean of their boxes as
    shares of their pictures, in every picture whose size is known."""
    known = source.known["train"]
    pictures = [known[number] for number in source.chosen.tolist() if known[number].size is not None]
    rows = [(each.category, [*each.box], p.size) for p in pictures for each in p.objects if not each.crowd and p.size]
    if not rows:
        return []
    shares = torch.tensor([[*box] for _, box, _ in rows]) / torch.tensor([[*size, *size] for _, _, size in rows])
    left, top, right, bottom = shares.mean(dim=0).tolist()
    common = int(torch.tensor([category for category, _, _ in rows]).mode().values)
    detections = []
    for picture in judged.pictures:
        if picture.size is not None:
            width, height = picture.size
            box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
            detections.append({"image_id": picture.id, "category_id": common, "bbox": box, "score": 1.0})
    return detections


# ---- files -----------------------------------------------------------------------------------------------------------


def as_json(detections: Sequence[Detection], names: Mapping[int, str], source: DataSource) -> dict[str, bytes]:
    """Two files: ``detections.json`` in the format of data sets, which `pycocotools.coco.COCO` opens, and
    ``results.json`` in that of results, which its ``loadRes`` opens beside a file of the same ids.

    Ids of pictures are those of the json that the data option annotations names, where that lists every picture, and
    else count from 1 in the order of the names; ``info`` says which.
    """
    ids, note = _ids([each.name for each in detections], getattr(source.config, "annotations", None))
    images = [
        {"id": id_, "file_name": shown(each.name), "width": each.width, "height": each.height}
        for id_, each in zip(ids, detections, strict=True)
    ]
    rows = [{"image_id": id_, **row} for id_, each in zip(ids, detections, strict=True) for row in each.found]
    annotations = [{"id": number, "area": _area(row), "iscrowd": 0, **row} for number, row in enumerate(rows, start=1)]
    categories = [{"id": id_, "name": name} for id_, name in names.items()]
    whole = {"info": {"description": note}, "images": images, "annotations": annotations, "categories": categories}
    return {"detections.json": json.dumps(whole).encode(), "results.json": json.dumps(rows).encode()}


def _area(row: Mapping[str, Any]) -> float:
    """Pixels of the mask, or of the box where there is none."""
    if "segmentation" in row:
        return float(coco_masks().area(row["segmentation"]))
    return round(row["bbox"][2] * row["bbox"][3], 2)


def _ids(names: Sequence[str], annotations: Path | None) -> tuple[list[int], str]:
    """(ids of the pictures, and in words what they are)."""
    if annotations is not None and annotations.is_file():
        listed = {picture.file: picture.id for picture in read_instances(annotations).pictures}
        if all(name in listed for name in names):
            return [listed[name] for name in names], f"ids of images are those of {annotations}"
    return list(range(1, len(names) + 1)), "ids of images count from 1 in the order of their names"
