"""Makes the shapes that mim-pointcloud ships: the furniture of Debian's sweethome3d-furniture as surface points.

Every model of the package's five libraries becomes 1,024 points drawn uniformly over its surface, turned upright as
the catalogue says (y is up), centred and scaled into the unit sphere. Files: points.npy float16 [n, 1024, 3]
and shapes.csv with a row per shape: its class, split, author and licence; and LICENSE with all authors. The README.md
beside them is written by hand.

Classes come from names alone. The rule: a name is cut at the first of " with ", " on ", " and ", a comma, a dash or a
digit; what then stands last, its head noun, decides by the table HEADS; longer heads go first. OTHER lists shapes
whose head noun misleads, found by looking at the catalogue's picture of every shape that has a class. Shapes whose head
noun is in no table have no class and serve pre-training only.

Split: copies of one surface stay together. Two shapes are copies when the Chamfer distance between them is below NEAR
times what two draws from the same surface have. Within a class, groups go to the test split in the order of a hash of
the first name until a fifth is there.

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
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from mim_pointcloud.files import read_cloud
from scipy.spatial import cKDTree

HERE = Path(__file__).parents[2]
PACKAGE = "sweethome3d-furniture 1.8-1"
POINTS = 1024
NEAR = 1.1
"""Largest ratio of the distance between copies to that between two draws from one of them."""

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
    "bed": "bed, crib",
    "box": "box, briefcase, container, crate, gift, safe, suitcase, trunck",
    "cabinet": "bookcase, cabinet, chest, cupboard, drawers, dresser, locker, shelves, wardrobe",
    "chair": "armchair, chair, class seat",
    "door": "door",
    "lamp": "chandelier, lamp, lamppost, lantern, light, lights, spotlight, strip",
    "person": "boy, female, girl, male",
    "plant": "acacia, bamboo, beech, blossom, bush, cactus, cypress, ficus, flower box, flowers, lily, maple, orchids, "
    "pine, pine under snow, plant, plant box, poplar, spathiphyllum, tree, tulips, yucca",
    "sanitary": "basin, bath, bathtub, bidet, jacuzzi, lavatory, sink, toilets unit, urinal, vanity, washbasin",
    "sofa": "couch, sofa, sofa bz",
    "stool or bench": "bank, bench, ottoman, puff, stool",
    "switch or socket": "plug, socket, switch",
    "table": "desk, table",
    "vehicle": "beetle, bus, car, car model, chevrolet, concept sedan, focus, leon, scenic, sport, suv, truck, van",
    "vessel": "bottle, bowl, creamer, cup, flacon, glass, jar, kettle, mug, pot, pottery, teapot, vase",
    "window": "window",
}
"""Class -> the nouns that may be a name's last."""

OTHER = {
    "BlendSwap-CC-0/bedsideTable2": "cabinet",
    "BlendSwap-CC-0/foldingChair": "stool or bench",  # it has no back
    "BlendSwap-CC-0/sinkCabinet": "",  # a cabinet with a sink in it; so are the kitchen sink and the vanities
    "BlendSwap-CC-0/modernVanity": "",
    "BlendSwap-CC-0/stove": "",  # a flat hob; so are the induction cookers
    "BlendSwap-CC-0/table_football": "",
    "BlendSwap-CC-BY/utensilsPot": "",  # mostly spoons
    "BlendSwap-CC-BY/abdominalBench": "",  # gym equipment
    "BlendSwap-CC-BY/bedsideTable": "cabinet",
    "BlendSwap-CC-BY/kitchenSink": "",
    "KatorLegaz/chair-ottoman": "chair",  # a chair with its ottoman
    "Scopia/basin": "",  # a bucket
    "Scopia/bathroom_vanity": "",
    "Scopia/box_room": "",  # a piece of a wall
    "Scopia/changing-table": "cabinet",
    "Scopia/chaussette": "",  # a sock
    "Scopia/convertible-sofa-BZ-opened": "",  # lies flat
    "Scopia/cooker": "",  # a rice cooker
    "Scopia/double_vanity": "",
    "Scopia/dressing-table": "",  # with a mirror and a chair
    "Scopia/ext_chair": "",  # a day bed
    "Scopia/induction-cooker-2-zones": "",
    "Scopia/induction-cooker-4-zones": "",
    "Scopia/jacuzzi": "",  # a pool in a box
    "Scopia/office_box": "cabinet",
    "Scopia/puff": "",  # a bean bag
    "Scopia/rattanTable": "",  # a block
}
"""Shapes whose head noun misleads, found by looking at the pictures of every class -> their class, or none."""


