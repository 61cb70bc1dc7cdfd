"""Which aligned items there are: folders of modalities, with a file of the same name in each.

``ROOT/{train,test}/MODALITY/CLASS/.../name.ext``, or ``ROOT/MODALITY/{train,test}/...``; what splits are called is
`mim_core.data.collections`' rule, and items of ``unlabeled/`` are for pre-training alone. Without these folders it is
``ROOT/MODALITY/...``, and a fifth of the items, drawn by their names, is held out. Where ``ROOT/labels.csv`` has a
column of splits that holds items out, it counts before the folders. Captions may also be the rows of one
table, ``ROOT/captions.csv``; of several rows for one item, one is drawn at each reading.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from mim_core import HELD_OUT, MimError, collections, counted, name_code, nearest, split_of, walk_folders

from mim_multimodal import naming
from mim_multimodal.items import CAPTIONS, ENDINGS, Items
from mim_multimodal.table_splits import splits_by_table
from mim_multimodal.tables import LABELS, rows_of, split_rows

MODALITIES = ("rgb", "depth", "normal", "semseg", "caption")
SPACES = 64
"""Most bytes of a caption's file that is looked into for words before a run."""
BLANK = b"\xef\xbb\xbf \t\r\n\v\f"
"""What an empty caption may hold: UTF-8's mark, and white space."""
EXPECTED = (
    "It should hold train/MODALITY/CLASS/NAME and test/MODALITY/CLASS/NAME, or MODALITY/CLASS/NAME; modalities are "
    + ", ".join(f"{name} ({' '.join(endings)})" for name, endings in ENDINGS.items())
    + ", and CLASS may be left out."
)
Missing = Literal["refuse", "skip", "mask"]


@dataclass(frozen=True)
class ItemSplits:
    """The splits of a folder.

    Attributes:
        train: For pre-training and for training probes.
        more: Those of a folder of data without labels beside it, for pre-training alone; None where there is none.
        test: Held out from both.
        note: What a reader of scores should know about the split.
        missing: Modality -> the missing files, of items with a file of another wanted modality.
        left_out: How many items were left out because of that.
        splits: The folders that were taken for splits, for people; empty where there are none.
        advice: What was left out, and why.
    """

    train: Items
    test: Items
    note: str = ""
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: int = 0
    splits: str = ""
    advice: tuple[str, ...] = ()
    more: Items | None = None

    @cached_property
    def pretrain(self) -> Items:
        """All items for pre-training."""
        return self.train if self.more is None else self.train.and_those_of(self.more)

    def every(self) -> list[Items]:
        """The splits that are there: for training, held out, without labels."""
        return [self.train, self.test, *([] if self.more is None else [self.more])]


def find_items(
    root: Path,
    wanted: Sequence[str],
    folders: Mapping[str, str] | None = None,
    missing: Missing = "refuse",
    suffixes: Mapping[str, str] | None = None,
    splits: bool = True,
) -> ItemSplits:
    """The items below a folder. Files of modalities that are not wanted are found too, where their folder exists.

    Args:
        root: The folder.
        wanted: Modalities that every item should have.
        folders: Modality -> folder, where it is named otherwise.
        missing: What becomes of an item that lacks a wanted modality.
        suffixes: Modality -> what the names of its files end in, before the ending, and those of others do not.
        splits: Whether folders may be splits; without, all items are for pre-training.

    Raises:
        MimError: No such folders, no items, two files for one item, a missing file that is refused, or names that do
            not bring the modalities together.
    """
    named = {name: (folders or {}).get(name, name) for name in MODALITIES}
    find = _splits if splits else _one
    both = find(root, named, wanted, missing, suffixes or {})
    absent: dict[str, list[str]] = {}
    kept = []
    for items in both.every():
        lacking = {i: [name for name in wanted if not items.has(name, i)] for i in range(len(items))}
        for i, names in lacking.items():
            for name in names:
                absent.setdefault(name, []).append(items.file(name, i))
        kept.append([i for i, names in lacking.items() if missing == "mask" or not names])
    if absent and missing == "refuse":
        raise _incomplete(root, absent, both.train)
    if not kept[0]:
        raise MimError(
            f"None of the {len(both.train):,} items of {root} has a file of each of {', '.join(wanted)}: "
            f"{'; '.join(f'{len(files):,} lack {name}' for name, files in absent.items())}."
        )
    return replace(
        both,
        train=both.train.subset(kept[0]),
        test=both.test.subset(kept[1]),
        more=both.more.subset(kept[2]) if both.more is not None and kept[2] else None,
        missing={name: tuple(absent[name]) for name in MODALITIES if name in absent},
        left_out=sum(map(len, both.every())) - sum(map(len, kept)),
    )


