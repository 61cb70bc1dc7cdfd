"""Makes the shapes that mim-pointcloud ships: the furniture of Debian's sweethome3d-furniture as surface points.

Every model of the package's five libraries becomes 1,024 points drawn uniformly over its surface, turned upright as
the catalogue says (y is up), centred and scaled into the unit sphere. Files: points.npy float16 [n, 1024, 3],
shapes.csv with a row per shape, and LICENSE, README.md, CREDITS.csv.

Classes come from names alone. The rule: a name is cut at the first of " with ", " on ", " and ", a comma, a dash or a
digit; what then stands last, its head noun, decides by the table HEADS; longer heads go first. OTHER lists names whose
head noun misleads, found by looking at every picture of every class. Shapes whose head noun is in no table have no
class and serve pre-training only.

Split: near-copies (Chamfer distance below NEAR, in the unit sphere) stay together. Within a class, groups go to the
test split in the order of a hash of the first name until a fifth is there.

Run: apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb sh3d
     python tools/samples/furniture_clouds.py sh3d [FOLDER]   (a minute; needs mim-pointcloud installed)
"""

from __future__ import annotations

import csv
import hashlib
import html
import re
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from mim_pointcloud.files import read_cloud
from scipy.spatial import cKDTree

HERE = Path(__file__).parents[2]
PACKAGE = "sweethome3d-furniture 1.8-1"
POINTS = 1024
NEAR = 0.002
"""Two shapes nearer than this are near-copies. The distance is the mean squared one to the nearest point, both ways;
two draws from the same surface lie at about 0.001."""

LIBRARIES = {
    "BlendSwap-CC-0": ("CC0-1.0", ""),
    "BlendSwap-CC-BY": ("CC-BY-3.0", ""),
    "KatorLegaz": ("CC-BY-3.0-US", "Andrew Kator & Jennifer Legaz"),
    "Reallusion": ("CC-BY-3.0-US", "Reallusion"),
    "Scopia": ("CC-BY-3.0", "Emmanuel PUYBARET / eTeks and Scopia Visual Interfaces Systems, s.l."),
}
"""Licence of a library, and the credit that its LICENSE.TXT asks for; where empty, each model has an author."""

HEADS = {
    "appliance": "cooker, dryer machine, freezer, fridge, microwave, oven, refrigerator, stove, washing machine",
    "basin": "basin, bath, bathtub, bidet, jacuzzi, lavatory, sink, toilets unit, urinal, vanity, washbasin",
    "bed": "bed, crib",
    "cabinet": "bookcase, cabinet, chest, cupboard, drawers, dresser, locker, shelves, wardrobe",
    "chair": "armchair, chair, class seat",
    "door": "door",
    "lamp": "chandelier, lamp, lamppost, lantern, light, lights, spotlight, strip",
    "person": "boy, female, girl, male",
    "plant": "acacia, bamboo, beech, blossom, bush, cactus, cypress, ficus, flowers, lily, maple, orchids, pine, plant, "
    "poplar, spathiphyllum, tree, tulips, yucca",
    "sofa": "couch, sofa, sofa bz",
    "stool": "bank, bench, ottoman, puff, stool",
    "switch": "plug, socket, switch",
    "table": "desk, table",
    "vehicle": "beetle, bus, car, car model, cc, chevrolet, concept sedan, focus, leon, scenic, sedan, sport, suv, "
    "truck, van",
    "vessel": "bottle, bowl, cup, flacon, glass, jar, mug, pottery, vase",
    "window": "window",
}
"""Class -> the nouns that may be a name's last."""

OTHER: dict[str, str] = {}
"""Names that their head noun misleads about -> their class, or none."""


def class_of(name: str) -> str:
    """The class of a name by its head noun; empty when there is none."""
    if name in OTHER:
        return OTHER[name]
    core = re.split(r" with | on | and |,| - |\d", name.lower())[0].strip()
    found = [(len(head), label) for label, heads in HEADS.items() for head in heads.split(", ")
             if core == head or core.endswith(" " + head)]
    return max(found)[1] if found else ""


def models(library: zipfile.ZipFile) -> list[dict[str, str]]:
    """The catalogue's entries."""
    entries: dict[int, dict[str, str]] = {}
    for line in library.read("PluginFurnitureCatalog.properties").decode("latin1").splitlines():
        found = re.match(r"(\w+)#(\d+)=(.*)", line)
        if found:
            entries.setdefault(int(found[2]), {})[found[1]] = found[3].strip()
    return [entries[number] for number in sorted(entries)]