LICENSE = """The shapes in this folder are points on the surfaces of the 3D models of Debian's package
{package} ("SweetHome3D Additional 3D models", gathered, cleaned and converted to OBJ by
Emmanuel Puybaret / eTeks <info@eteks.com>, www.sweethome3d.com/importModels.jsp). They were made for mim-pointcloud
with tools/samples/furniture_clouds.py.

Changes to the originals: each model was replaced by {points:,} points drawn at random on its surface; materials,
textures and faces were left out; the points were turned upright, centred and scaled to the unit sphere, and rounded
to 16-bit numbers. The class and the split of each shape were added.

Every model keeps its own licence. shapes.csv names for each its title, author, address and licence. No author endorses
this use.

{counts}

CC0-1.0: Creative Commons Zero 1.0 Universal, https://creativecommons.org/publicdomain/zero/1.0/
CC-BY-3.0: Creative Commons Attribution 3.0 Unported, https://creativecommons.org/licenses/by/3.0/
CC-BY-3.0-US: Creative Commons Attribution 3.0 United States, https://creativecommons.org/licenses/by/3.0/us/

The models are offered as they are, without warranty of any kind; see the licences.

---- Libraries, and what their licence files state ----

KatorLegaz: (C) Copyright 2003-2008 Andrew Kator & Jennifer Legaz. CC-BY-3.0-US.
Reallusion: (C) Copyright 2008-2016 Reallusion, http://www.reallusion.com/. CC-BY-3.0-US.
Scopia: (C) Copyright 2014-2020 Emmanuel PUYBARET / eTeks <info@eteks.com> and Scopia Visual Interfaces Systems, s.l.
(http://www.scopia.es) for 265 models; (C) Copyright 2006-2020 Scopia Visual Interfaces Systems, s.l. for the others.
CC-BY-3.0.
BlendSwap-CC-BY: the contributors of www.blendswap.com, named below. CC-BY-3.0, but for models whose own file says
otherwise.
BlendSwap-CC-0: (C) 2014 Emmanuel PUYBARET / eTeks and other contributors of www.blendswap.com. CC0-1.0, but for models
whose own file says otherwise. Credit is not asked for and is given in shapes.csv.

---- Authors of models under CC-BY, with their models ----

{authors}
"""


def write_license(path: Path, rows: list[dict[str, str]]) -> None:
    """The licence file, with every author whom a licence asks to be named."""
    counts = Counter(row["licence"] for row in rows)
    models: dict[str, list[str]] = {}
    for row in rows:
        if row["licence"] != "CC0-1.0":
            note = "" if row["title"] == row["called"] else f' ("{row["title"]}")'
            address = f", {row['source']}" if row["source"] else ""
            whole = row["library"] in ("KatorLegaz", "Reallusion", "Scopia")
            models.setdefault(row["author"], []).append("" if whole else f"  {row['called']}{note}{address}")
    authors = []
    for author, made in sorted(models.items()):
        named = sorted(set(made) - {""})
        authors += [f"{author}: {len(made)} model{'s' * (len(made) > 1)}", *named]
    note = "\n".join(f"{count} models: {name}" for name, count in sorted(counts.items()))
    text = LICENSE.format(package=PACKAGE, points=POINTS, counts=note, authors="\n".join(authors))
    path.write_text(text, encoding="utf-8")


def class_of(name: str, called: str) -> str:
    """The class of a shape by the head noun of what it is called; empty when there is none."""
    if name in OTHER:
        return OTHER[name]
    core = re.split(r" with | on | and |,| - |\d", called.lower())[0].strip()
    matches = [
        (len(head), label)
        for label, heads in HEADS.items()
        for head in heads.split(", ")
        if core == head or core.endswith(" " + head)
    ]
    return max(matches)[1] if matches else ""


def models(library: zipfile.ZipFile) -> list[dict[str, str]]:
    """The catalogue's entries."""
    entries: dict[int, dict[str, str]] = {}
    for line in library.read("PluginFurnitureCatalog.properties").decode("latin1").splitlines():
        match = re.match(r"(\w+)#(\d+)=(.*)", line)
        if match:
            entries.setdefault(int(match[2]), {})[match[1]] = match[3].strip()
    return [entries[number] for number in sorted(entries)]


