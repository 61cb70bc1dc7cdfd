"""What is said of aligned data before a run: which items there are, and what some of the files hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mim_core import counted, in_time

from mim_multimodal import files, maps, naming, normals
from mim_multimodal.items import Items
from mim_multimodal.layouts import MODALITIES

LOOKS = 32
"""Items that are looked at, evenly spaced."""
BUDGET = 64_000_000
"""Pixels of a modality that are looked at; at most one file goes beyond."""
DARK = 64
"""Colours that stay below this of 255 in all files are rarely meant."""
DEEP = "16 bits read as 8"
LISTED = 12
"""Class ids or names that are listed."""
LONE = 0.01
"""Share of a depth map that a value far beyond all others must take to be named."""
FAR = 4
NEAR_ZERO = 0.01
"""Share of the largest depth, below which a map with a lone 0 has no other value."""
UNEVEN = 0.2
"""How far from 1 the mean length of normals is named."""
FLAT = 3e-3
"""Deviation of a depth map beside which the 0.001 that standardising adds to it counts."""


@dataclass
class Looked:
    """What some of the files hold.

    Attributes:
        texts: Modality -> what its files hold.
        advice: What is rarely meant.
        items: How many items were looked at.
        kinds: Kinds of depth maps.
    """

    texts: dict[str, str] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    items: int = 0
    kinds: tuple[str, ...] = ()


def plan(source: Any) -> dict[str, str]:
    """Where items come from, how many, which modalities, what is missing, classes and bit depth."""
    collection = source.collection
    root = "the bundled sample (Freedoom, BSD licence)" if source.bundled else str(source.config.root)
    sizes = (f"{name} {' x '.join(map(str, shape))}" for name, shape in source.shapes.items())
    labels = f"{len(source.labels.classes)} classes of items" if source.labels.classes else "no classes of items"
    rows = {
        "data": f"{root}: {len(source):,} items for training, {len(collection.test):,} held out, {labels}",
        "modalities": ", ".join(sizes),
    }
    if collection.note:
        rows["split"] = collection.note
    if collection.missing:
        rows["missing files"] = _missing(source)
    if "semseg" in source.shapes:
        rows["classes"] = _classes_of_maps(source)
    if "depth" in source.shapes:
        rows["depth maps"] = _bits(source)
    return rows


def _classes_of_maps(source: Any) -> str:
    if source.class_count:
        return f"{source.class_count}"
    if "semseg" in source.ids:
        return f"{source.ids['semseg']}, as the tokenizer has; there is no classes.txt"
    return "not stated, so ids are not checked: write classes.txt, or give --data.classes"


def _missing(source: Any) -> str:
    """How many files are missing, and what becomes of their items."""
    counts = ", ".join(f"{name} of {len(names):,}" for name, names in source.collection.missing.items())
    kept = "kept, and what they lack is hidden" if source.config.missing == "mask" else "left out"
    left_out = source.collection.left_out
    return f"{counts}; {f'{left_out:,} items are' if left_out else 'these items are'} {kept}"


def _bits(source: Any) -> str:
    """Bit depth of depth maps, as the option or a look at some of the files says."""
    if source.config.depth_bits is not None:
        return f"{source.config.depth_bits} bits"
    kinds = source.depth_kinds()
    return "; ".join(f"{kind} in {file}" for kind, file in kinds.items()) + "; each file's own" if kinds else "none"


def advice(source: Any) -> list[str]:
    """What is missing or left out, depth maps of several kinds in one folder, and what in the files is rarely meant."""
    lines = [f"missing files: {_missing(source)}"] if source.collection.missing else []
    for name, count in source.without_ids.items():
        if count:
            note = f"{counted(count, 'item')} without ids of {name} in {source.tokens[name].folder}"
            lines.append(f"{note}; kept, and {name} is hidden there")
    lines += source.copied
    depth_files = source.depth_kinds() if "depth" in source.shapes and not source.config.depth_bits else {}
    if len(depth_files) > 1:
        kinds = ", ".join(f"{file} has {kind}" for kind, file in depth_files.items())
        lines.append(f"depth maps are of different kinds: {kinds}. To refuse all but one: --data.depth-bits 8 (or 16).")
    lines += source.collection.advice
    return [*lines, *_left_out(source)[1], *source.looked().advice]


def contents(source: Any) -> dict[str, str]:
    """Splits, classes, what is left out, and what some of the files hold."""
    held = f"{len(source.collection.test):,} items, drawn by their names, are held out"
    rows = {"splits": source.collection.splits or f"none: {held}"}
    names = source.labels.classes
    if names:
        more = f"; of maps {_classes_of_maps(source)}" if "semseg" in source.shapes else ""
        rows["classes"] = f"{len(names)} of items ({_some(names)}){more}"
    left_out = _left_out(source)[0]
    if left_out:
        rows["left out"] = left_out
    texts = source.looked().texts
    if texts:
        looked = f"{source.looked().items:,} of {len(source):,} looked at"
        rows["files hold"] = f"{looked}: {'; '.join(f'{name} {text}' for name, text in texts.items())}"
    return rows


def _left_out(source: Any) -> tuple[str, list[str]]:
    """Files whose endings are not read, and folders of no modality: for people, and those that look like data."""
    if source.bundled:
        return "", []
    others, beside = {}, dict[str, None]()
    for items in (items for items in source.collection.every() if len(items)):
        head = f"{items.split}/" if items.split else ""
        beside.update(dict.fromkeys(f"{head}{name}/" for name in items.beside))
        for name, folder in items.folders.items():
            if name in source.shapes and folder in items.others:
                others[head + folder] = items.others[folder]
    text, data = naming.endings_of(others)
    if beside:
        folders = _some(list(beside), lambda name: name)
        text = f"{text}{'; ' if text else ''}folders of no modality: {folders}"
    return text, data


def _some(values: Any, write: Callable[[Any], str] = str) -> str:
    return ", ".join(write(value) for value in values[:LISTED]) + (", ..." if len(values) > LISTED else "")


# ---- looking into files ----------------------------------------------------------------------------------------------


def look(source: Any, items: Items | None = None, wanted: Collection[str] | None = None) -> Looked:
    """Reads some of the files for training, and says what is in them. What is wrong with one is said here too.

    Args:
        source: Aligned data.
        items: Which items; all for pre-training by default.
        wanted: Which modalities; those of the tokenizers by default.
    """
    done = Looked()
    lookers = {
        "rgb": _look_at_rgb,
        "depth": _look_at_depth,
        "normal": _look_at_normals,
        "semseg": _look_at_ids,
        "caption": _look_at_captions,
    }
    for name in MODALITIES:
        if name in (source.shapes if wanted is None else wanted):
            looker = _Looker(source.collection.pretrain if items is None else items, name)
            text = lookers[name](looker, source, done.advice)
            done.kinds = tuple(looker.kinds) if name == "depth" else done.kinds
            if looker.seen or looker.bad:
                done.texts[name] = looker.summary(text)
                done.items = max(done.items, looker.seen + looker.bad)
    return done


class _Looker:
    """Goes through files of a modality, and counts those that cannot be read."""

    def __init__(self, items: Items, modality: str) -> None:
        self.items, self.modality = items, modality
        self.seen, self.bad, self.why = 0, 0, ""
        self.sizes: set[tuple[int, int]] = set()
        self.kinds: dict[str, None] = {}

    def read(self, read: Callable[[Path, int], tuple[str, tuple[int, int], Any]]) -> Iterator[Any]:
        """What ``read`` makes of each file, which also tells its kind, height and width."""
        present = [i for i in range(len(self.items)) if self.items.has(self.modality, i)]
        places = np.linspace(0, len(present) - 1, min(LOOKS, len(present))).round().astype(int)
        pixels = 0
        for i in (present[place] for place in places):
            if pixels >= BUDGET:
                return
            file = self.items.file(self.modality, i)
            try:
                with in_time(file):
                    kind, size, values = read(self.items.root / file, i)
            except Exception as error:  # as when it is read for training, where it is replaced
                self.bad, self.why = self.bad + 1, self.why or f"{file}: {error}"
                continue
            self.seen += 1
            pixels += size[0] * size[1]
            self.sizes.add(size)
            self.kinds.setdefault(kind)
            yield values

    def summary(self, text: str) -> str:
        """Kinds, sizes and what was found, of how many files."""
        sizes = sorted(self.sizes)
        shown = [f"{width} x {height}" for height, width in ([sizes[0], sizes[-1]] if sizes[1:] else sizes) if width]
        parts = [" and ".join(kind for kind in self.kinds if kind), " to ".join(shown), text]
        bad = f"{self.bad} of {self.seen + self.bad} cannot be used ({self.why})" if self.bad else ""
        return ", ".join(part for part in (*parts, bad) if part)


def _look_at_rgb(looker: _Looker, source: Any, advice: list[str]) -> str:
    side = int(max(source.size) / source.config.area[0] ** 0.5) + 1

    def read(path: Path, _: int) -> tuple[str, tuple[int, int], Any]:
        with files.open_picture(path, whole=False) as image:
            packed = str(image.tile[0][3]) if image.tile else ""
            deep = image.mode in (*files.SIXTEEN, "I") or ";16" in packed
            kind = DEEP if deep else "8 bits"
        colour = files.read_rgb(path, side)
        return kind, colour.size, colour.image.getextrema()

    ends = [end for extrema in looker.read(read) for end in extrema]
    if not ends:
        return ""
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if high < DARK and DEEP in looker.kinds:
        advice.append(
            f"colours are nearly black: the largest value of {looker.seen} files looked at is {high} of 255, as 16 "
            "bits are read by their upper 8. Are they of 10 or 12 bits? Stretch them to the whole range first."
        )
    return f"{low} to {high}"


def _look_at_depth(looker: _Looker, source: Any, advice: list[str]) -> str:
    config = source.config
    negative, lone, zeros, flat, stands = [], [], [], [], dict[str, None]()

    def read(path: Path, _: int) -> tuple[str, tuple[int, int], Any]:
        values = maps.depth_values(path)
        below = values > -maps.FARTHEST
        negative.append(float((below & (values < 0)).mean()))
        depth = maps.measured(values, config.depth_bits, config.depth_invalid, config.depth_signed)
        lone.extend(_lone(depth))
        zeros.append(_lone_zero(depth))
        flat.extend(_flat(depth))
        stands.update(dict.fromkeys(maps.unmeasured(values, config.depth_invalid, config.depth_signed)))
        return maps.kind_of(values), depth.shape, (np.nanmin(depth), np.nanmax(depth), np.isnan(depth).mean())

    stats = list(looker.read(read))
    if not stats:
        return ""
    low, high = min(low for low, _, _ in stats), max(high for _, high, _ in stats)
    lacking = sum(share for _, _, share in stats) / len(stats)
    if max(negative) > 0 and not config.depth_signed:
        advice.append(
            f"depth is negative in {np.mean(negative):.1%} of the pixels looked at, which means not measured; if these "
            "are measured: --data.depth-signed"
        )
    if lone and len(lone) >= len(stats) / 10:
        value = f"{max(lone):.9g}"
        advice.append(
            f"the largest depth is {value} in {len(lone)} of {len(stats)} files looked at, far beyond all others: "
            f"if it means no measurement: --data.depth-invalid {value}"
        )
    if config.depth_invalid is None and sum(zeros) >= max(1, len(stats) / 10):
        advice.append(
            f"depth is 0 in {sum(zeros)} of {len(stats)} files looked at, and nothing else is near it: if it means no "
            "measurement: --data.depth-invalid 0"
        )
    if flat and low != high:
        advice.append(
            f"depth varies by {min(flat):.2g} in {len(flat)} of {len(stats)} files looked at, beside which the 0.001 "
            "that standardising adds counts, so the network sees them nearly flat: write depth in a smaller unit."
        )
    if lacking > 0.5:
        advice.append(f"of the depth maps looked at, {lacking:.0%} of the pixels are not measured.")
    if low == high:
        advice.append(
            f"the {len(stats)} depth maps looked at have the single value {low:.6g}: there is nothing to learn in them."
        )
    why = f" ({', '.join(stands)})" if stands else ""
    share = f", {lacking:.1%} not measured{why}" if lacking >= 5e-4 else ", a few pixels not measured" + why
    return f"{low:.6g} to {high:.6g}{share if lacking else ''}"


def _lone(depth: np.ndarray) -> list[float]:
    """The largest value, where it takes many pixels and all others are far below."""
    top = float(np.nanmax(depth))
    share = float((depth == top).mean())
    rest = depth[depth < top]
    return [top] if share >= LONE and rest.size and top > FAR * max(float(rest.max()), 0.0) else []


def _lone_zero(depth: np.ndarray) -> bool:
    """Whether 0 takes many pixels and no other value is near it."""
    rest = depth[depth > 0]
    few = not rest.size or bool((depth < 0).any()) or float((depth == 0).mean()) < LONE
    return not few and float(rest.min()) > NEAR_ZERO * float(rest.max())


def _flat(depth: np.ndarray) -> list[float]:
    """The deviation of the middle values of a map, where it is small."""
    values = np.sort(depth[~np.isnan(depth)])
    deviation = float(values[len(values) // 10 : max(1, len(values) * 9 // 10)].std())
    return [deviation] if 0 < deviation < FLAT else []


def _look_at_normals(looker: _Looker, source: Any, advice: list[str]) -> str:
    def read(path: Path, _: int) -> tuple[str, tuple[int, int], Any]:
        picture = normals.read_normal(path)
        return "8 bits", picture.size, normals.mean_length(picture)

    lengths = list(looker.read(read))
    if not lengths:
        return ""
    length = float(np.mean(lengths))
    if abs(length - 1) > UNEVEN:
        advice.append(
            f"the normals looked at are {length:.2f} long on average, and normals have the length 1: are these maps of "
            "normals, -1 to 1 as 0 to 255?"
        )
    return f"vectors {length:.2f} long on average"


def _look_at_ids(looker: _Looker, source: Any, advice: list[str]) -> str:
    seen: set[int] = set()
    none = []
    count = source.class_count or source.ids.get("semseg")

    def read(path: Path, _: int) -> tuple[str, tuple[int, int], Any]:
        values = maps.id_values(path)
        ids = maps.ids_of(values, count, source.config.values, source.config.void)
        none.append(float((ids == maps.IGNORE).mean()))
        return f"{8 * values.dtype.itemsize} bits", ids.shape, set(np.unique(ids).tolist())

    for ids in looker.read(read):
        seen |= ids
    known = sorted(seen - {maps.IGNORE})
    if looker.seen and len(known) < 2:
        _one_class(looker, known, maps.IGNORE in seen, advice)
    without = f", {np.mean(none):.1%} without a class" if any(none) else ""
    void = source.config.void
    shifted = "" if void is None else f", after {void} was taken out as no class (--data.void)"
    return f"ids {_some(known) or 'none'}{without}{shifted}" if none else ""


def _one_class(looker: _Looker, known: list[int], ignored: bool, advice: list[str]) -> None:
    text = f"the {looker.seen} class maps looked at have {f'the single class {known[0]}' if known else 'no class'}"
    if ignored and known:
        advice.append(
            f"{text} besides 255, which means no class: are they masks of 0 and 255? To make two classes of them: "
            f"--data.values {known[0]} 255 --semseg.tokenizer.classes 2"
        )
    elif ignored:
        advice.append(f"{text}: all is 255, which means no class.")
    else:
        advice.append(f"{text}, so there is nothing to tell apart in them.")


def _look_at_captions(looker: _Looker, source: Any, advice: list[str]) -> str:
    listed, many = looker.items.captions, []

    def read(path: Path, i: int) -> tuple[str, tuple[int, int], Any]:
        texts = listed[i] if listed else ()
        many.append(len(texts))
        return "", (0, 0), [len(files.check_caption(text)) for text in texts] or [len(files.read_text(path))]

    lengths = [length for each in looker.read(read) for length in each]
    if not lengths:
        return ""
    short, long = min(lengths), max(lengths)
    choices = f", up to {max(many)} for an item, of which one is drawn" if max(many) > 1 else ""
    return f"of {f'{short} to ' if short != long else ''}{long} characters{choices}"
