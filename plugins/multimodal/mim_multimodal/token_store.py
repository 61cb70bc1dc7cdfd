"""Ids of a collection, made once by a trained tokenizer and read back as a modality (4M, arXiv 2312.06647, section
2.1).

A folder of ``shard-N.safetensors``, each with ``ids`` int32 [n, crops, *grid], the names of its n items and the files
that they were made of, and a ``manifest.json`` that says whose ids they are. Ids of an item that could not be read are
-1.

Pictures are augmented before they are named, so the crops are drawn once too: number 0 is the fixed crop of evaluation,
the others are random, the same for every modality. A source that reads ids shows that part of all other modalities.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mim_core import BadSample, MimError, counted, randomness
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mim_multimodal.crops import DRAWS, Cut, centred, random_resized

MANIFEST = "manifest.json"
FACTS = "about"
"""Entry of a shard's metadata that holds all it says of itself, as JSON."""
NONE = -1
"""Id of every unit of an item that could not be read."""


@dataclass(frozen=True)
class Crops:
    """Which parts of an item have ids.

    Attributes:
        count: How many; number 0 is the fixed one.
        area: Smallest and largest share of the picture, of the random ones.
        ratio: Smallest and largest ratio of width to height.
        flip: Chance of a flip.
        evaluate: Share of the sides that the fixed one takes.
        size: Height and width to which parts are scaled; their ratio counts.
    """

    count: int
    area: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    evaluate: float
    size: tuple[int, int]

    def number(self, key: int | None) -> int:
        """The crop that a key draws; the fixed one without."""
        if key is None:
            return 0
        return int(randomness.uniform(torch.tensor([key]), "one of several crops", 1) * self.count)

    def cut(self, frame: tuple[int, int], name: str, number: int) -> Cut:
        """A crop of an item by that name; it follows from the two alone."""
        if number == 0:
            return Cut(frame, centred(frame, self.size, self.evaluate))
        key = randomness.make_key(0, number, torch.tensor([randomness.name_code(name)]))
        draws = randomness.uniform(key, "aligned", DRAWS)[0].tolist()
        box = random_resized(frame, self.size, self.area, self.ratio, draws)
        return Cut(frame, box, draws[-1] < self.flip)

    def same_parts(self, other: Crops) -> bool:
        """Whether the two show the same parts of a picture."""
        square = self.size[0] * other.size[1] == self.size[1] * other.size[0]
        mine, its = ({**asdict(each), "size": None} for each in (self, other))
        return square and mine == its


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder of ids says of itself; None where it is none."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "crops" in content else None


def crops_of(manifest: Mapping[str, Any]) -> Crops:
    """The crops that a manifest tells."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in manifest["crops"].items()}
    return Crops(**fields)


def shard_path(folder: Path, number: int) -> Path:
    """Of a shard, by its number."""
    return folder / f"shard-{number:05}.safetensors"


def facts_in(path: Path) -> dict[str, Any] | None:
    """What a shard says of itself; None where it is not there, or not whole.

    ``names`` are its items, ``made_of`` is a digest of the files that they were made of, ``files`` each of these below
    the data's folder with its bytes and its time in nanoseconds, ``bad`` the files that could not be read, and why.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            facts = json.loads(about[FACTS]) if FACTS in about else _of_before(about)
            return facts if file.get_slice("ids").get_shape()[0] == len(facts["names"]) else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _of_before(about: Mapping[str, str]) -> dict[str, Any]:
    """The same of a shard that was written before one entry held all."""
    files = json.loads(about.get("files", "[]"))
    return {"names": json.loads(about["names"]), "made_of": about.get("made_of", ""), "files": files, "bad": {}}


def names_in(path: Path) -> list[str] | None:
    """The items of a shard; None where it is not there, or not whole."""
    facts = facts_in(path)
    return None if facts is None else facts["names"]


def made_of(path: Path) -> str:
    """A digest of the files that a shard was made of; empty where it does not say."""
    return str((facts_in(path) or {}).get("made_of", ""))


def files_in(path: Path) -> list[tuple[str, int, int]]:
    """What the items of a shard were made of: each file below the data's folder, its bytes and its time in nanoseconds.
    Empty where the shard does not say."""
    return [tuple(each) for each in (facts_in(path) or {}).get("files", []) if each]


