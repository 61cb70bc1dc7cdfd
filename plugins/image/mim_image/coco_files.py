"""Objects in pictures as COCO's json has them (arXiv 1405.0312; cocodataset.org, data format): read and checked."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mim_core import MimError, counted

KEYS = ("images", "annotations", "categories")
"""What a json of instances must have."""
SLACK = 1.0
"""Pixels by which a box may reach beyond its picture before that is said: annotators round."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Object:
    """One object of a picture.

    Attributes:
        id: Of its annotation.
        box: Left, top, right, bottom, in pixels of the whole picture and within it.
        category: Id of its category.
        crowd: Many objects in one box: they are not learned from, and detections in them count neither way.
        segmentation: Polygons, or a run-length code; None where it has no mask.
        area: In pixels, as the file says; the box's where it says nothing.
    """

    id: int
    box: Box
    category: int
    crowd: bool
    segmentation: Any
    area: float


@dataclass(frozen=True)
class Pictured:
    """One picture and what is in it, perhaps nothing.

    Attributes:
        id: Of the image.
        file: Its ``file_name``.
        size: (width, height); None where the file does not say.
        objects: In the order of the file.
    """

    id: int
    file: str
    size: tuple[int, int] | None
    objects: tuple[Object, ...] = ()


@dataclass(frozen=True)
class Instances:
    """A json of instances.

    Attributes:
        path: The file.
        pictures: In its order.
        categories: Id -> name, rising; names are told apart by their ids where two are alike.
        advice: What of it is not used as it stands, in words.
    """

    path: Path
    pictures: tuple[Pictured, ...]
    categories: Mapping[int, str]
    advice: tuple[str, ...] = ()

    def take(self, numbers: Sequence[int]) -> Instances:
        """Some of the pictures."""
        return replace(self, pictures=tuple(self.pictures[number] for number in numbers))

    def objects(self) -> Iterable[Object]:
        """Of all pictures."""
        return (each for picture in self.pictures for each in picture.objects)

    def as_coco(self) -> dict[str, Any]:
        """The same as COCO's json has it."""
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        for picture in self.pictures:
            sides = dict(zip(("width", "height"), picture.size, strict=True)) if picture.size else {}
            images.append({"id": picture.id, "file_name": picture.file, **sides})
            annotations += [_as_row(picture.id, each) for each in picture.objects]
        categories = [{"id": id_, "name": name} for id_, name in self.categories.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def _as_row(picture: int, each: Object) -> dict[str, Any]:
    left, top, right, bottom = each.box
    row: dict[str, Any] = {"id": each.id, "image_id": picture, "category_id": each.category, "area": each.area}
    row |= {"bbox": [left, top, right - left, bottom - top], "iscrowd": int(each.crowd)}
    return row if each.segmentation is None else {**row, "segmentation": each.segmentation}


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_instances(path: Path) -> Instances:
    """Reads and checks a file. Boxes are cut at the edge of their picture; those without area, or wholly beside it, are
    left out. Both are said in ``advice``.

    Raises:
        MimError: It is no such file, or contradicts itself; names the place.
    """
    content = _content(path)
    categories = _categories(path, content["categories"])
    pictures = _pictures(path, content["images"])
    left, objects = _Left(), defaultdict[int, list[Object]](list)
    for number, row in enumerate(content["annotations"]):
        where = f"{path}: annotation {row.get('id', f'number {number}') if isinstance(row, dict) else number}"
        if not isinstance(row, dict) or row.get("image_id") not in pictures:
            raise MimError(f"{where} is of image {_of(row, 'image_id')}, and images has none of that id.")
        if row.get("category_id") not in categories:
            known = ", ".join(f"{id_} {name}" for id_, name in list(categories.items())[:8])
            raise MimError(
                f"{where} has category {_of(row, 'category_id')}, which categories does not list. It lists: {known}"
                f"{', ...' if len(categories) > 8 else ''}."
            )
        picture = pictures[row["image_id"]]
        made = _object(where, row, number, picture, left)
        if made is not None:
            objects[picture.id].append(made)
    each = tuple(replace(picture, objects=tuple(objects[picture.id])) for picture in pictures.values())
    return Instances(path, each, categories, left.advice(path))


@dataclass
class _Left:
    """What is not used as it stands: kind -> where."""

    where: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def advice(self, path: Path) -> tuple[str, ...]:
        return tuple(
            f"{path}: {counted(len(places), 'box', 'boxes')} {kind} ({places[0]})."
            for kind, places in self.where.items()
        )


def _of(row: Any, name: str) -> str:
    return repr(row.get(name)) if isinstance(row, dict) else "none"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise MimError(f"{path} cannot be read as json: {str(error).splitlines()[0]}.") from error
    lacking = [key for key in KEYS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise MimError(
            f"{path} has no {', no '.join(lacking)}. A json of instances, as COCO has it, holds the lists "
            f"{', '.join(KEYS)}."
        )
    for key in ("images", "categories"):
        if not content[key]:
            raise MimError(f"{path}: its list of {key} is empty.")
    sections: dict[str, Any] = content
    return sections


def _categories(path: Path, rows: list[Any]) -> dict[int, str]:
    classes: dict[int, str] = {}
    for row in rows:
        if not isinstance(row, dict) or not _whole(row.get("id")) or not isinstance(row.get("name"), str):
            raise MimError(f"{path}: each of categories has an id, a whole number, and a name; not {row!r}.")
        if row["id"] in classes:
            raise MimError(f"{path}: two categories have the id {row['id']}: {classes[row['id']]} and {row['name']}.")
        classes[row["id"]] = row["name"]
    names = list(classes.values())
    return {id_: name if names.count(name) == 1 else f"{name} (id {id_})" for id_, name in sorted(classes.items())}


def _pictures(path: Path, rows: list[Any]) -> dict[int, Pictured]:
    pictures: dict[int, Pictured] = {}
    for row in rows:
        if not isinstance(row, dict) or not _whole(row.get("id")) or not isinstance(row.get("file_name"), str):
            raise MimError(f"{path}: each of images has an id, a whole number, and a file_name; not {str(row)[:200]}.")
        id_, size = row["id"], None
        if id_ in pictures:
            raise MimError(f"{path}: two images have the id {id_}: {pictures[id_].file} and {row['file_name']}.")
        if row.get("width") is not None or row.get("height") is not None:
            size = (row.get("width"), row.get("height"))
            if not all(isinstance(side, int) and side > 0 for side in size):
                raise MimError(
                    f"{path}: width and height of image {id_} ({row['file_name']}) should be whole numbers "
                    f"of 1 or more; they are {size[0]} and {size[1]}."
                )
        pictures[id_] = Pictured(id_, row["file_name"], size)  # type: ignore[arg-type]
    return pictures


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(where: str, row: dict[str, Any], number: int, picture: Pictured, left: _Left) -> Object | None:
    """An object within its picture; None where nothing of it is."""
    place = f"annotation {row.get('id', f'number {number}')} of {picture.file}"
    x, y, width, height = _numbers(where, row.get("bbox"))
    limits = picture.size or (math.inf, math.inf)
    if width <= 0 or height <= 0:
        left.where["without area left out"].append(place)
        return None
    box = (max(x, 0.0), max(y, 0.0), min(x + width, limits[0]), min(y + height, limits[1]))
    if box[0] >= box[2] or box[1] >= box[3]:
        left.where["outside their picture left out"].append(place)
        return None
    if max(-x, -y, x + width - limits[0], y + height - limits[1]) > SLACK:
        left.where["reaching beyond their picture cut at its edge"].append(place)
    segmentation, area = _segmentation(where, row.get("segmentation"), picture), row.get("area")
    if not isinstance(area, int | float) or not 0 < area < math.inf:
        area = (box[2] - box[0]) * (box[3] - box[1])
    id_ = row["id"] if _whole(row.get("id")) else number + 1
    return Object(id_, box, row["category_id"], bool(row.get("iscrowd", 0)), segmentation, float(area))


def _numbers(where: str, box: Any) -> Box:
    good = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    if not good or not all(map(math.isfinite, box)):
        raise MimError(f"{where}: bbox is {box!r}, where four numbers are expected: left, top, width, height.")
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))