def _together(items: Items, wanted: Sequence[str], missing: Missing) -> tuple[str, ...]:
    """Refuses a modality whose files hardly ever have the name of another's, or says so where some have and what lacks
    may be left out or hidden."""
    few = naming.apart(items, wanted)
    if few and (missing == "refuse" or not all(few.values())):
        raise MimError(naming.do_not_match(items, wanted, few))
    return tuple(naming.do_not_match(items, wanted, few).split("\n")) if few else ()


def _splits(
    root: Path, named: Mapping[str, str], wanted: Sequence[str], missing: Missing, suffixes: Mapping[str, str]
) -> ItemSplits:
    """The splits as the table has them, where it holds items out, or else the folders, with all their items."""
    table = root / LABELS
    rows = split_rows(table) if table.is_file() else []
    if not rows:
        return _of_folders(root, named, wanted, missing, suffixes)
    both = _one(root, named, wanted, missing, suffixes)
    whole = both.train
    given_splits, advice = splits_by_table(table, rows, whole)
    if "test" not in given_splits:
        item_splits = _of_folders(root, named, wanted, missing, suffixes)
        return replace(item_splits, advice=(*item_splits.advice, *advice))
    test = [i for i, split in enumerate(given_splits) if split == "test"]
    bare = [i for i, split in enumerate(given_splits) if not split and split_of(whole.home(i)) == "unlabelled"]
    train = sorted(set(range(len(given_splits))) - {*test, *bare})
    train, bare = (train, bare) if train else (bare, train)
    if not train:
        raise MimError(f"{table} holds out all {len(test):,} items of {root}; some must be for training.")
    note = f"as {table.name} says: {len(test):,} held out, {len(train):,} for training"
    note += f"; without labels {len(bare):,}" if bare else ""
    more = whole.subset(bare) if bare else None
    item_splits = ItemSplits(whole.subset(train), whole.subset(test), splits=note, more=more)
    return replace(item_splits, advice=(*both.advice, *advice))


def _of_folders(
    root: Path, named: Mapping[str, str], wanted: Sequence[str], missing: Missing, suffixes: Mapping[str, str]
) -> ItemSplits:
    """The splits as the folders have them, with all their items."""
    tops = _top_splits(root, named)
    held = next((name for name in HELD_OUT if name in tops), None)
    whole = "train" if "train" in tops else "unlabelled"
    if held and whole not in tops:
        raise MimError(f"{root} has {tops[held]}/ but no train/. {EXPECTED}")
    train = _scan(root, tops.get(whole, ""), named, wanted, suffixes, missing)
    advice = (*_together(train, wanted, missing), *_in_no_split(root, tops, named))
    if not tops:
        item_splits = _inner_splits(train)
        return replace(item_splits, advice=(*item_splits.advice, *advice))
    lenient = missing == "mask"
    train, inner, lost = _without_held(train)
    test = _scan(root, tops[held], named, wanted, suffixes, missing, lenient) if held else inner
    advice = (*advice, *lost) if held else advice
    more = None
    if whole == "train" and "unlabelled" in tops:
        more = _scan(root, tops["unlabelled"], named, wanted, suffixes, missing, lenient or missing == "skip")
        more, _, lost = _without_held(more)
        advice = (*advice, *lost)
    if held is None and inner is not None:
        held = collections.HELD_OUT[0]
        tops = {**tops, held: os.path.dirname(inner.name(0))}
    uses = {whole: f"for training ({len(train):,})", held: f"held out ({len(test or ()):,})"}
    uses |= {"unlabelled": f"without labels ({len(more):,})"} if more is not None else {}
    notes = [f"{tops[kind]}/ {use}" for kind, use in uses.items() if kind is not None]
    unused = [f"{folder}/" for kind, folder in tops.items() if kind not in uses]
    notes += [f"{', '.join(unused)} not used"] if unused else []
    for items in (test, more) if missing == "refuse" else ():
        if items is not None:
            _together(items, wanted, missing)
    item_splits = _drawn(train) if test is None else ItemSplits(train, test)
    return replace(item_splits, splits="; ".join(notes), advice=advice, more=more)


