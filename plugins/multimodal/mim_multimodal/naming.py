"""What is said where the files of an item are not found: names that differ between folders, and endings that are not
read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mim_core import MimError, counted, left_out

from mim_multimodal.items import Items

FEW = 0.1
"""Files of a modality whose items have another one, as a share of those that could; up to this they do not belong
together."""


def apart(items: Items, wanted: Sequence[str]) -> dict[str, int]:
    """Modalities whose files hardly ever have the same name as one of another -> how many have."""
    stems = {name: {stem for stem, end in zip(items.stems, items.endings[name], strict=True) if end} for name in wanted}
    counts = {}
    for name, own in stems.items():
        others = set().union(*(each for other, each in stems.items() if other != name))
        if own and others and len(own & others) <= FEW * min(len(own), len(others)):
            counts[name] = len(own & others)
    return counts


def do_not_match(items: Items, wanted: Sequence[str], few: Mapping[str, int]) -> str:
    """That names must be equal, with one of each folder, and what to do."""
    counts = ", ".join(
        f"{together:,} of {counted(sum(map(bool, items.endings[name])), f'{name} file')}"
        for name, together in few.items()
    )
    examples = [items.file(name, i) for name in wanted if (i := _first(items, name)) is not None]
    suffixes = _suffixes(items, wanted)
    arguments = " ".join(f"{name} {suffix}" for name, suffix in suffixes.items())
    way = (
        f"Their names end in a word of their own, so say it: --data.suffixes {arguments}"
        if suffixes
        else "Rename them; or, where the names of a folder end in a word of their own, say it: --data.suffixes rgb "
        "_rgb depth _depth"
    )
    return (
        f"The files of {items.root} do not come together: {counts} have the same name as a file of another modality. "
        f"Names must be equal in every folder but for the ending; here they are such as {', '.join(examples)}.\n{way}"
    )


def _first(items: Items, modality: str) -> int | None:
    return next((i for i, ending in enumerate(items.endings[modality]) if ending), None)


def _suffixes(items: Items, wanted: Sequence[str]) -> dict[str, str]:
    """What the names of each modality all end in, where most items come together without it."""
    if any(items.suffixes.get(name) for name in wanted):
        return {}
    suffixes, bare = {}, Counter[str]()
    for name in wanted:
        stems = [stem for stem, ending in zip(items.stems, items.endings[name], strict=True) if ending]
        suffix = _common_end(stems)
        bare.update(stem.removesuffix(suffix) for stem in stems)
        if suffix:
            suffixes[name] = suffix
    together = sum(count > 1 for count in bare.values())
    return suffixes if 2 * together >= len(bare) else {}


def _common_end(stems: Sequence[str]) -> str:
    """The word that all names end in, such as "_rgb"."""
    if len(stems) < 2:
        return ""
    backwards = sorted(stem[::-1] for stem in stems)
    pairs = list(zip(backwards[0], backwards[-1], strict=False))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    end = backwards[0][:same][::-1].rpartition("/")[2]
    word = re.search(r"[_\-. ].*", end) or re.search(r"\D.*", end)
    return word.group() if word else ""


def nothing_read(
    folder: Path, modality: str, endings: Sequence[str], others: Mapping[str, int], suffix: str = ""
) -> MimError:
    """The error for a folder of a modality without any file that is read there."""
    listing = ", ".join(f"{count:,} x {ending}" for ending, count in Counter(others).most_common(5)) or "no file"
    names = f" whose names end in {suffix!r} (--data.suffixes)" if suffix else ""
    return MimError(
        f"No {modality} in {folder}: it has {listing}. Read there are {' '.join(endings)}{names}. Convert the files, "
        f"name another folder with --data.folders {modality} FOLDER, or train without: --use {modality}.tokenizer=none"
    )


def endings_of(others: Mapping[str, Mapping[str, int]]) -> tuple[str, list[str]]:
    """Files that are not read, by their folder: all of them for the plan; those that look like data, as warnings."""
    every, data = [], []
    for folder, endings in others.items():
        all_of_them, like_data = left_out(endings)
        if all_of_them:
            every.append(f"{folder}/: {all_of_them}")
        if like_data:
            data.append(f"left out of {folder}/: {like_data}")
    return "; ".join(every), data