def _segmentation(where: str, given: Any, picture: Pictured) -> Any:
    """Polygons or a run-length code as it stands, None for none of them."""
    if not given or given == [[]]:
        return None
    if isinstance(given, dict):
        size = given.get("size")
        if "counts" not in given or not isinstance(size, list) or len(size) != 2:
            raise MimError(f"{where}: a segmentation in run lengths has counts, and size [height, width].")
        counts = given["counts"]
        if isinstance(counts, list) and (
            not all(_whole(n) and n >= 0 for n in counts) or sum(counts) != math.prod(size)
        ):
            raise MimError(f"{where}: its run lengths do not add up to the {size[1]} x {size[0]} pixels of their size.")
        if picture.size is not None and tuple(size) != (picture.size[1], picture.size[0]):
            raise MimError(
                f"{where}: its segmentation is of {size[1]} x {size[0]} pixels, and its picture {picture.file} of "
                f"{picture.size[0]} x {picture.size[1]}."
            )
        return given
    polygons = given if isinstance(given, list) else []
    for polygon in polygons:
        sound = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not sound or not all(isinstance(value, int | float) and math.isfinite(value) for value in polygon):
            raise MimError(f"{where}: a polygon is a list of x, y, x, y, ... of at least three points.")
    if not polygons:
        raise MimError(f"{where}: its segmentation is neither polygons nor run lengths.")
    return polygons