def _one(
    root: Path, named: Mapping[str, str], wanted: Sequence[str], missing: Missing, suffixes: Mapping[str, str]
) -> ItemSplits:
    """All items, whatever split their folders say."""
    lenient = {"": missing == "mask", "unlabelled": missing != "refuse"}
    tops = _top_splits(root, named) or {"": ""}
    every = [
        _scan(root, top, named, wanted, suffixes, missing, lenient.get(kind, lenient[""])) for kind, top in tops.items()
    ]
    whole = functools.reduce(Items.and_those_of, every)
    return ItemSplits(whole, whole.subset(()), advice=_together(whole, wanted, missing))


def _without_held(items: Items) -> tuple[Items, Items | None, tuple[str, ...]]:
    """Items of a split for training, without those in a held-out folder inside it; those, where there are any; and what
    to say where they are left out."""
    kinds = collections.splits_of([tuple(stem.split("/")[:-1]) for stem in items.stems])
    held = [i for i, kind in enumerate(kinds) if kind in HELD_OUT]
    if not held or len(held) == len(items):
        return items, None, ()
    others = sorted(set(range(len(items))) - set(held))
    lost = f"{counted(len(held), 'item')} of {items.root / items.split} left out"
    note = f"{lost}: they lie in held-out folders inside it ({items.name(held[0])})."
    return items.subset(others), items.subset(held), (note,)


def _top_splits(root: Path, named: Mapping[str, str]) -> dict[str, str]:
    """Split -> the folder of the root that is named like it."""
    tops: dict[str, str] = {}
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in named.values()]
    kinds = collections.split_names([(path.name,) for path in folders])
    for path in folders:
        kind = kinds.get(path.name)
        if kind is None:
            continue
        if kind in tops:
            raise MimError(
                f"{root} has two folders that are named like one split, {tops[kind]}/ and {path.name}/. Put their "
                "files into one of them, or move one away."
            )
        tops[kind] = path.name
    return tops


def _in_no_split(root: Path, tops: Mapping[str, str], named: Mapping[str, str]) -> list[str]:
    """A warning of folders with modalities of their own that are no split, and of lists of splits that are not read."""
    others = sorted(
        path for path in root.iterdir() if path.is_dir() and path.name not in (*tops.values(), *named.values())
    )
    full = [f"{path.name}/" for path in others if any((path / folder).is_dir() for folder in named.values())]
    full = [] if root == Path(__file__).parent / "sample" else full  # its clips are another source's
    notes = [f"{root}: {', '.join(full[:5])} left out: named like no split."] if full else []
    return notes if tops else [*notes, *collections.unread_lists(root, "item")]