class TokenStore:
    """A folder of ids, read by the names of items.

    Attributes:
        folder: Where it is.
        codes: How many ids there are.
        grid: Of the ids of one crop.
        crops: Which parts of an item have ids.

    Raises:
        MimError: It is no such folder, or the command that fills it was stopped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        if manifest is None:
            raise MimError(f"{folder} holds no ids. Make them: mim-multimodal tokenize RUN DATA {folder}")
        self.codes, self.grid = int(manifest["codes"]), tuple(manifest["grid"])
        self.crops = crops_of(manifest)
        self.places: dict[str, tuple[int, int]] = {}
        for number in range(manifest["shards"]):
            names = names_in(shard_path(folder, number))
            if names is None:
                raise MimError(
                    f"{folder} is not complete: {shard_path(folder, number).name} is missing or damaged. The command "
                    "that makes it goes on where it was: mim-multimodal tokenize RUN DATA OUT"
                )
            self.places.update({name: (number, row) for row, name in enumerate(names)})
        self.shards = int(manifest["shards"])

    def check(self, names: Iterable[str]) -> None:
        """Whether all these items have ids.

        Raises:
            MimError: Some have none.
        """
        lost = [name for name in names if name not in self.places]
        if lost:
            raise MimError(
                f"{len(lost):,} items have no ids in {self.folder}, such as {lost[0]}: it was made of another "
                "collection. Make ids of this one: mim-multimodal tokenize RUN DATA OUT; where these items lack the "
                "modality, --data.missing mask keeps them and hides it"
            )

    def replaced(self, root: Path) -> tuple[list[str], list[str]]:
        """The files below a folder that are there under the names that ids were made of, and are not what they were:
        (of another size, of the same size and another time). Files that are gone do not count: ids stand for them."""
        sizes, times = list[str](), list[str]()
        for number in range(self.shards):
            for name, size, time in files_in(shard_path(self.folder, number)):
                try:
                    stats = os.stat(root / name)
                except OSError:
                    continue
                if stats.st_size != size:
                    sizes.append(name)
                elif stats.st_mtime_ns != time:
                    times.append(name)
        return sizes, times

    def check_files(self, root: Path) -> str:
        """Whether the files below a folder are those that ids were made of. Returns what to tell of their times.

        Raises:
            MimError: Some have another size.
        """
        sizes, times = self.replaced(root)
        again = "mim-multimodal tokenize RUN DATA OUT makes the ids of such files anew"
        since = f"than when the ids in {self.folder} were made, such as"
        if sizes:
            many = counted(len(sizes), "file")
            raise MimError(f"Of {many} in {root}, the size is another {since} {sizes[0]}; {again}.")
        if not times:
            return ""
        note = f"of {counted(len(times), 'file')} in {root}, the time is another {since} {times[0]}"
        return f"{note}. If they were copied, all is well; if they were replaced, {again}"

    def ids(self, name: str, crop: int) -> Tensor:
        """int64 [*grid] of an item's crop.

        Raises:
            BadSample: It could not be read when the ids were made.
        """
        shard, row = self.places[name]
        with safe_open(shard_path(self.folder, shard), "pt") as file:
            row_ids: Tensor = file.get_slice("ids")[row : row + 1][0, crop].to(torch.int64)
        if bool((row_ids == NONE).any()):
            raise BadSample(name, f"it has no ids in {self.folder}: it could not be read when they were made")
        return row_ids


def options_for(name: str, grid: Sequence[int], codes: int) -> str:
    """The options of a command under which the tokenizer of a modality reads ids of that grid and number."""
    role = f"{name}.tokenizer"
    sides = " ".join(map(str, grid))
    return f"--use {role}=core:ids --{role}.modality {name} --{role}.size {sides} --{role}.names {codes}"


def check_read(folders: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises MimError for ids that no tokenizer reads."""
    for name, folder in folders.items():
        if name not in shapes:
            store = TokenStore(folder)
            raise MimError(
                f"{store.folder} has ids of {name}, and no tokenizer reads {name}. Add "
                f"{options_for(name, store.grid, store.codes)}"
            )


def one_kind_of_crops(
    stores: Mapping[str, TokenStore], shapes: Mapping[str, tuple[int, ...]], size: tuple[int, int]
) -> Crops | None:
    """The crops that all stores have ids of; None where there is no store.

    Args:
        stores: By modality.
        shapes: What tokenizers want.
        size: Height and width of the finest pictures beside the ids.

    Raises:
        MimError: They are of other crops, or of another grid than a tokenizer wants.
    """
    crops: Crops | None = None
    for name, store in stores.items():
        if tuple(shapes[name]) != store.grid:
            wanted, grid = (" ".join(map(str, each)) for each in (shapes[name], store.grid))
            raise MimError(
                f"{store.folder} has ids of {grid}, and the tokenizer of {name} wants {wanted}: "
                f"--{name}.tokenizer.size {grid}"
            )
        if not store.crops.same_parts(replace(crops or store.crops, size=size)):
            raise MimError(
                f"{store.folder} has ids of other crops than the other modalities show. Make all with the same options "
                "of mim-multimodal tokenize, from pictures of one ratio."
            )
        crops = store.crops
    return crops