def credit(library: zipfile.ZipFile, kind: str, entry: dict[str, str]) -> dict[str, str]:
    """Title, author, address and licence of a model, by the licence file in its folder and the catalogue."""
    licence, author = LIBRARIES[kind]
    folder = entry["model"].strip("/").rsplit("/", 1)[0] + "/"
    names = [n for n in library.namelist() if n.startswith(folder) and n.lower().endswith((".txt", ".html"))]
    attribution = {"title": entry["name"], "author": author or entry["creator"], "source": "", "licence": licence}
    if author or not names:
        return attribution
    text = html.unescape(library.read(names[0]).decode("utf-8", "replace"))
    title = re.search(r'downloading "(.*?)" by (.*)', text) or re.search(r"<title>(.*) by (.*?) - \d+", text)
    other = re.search(r"<title>\d+ - (.*?) - Downloaded", text, re.S)
    number = re.search(r"blendswap\.com/blends/view/(\d+)", text) or re.search(r"/(\d{5}) ?-", names[0])
    if title:
        attribution["title"] = title[1].strip()
        file_author = title[2].strip()
        if file_author.lower() not in attribution["author"].lower():
            attribution["author"] += f" (the model's licence file: {file_author})"
    elif other:
        attribution["title"] = other[1].strip()
    if number:
        attribution["source"] = f"www.blendswap.com/blends/view/{number[1]}"
    by = "Creative Commons Attribution 3.0" in text
    zero = re.search(r"Creative Commons Zero|publicdomain/", text) is not None
    if by != zero:
        attribution["licence"] = "CC-BY-3.0" if by else "CC0-1.0"
    return attribution


def stable(text: str) -> int:
    """A 63-bit number that follows from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def shape(library: zipfile.ZipFile, entry: dict[str, str], key: int) -> np.ndarray:
    """Two draws from a surface, float32 [2, 1024, 3], upright, the first of them within the unit sphere."""
    text = library.read(entry["model"].strip("/")).decode("latin1")
    faces = [line for line in text.splitlines() if not (line.startswith("f ") and len(line.split()) < 4)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.obj"
        path.write_text("\n".join(faces), encoding="latin1")  # without faces of two corners, which two models have
        points = read_cloud(path, 2 * POINTS, key).double()
    if "modelRotation" in entry:
        turn = torch.tensor([float(value) for value in entry["modelRotation"].split()], dtype=torch.float64)
        points = points @ turn.reshape(3, 3).T
    points = points - points[:POINTS].mean(0)
    return (points / points[:POINTS].norm(dim=1).max()).float().numpy().reshape(2, POINTS, 3)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Chamfer distance: the mean squared one to the nearest point of the other, both ways."""
    forward, back = cKDTree(second).query(first)[0], cKDTree(first).query(second)[0]
    return float((forward**2).mean() + (back**2).mean())


def groups(draws: np.ndarray) -> list[int]:
    """Number of the first copy of each shape; its own for most."""
    points, others = draws[:, 0], draws[:, 1]
    radii = np.stack([np.histogram(np.linalg.norm(cloud, axis=1), 16, (0, 1))[0] / POINTS for cloud in points])
    boxes = points.max(1) - points.min(1)
    own = [distance(*pair) for pair in draws]
    first = list(range(len(points)))
    for i in range(len(points)):
        alike = (np.abs(radii[:i] - radii[i]).sum(1) < 0.35) & (np.abs(boxes[:i] - boxes[i]).max(1) < 0.1)
        for j in np.flatnonzero(alike):
            if first[j] == j and distance(points[i], others[j]) < NEAR * max(own[i], own[j]):
                first[i] = int(j)
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
    """All files of the sample; prints what could not be read, and copies."""
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
                label, room = class_of(name, entry["name"]), entry["category"]
                rows.append(
                    {
                        "name": name,
                        "called": entry["name"],
                        "class": label,
                        "split": "",
                        "room": room,
                        "library": kind,
                        **credit(library, kind, entry),
                    }
                )
    draws = np.stack(clouds)
    first = groups(draws)
    split(rows, first)
    for i, j in enumerate(first):
        if i != j:
            print(f"copy: {rows[i]['name']} of {rows[j]['name']}")
    np.save(target / "points.npy", draws[:, 0].astype(np.float16))
    with open(target / "shapes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_license(target / "LICENSE", rows)


if __name__ == "__main__":
    main()