def _inner_splits(items: Items) -> ItemSplits:
    """Splits inside the modalities' folders, rgb/train/1.png; without any, a fifth is drawn."""
    parts = [stem.split("/")[:-1] for stem in items.stems]
    named = collections.split_names([tuple(each) for each in parts])
    places = [collections.deciding(each, named) for each in parts]
    names = ["" if place is None else each[place] for each, place in zip(parts, places, strict=True)]
    kinds = [named.get(name) for name in names]
    if not any(kinds):
        return _drawn(items)
    held = next((name for name in HELD_OUT if name in kinds), None)
    own = {"train", "unlabelled"} if "train" in kinds else {None, "unlabelled"}
    train = [i for i, kind in enumerate(kinds) if kind in own]
    test = [i for i, kind in enumerate(kinds) if kind == held and held]
    rest = [i for i, kind in enumerate(kinds) if kind is None] if "train" in kinds else []
    if not train:
        raise MimError(f"{items.root} has held-out items only ({items.name(0)}), and no train/ beside them. {EXPECTED}")
    if rest and held is None:
        raise MimError(
            f"{items.root} has {items.name(train[0])} in a folder named like a split, and {items.name(rest[0])} in "
            "none. Give all of them splits, such as rgb/train/ and rgb/test/; if it is a class, give it another name."
        )
    uses = {"for training": train, "held out": test}
    unused = sorted(set(range(len(kinds))) - {*train, *test, *rest})
    notes = [
        f"{', '.join(sorted({f'{names[i]}/' if names[i] else 'all others' for i in some}))} {use} ({len(some):,})"
        for use, some in {**uses, "not used": unused}.items()
        if some
    ]
    left_out = f"{counted(len(rest), 'item')} of {items.root} left out: in no split" if rest else ""
    advice = (f"{left_out} ({items.name(rest[0])}).",) if rest else ()
    whole = items.subset(train)
    item_splits = ItemSplits(whole, items.subset(test)) if held else _drawn(whole)
    return replace(item_splits, splits="; ".join(notes), advice=advice)


def _incomplete(root: Path, absent: Mapping[str, Sequence[str]], items: Items) -> MimError:
    count = sum(map(len, absent.values()))
    shown = "\n  ".join([file for files in absent.values() for file in files][:5])
    _, other = naming.endings_of({items.folders[name]: items.others.get(items.folders[name], {}) for name in absent})
    more = "".join(f"\n{text[0].upper()}{text[1:]}; convert these, if they are what is missing." for text in other)
    return MimError(
        f"{counted(count, 'file')} {'is' if count == 1 else 'are'} missing in {root}, "
        f"of items with a file of another modality:\n  {shown}{more}\n"
        "Leave these items out with --data.missing skip, or keep them with --data.missing mask, which hides the "
        "modality that an item lacks."
    )


def _drawn(items: Items) -> ItemSplits:
    """A split by the names of the items, so that further items move none of the others."""
    codes = [name_code(stem) for stem in items.stems]
    test = [i for i, code in enumerate(codes) if code % 5 == 0]
    if len(codes) > 1 and len(test) in (0, len(codes)):  # too few items for a fifth
        test = [codes.index(min(codes))]
    held = set(test)
    train = [i for i in range(len(codes)) if i not in held]
    where = f"{items.root / items.split}"
    note = (
        f"{where} has no held-out split: {len(test):,} of its {len(codes):,} items, drawn by their names, are held out "
        "from pre-training and from the probes' training."
    )
    return ItemSplits(items.subset(train), items.subset(test), note)


def _scan(
    root: Path,
    split: str,
    named: Mapping[str, str],
    wanted: Sequence[str],
    suffixes: Mapping[str, str],
    missing: Missing,
    lenient: bool = False,
) -> Items:
    """All items with a file in a wanted modality, in the order of their names; ``lenient``: some modalities may have no
    folder."""
    base = root / split
    files: dict[str, dict[str, str]] = {}
    others: dict[str, Mapping[str, int]] = {}
    captions: dict[str, list[str]] = {}
    for name in MODALITIES:
        folder = base / named[name]
        if name == "caption" and not folder.is_dir() and (root / CAPTIONS).is_file():
            captions = _captions(root / CAPTIONS, split, named, suffixes)
            files[name] = dict.fromkeys(captions, ".csv")
        elif folder.is_dir():
            files[name], rest = _walk(folder, name, suffixes.get(name, ""))
            others[named[name]] = rest
            if name == "caption" and name in wanted and missing != "refuse":
                _leave_empty(folder, files[name], rest)
            of_data = naming.endings_of({named[name]: others[named[name]]})[1]
            if name in wanted and not files[name] and (of_data or missing != "mask"):
                raise naming.nothing_read(folder, name, ENDINGS[name], others[named[name]], suffixes.get(name, ""))
        elif name in wanted and not lenient:
            raise _no_folder(base, name, named[name], alone=len(wanted) == 1)
    stems = sorted({stem for name in wanted for stem in files.get(name, ())})
    if not stems:
        looked = "; ".join(f"{named[name]}: {' '.join(ENDINGS[name])}" for name in wanted)
        raise MimError(f"No items in {base}. Looked for {looked}.")
    endings = {name: tuple(files.get(name, {}).get(stem, "") for stem in stems) for name in {*files, *wanted}}
    folders = {n: f for n, f in named.items() if n in endings}
    beside = tuple(name for name in _folders(base) if name not in named.values())
    listed = tuple(tuple(captions.get(stem, ())) for stem in stems) if captions else ()
    return Items(root, split, folders, tuple(stems), endings, listed, suffixes, others, beside)