def credit(library: zipfile.ZipFile, kind: str, entry: dict[str, str]) -> dict[str, str]:
    """Title, author, address and licence of a model, by the licence file in its folder and the catalogue."""
    licence, author = LIBRARIES[kind]
    folder = entry["model"].strip("/").rsplit("/", 1)[0] + "/"
    names = [n for n in library.namelist() if n.startswith(folder) and n.lower().endswith((".txt", ".html"))]
    found = {"title": entry["name"], "author": author or entry["creator"], "source": "", "licence": licence}
    if author or not names:
        return found
    text = html.unescape(library.read(names[0]).decode("utf-8", "replace"))
    title = re.search(r'downloading "(.*?)" by (.*)', text) or re.search(r"<title>(.*) by (.*?) - \d+", text)
    other = re.search(r"<title>\d+ - (.*?) - Downloaded", text, re.S)
    number = re.search(r"blendswap\.com/blends/view/(\d+)", text) or re.search(r"/(\d{5}) ?-", names[0])
    if title:
        found["title"] = title[1].strip()
        there = title[2].strip()
        if there.lower() not in found["author"].lower():
            found["author"] += f" (the model's licence file: {there})"
    elif other:
        found["title"] = other[1].strip()
    if number:
        found["source"] = f"www.blendswap.com/blends/view/{number[1]}"
    by = "Creative Commons Attribution 3.0" in text
    zero = re.search(r"Creative Commons Zero|publicdomain/", text) is not None
    if by != zero:
        found["licence"] = "CC-BY-3.0" if by else "CC0-1.0"
    return found


def stable(text: str) -> int:
    """A 63-bit number that follows from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def shape(library: zipfile.ZipFile, entry: dict[str, str], key: int) -> np.ndarray:
    """float32 [1024, 3], upright, within the unit sphere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.obj"
        path.write_bytes(library.read(entry["model"].strip("/")))
        points = read_cloud(path, POINTS, key).double()
    if "modelRotation" in entry:
        turn = torch.tensor([float(value) for value in entry["modelRotation"].split()], dtype=torch.float64)
        points = points @ turn.reshape(3, 3).T
    points = points - points.mean(0)
    return (points / points.norm(dim=1).max()).float().numpy()


def groups(points: np.ndarray) -> list[int]:
    """Number of the first near-copy of each shape; itself for most."""
    trees = [cKDTree(cloud) for cloud in points]
    short = np.stack([np.histogram(np.linalg.norm(cloud, axis=1), 16, (0, 1))[0] / POINTS for cloud in points])
    first = list(range(len(points)))
    for i in range(len(points)):
        for j in range(i):
            if first[j] != j or np.abs(short[i] - short[j]).sum() > 0.5:
                continue
            there, back = trees[j].query(points[i])[0], trees[i].query(points[j])[0]
            if (there**2).mean() + (back**2).mean() < NEAR:
                first[i] = j
                break
    return first


def split(rows: list[dict[str, str]], first: list[int]) -> None:
    """Writes "train", "test" or, for shapes without class, "pretrain" into the rows."""
    for label in sorted({row["class"] for row in rows}):
        members = [i for i, row in enumerate(rows) if row["class"] == label]
        if not label:
            for i in members:
                rows[i]["split"] = "pretrain"
            continue
        heads = sorted({first[i] for i in members}, key=lambda i: stable(rows[i]["name"]))
        wanted, held = round(len(members) / 5), 0
        for head in heads:
            copies = [i for i in members if first[i] == head]
            test = held + len(copies) <= wanted
            held += len(copies) if test else 0
            for i in copies:
                rows[i]["split"] = "test" if test else "train"


def main() -> None:
    """All files of the sample; prints the classes and what could not be read."""
    source = Path(sys.argv[1]) / "usr/share/sweethome3d/furniture"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "plugins/pointcloud/mim_pointcloud/sample"
    target.mkdir(parents=True, exist_ok=True)
    rows, clouds = [], []
    for kind in LIBRARIES:
        with zipfile.ZipFile(source / f"{kind}.sh3f") as library:
            for entry in models(library):
                name = f"{kind}/{Path(entry['model']).stem}"
                try:
                    clouds.append(shape(library, entry, stable(name)))
                except Exception as error:
                    print(f"left out: {name}: {error}")
                    continue
                label, room = class_of(entry["name"]), entry["category"]
                rows.append({"name": name, "called": entry["name"], "class": label, "split": "", "room": room,
                             "library": kind, **credit(library, kind, entry)})
    points = np.stack(clouds)
    split(rows, groups(points))
    np.save(target / "points.npy", points.astype(np.float16))
    with open(target / "shapes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