def _folders(base: Path) -> list[str]:
    paths = base.iterdir() if base.is_dir() else ()
    return sorted(path.name for path in paths if path.is_dir() and not path.name.startswith("."))


def _captions(table: Path, split: str, named: Mapping[str, str], suffixes: Mapping[str, str]) -> dict[str, list[str]]:
    """Stem -> captions of a split, each once, from a table (columns path and caption; an empty caption is none). Its
    paths may name the split, the modality and the ending, or leave them out; without a split they hold for every
    one."""
    captions: dict[str, list[str]] = {}
    folders = set(named.values())
    for path, text in rows_of(table, "caption"):
        parts = path.split("/")
        if split and split_of(parts[0]):
            if split_of(parts[0]) != split_of(split):
                continue
            parts = parts[1:]
        parts = parts[1:] if parts and parts[0] in folders and len(parts) > 1 else parts
        stem, ending = os.path.splitext("/".join(parts))
        stem = stem if any(ending.lower() in endings for endings in ENDINGS.values()) else stem + ending
        stem = stem.removesuffix(next((end for end in suffixes.values() if end and stem.endswith(end)), ""))
        text = " ".join(text.split())
        if text and text not in captions.get(stem, ()):
            captions.setdefault(stem, []).append(text)
    return captions


def _no_folder(base: Path, modality: str, folder: str, alone: bool = False) -> MimError:
    folders = _folders(base)
    near = nearest(folder, folders)
    guess = f" Is it {near!r}? Say so: --data.folders {modality} {near}." if near else ""
    if alone and not near:
        guess = f" If its files lie there themselves: --data.folders {modality} ."
    if not alone:
        guess += f" Without {modality}: --use {modality}.tokenizer=none; of predict and embed, --given with the others."
    return MimError(
        f"{base} has no folder {folder!r} for the modality {modality}, which the tokenizers want.{guess}\n"
        f"Folders there: {', '.join(folders[:12]) or 'none'}. {EXPECTED}"
    )


def _leave_empty(folder: Path, files: dict[str, str], others: Counter[str]) -> None:
    """A caption without any word is none, as in a table: takes such files out and counts them among those that are not
    read. What cannot be looked at stays, and is named when it is read."""
    for stem, ending in list(files.items()):
        path = folder / f"{stem}{ending}"
        with suppress(OSError):
            if path.is_file() and path.stat().st_size <= SPACES and not path.read_bytes().strip(BLANK):
                del files[stem]
                others[f"{ending} without words"] += 1


def _walk(folder: Path, modality: str, suffix: str) -> tuple[dict[str, str], Counter[str]]:
    """Stem -> what its file's name ends in, of a modality's files; and the endings of other files."""
    by_stem: dict[str, str] = {}
    others: Counter[str] = Counter()
    for parent, names, _ in walk_folders(folder):
        inside = parent.relative_to(folder).as_posix()
        for name in names:
            stem, ending = os.path.splitext(name)
            if name.startswith("."):
                continue
            if ending.lower() not in ENDINGS[modality]:
                others[ending.lower() or "no ending"] += 1
                continue
            if not stem.endswith(suffix):
                others[f"{ending.lower()} without {suffix}"] += 1
                continue
            stem = stem.removesuffix(suffix)
            stem = stem if inside == "." else f"{inside}/{stem}"
            if stem in by_stem:
                raise MimError(
                    f"{folder} has two files for the item {stem!r}, {stem}{by_stem[stem]} and {stem}{suffix}{ending}; "
                    "remove one of them."
                )
            by_stem[stem] = sys.intern(suffix + ending)
    return by_stem, others
