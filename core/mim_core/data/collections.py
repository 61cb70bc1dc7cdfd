"""How a collection of files is split: which folders are for training, held out, or without labels, and what a class is.
One rule for every plugin.

The split of a file is the first folder on its path that is named like a split, or one for held-out files below it; its
class is the first folder that is no split. So ``train/cat/1.png``, ``cat/train/1.png`` and ``Training_Set/cat/1.png``
say the same. Names count in any case,
with a number or "set" behind them (``train2017``, ``test_set``). A folder named like a split is never a class, and a
file of a held-out split is never trained on. Where no folder has such a name alone, folders that differ in the word
for a split and in numbers only are splits too: ``seg_train`` beside ``seg_test``, ``01_train`` beside ``02_test``.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from mim_core.errors import MimError
from mim_core.text import counted

WORDS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "holdout": "test",
    "heldout": "test",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "unlabeled": "unlabelled",
    "unlabelled": "unlabelled",
}
"""What a folder is called, in lower case -> the split that is meant."""


HELD_OUT = ("test", "val")
"""Splits that are held out; of several, the first is used."""


_LISTS = ".txt .md .rst .csv .tsv .json .jsonl .xml .html .htm .yaml .yml .toml .ini .cfg .log .pdf .db .mat .mtl .cls"


BESIDE = frozenset((*_LISTS.split(), ".py", ".sh", ".ipynb", ".pkl", ".lock", "no_ending"))
"""Endings of what lies beside data: lists, notes, programs. Every other ending that is not read is a warning."""


_WORD = re.compile("|".join(sorted(WORDS, key=len, reverse=True)))
"""A word for a split anywhere in a name, as in trainA, mytrain and ILSVRC_img_train; the longest that stands there."""


_BEHIND = re.compile(r"[\s_\-]*(set|split|data|images?|imgs?|videos?|clips?|clouds?|\d+)$")


_BOTH = re.compile(r"train(ing)?[\s_\-+&]*(and[\s_\-]*)?val(id|idation)?")
"""Train and validation files together, as VOC has them: all for training."""


def split_of(name: str) -> str | None:
    """The split that a folder's name says: "train", "test", "val", "unlabelled", or None."""
    name = unicodedata.normalize("NFKC", name).strip().lower()
    name = re.sub(r"^(held|hold)[\s_\-]out", r"\1out", name)
    while name not in WORDS:
        if _BOTH.fullmatch(name):
            return "train"
        shorter = _BEHIND.sub("", name)
        if shorter == name:
            return None
        name = shorter
    return WORDS[name]


def split_in(name: str) -> str | None:
    """The split that a word in the name of a file says, such as of a shard, ``cats-train-0.tar``."""
    words = [WORDS[word] for word in re.findall(r"[^\W\d_]+", name.lower()) if word in WORDS]
    return words[-1] if words else None


def alike(names: Iterable[str]) -> dict[str, str]:
    """Names that differ in the word for a split and in numbers only, such as seg_train and seg_test, mytrain and
    mytest, or 01_train and 02_test, and the split of each; empty unless one says train and one a held-out split."""
    groups: dict[str, dict[str, str]] = {}
    for name in sorted(set(names)):
        for part in _WORD.finditer(name.lower()):  # a longer word is no rest that a shorter one could have
            rest = re.sub(r"\d+", "#", f"{name[: part.start()]}*{name[part.end() :]}".lower())
            groups.setdefault(rest, {})[name] = WORDS[part[0]]
    sure = [pairs for pairs in groups.values() if "train" in pairs.values() and set(HELD_OUT) & set(pairs.values())]
    return {name: split for pairs in sure for name, split in pairs.items()}


def split_names(folders: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """The folders that are splits, and which: by their own names. Where none of these is for training, also those at
    the first level at which folders differ, by the word in which they do; or by a word in each, as in train-clean-100
    beside dev-clean and test-other."""
    names = {name for parts in folders for name in parts}
    own = {name: split for name in names if (split := split_of(name))}
    if "train" in own.values() or not folders:
        return own
    level = next((i for i, level in enumerate(zip(*folders, strict=False)) if len(set(level)) > 1), None)
    if level is None:
        return own
    siblings = {parts[level] for parts in folders}
    words = {name: split for name in siblings if (split := own.get(name) or split_in(name))}
    splits = alike(siblings) or (words if len(words) == len(siblings) and _akin(words) else {})
    return {**splits, **own}


def _akin(words: Mapping[str, str]) -> bool:
    """Whether one of the names for training shares another word with one that is held out, as train-clean-100 and
    dev-clean do, and training_shoes and test_tubes do not."""
    rests = {name: {*re.findall(r"[^\W\d_]+", name.lower())} - {*WORDS} for name in words}
    train = [rests[name] for name, split in words.items() if split == "train"]
    return any(rests[name] & rest for name, split in words.items() if split in HELD_OUT for rest in train)


def deciding(parts: Sequence[str], named: Mapping[str, str]) -> int | None:
    """Which folder of a path says its split: the first that is held out, or else the first split; None without one."""
    places = [i for i, name in enumerate(parts) if name in named]
    return next((i for i in places if named[parts[i]] in HELD_OUT), next(iter(places), None))


def splits_of(folders: Sequence[tuple[str, ...]], named: Mapping[str, str] | None = None) -> list[str | None]:
    """The split that each path of folders says, None where it says none.

    Args:
        folders: The folders on the path of each file.
        named: Which folders are splits, see `split_names`, which is asked where it is not given.
    """
    known = split_names(folders) if named is None else named
    places = [deciding(parts, known) for parts in folders]
    return [None if i is None else known[parts[i]] for parts, i in zip(folders, places, strict=True)]


@dataclass(frozen=True)
class Arrangement:
    """What a collection's folders say. All numbers are places in the list of files.

    Attributes:
        pretrain: Files for training without labels.
        train: Files for training on labels.
        test: Files that are held out; None where no folder says so.
        labels: Class of each file; -1 where it has none.
        classes: Names of the classes; None when there are fewer than two.
        splits: The folders that were taken for splits, for people; empty where there are none.
        advice: What was left out, and why.
    """

    pretrain: tuple[int, ...]
    train: tuple[int, ...]
    test: tuple[int, ...] | None
    labels: tuple[int, ...]
    classes: tuple[str, ...] | None
    splits: str = ""
    advice: tuple[str, ...] = ()


def arrange(files: Sequence[str], root: PurePath, noun: str = "file", splits: bool = True) -> Arrangement:
    """Splits and classes of files, by the folders on their paths.

    Args:
        files: Paths below the root.
        root: The collection, for messages.
        noun: What a file is called in messages, such as "image".
        splits: Whether folders may be splits and classes; without, all files are one collection.

    Raises:
        MimError: All files are held out; a split lies beside folders that are none, so that both readings are
            possible; or the classes of the splits differ.
    """
    if not splits:
        return Arrangement(tuple(range(len(files))), tuple(range(len(files))), None, (-1,) * len(files), None)
    folders = [PurePath(file).parts[:-1] for file in files]
    named = split_names(folders)
    kinds = splits_of(folders, named)
    if not any(kinds):
        return _one_collection(files, folders, root, noun)
    by_split = {name: tuple(i for i, split in enumerate(kinds) if split == name) for name in (*WORDS.values(), None)}
    rest, advice = by_split[None], list[str]()
    held = next((name for name in HELD_OUT if by_split[name]), None)
    if by_split["train"] and rest:
        _refuse_two_readings(root, folders, rest, held, named)
        advice.append(
            f"{counted(len(rest), noun)} of {root} left out: they lie in none of its splits ({files[rest[0]]})."
        )
    train = by_split["train"] or rest
    advice += _held_words(root, folders, train, noun, named)
    pretrain = tuple(sorted((*train, *by_split["unlabelled"])))
    train = train or pretrain
    if not pretrain:
        name = _folder(folders, by_split[held or "test"], named)
        raise MimError(
            f"{root} has only held-out {noun}s ({name}/), which are never trained on. It should have a folder train/ "
            f"beside them; to train on these all the same, name that folder: --data.root {root / name}"
        )
    names = _class_names(folders, named)
    labels, classes = _labels(names, train)
    test = by_split[held] if held else None
    if classes is not None and test is not None:
        _same_classes(root, noun, _folder(folders, test, named), classes, {names[i] for i in test})
    unused = [name for name in HELD_OUT if name != held and by_split[name]]
    text = _splits_text(folders, named, {"for training": train, "without labels": by_split["unlabelled"],
                                         "held out": test or (),
                                         "not used": tuple(i for name in unused for i in by_split[name])})  # fmt: skip
    return Arrangement(pretrain, train, test, labels, classes, text, tuple(advice))


def _one_collection(files: Sequence[str], folders: Sequence[tuple[str, ...]], root: PurePath, noun: str) -> Arrangement:
    """Files of no split; their classes are the first folders."""
    everything = tuple(range(len(files)))
    labels, classes = _labels([parts[0] if parts else "" for parts in folders], everything)
    return Arrangement(everything, everything, None, labels, classes, advice=_like_splits(root, files, noun))


def every_fifth(labels: Sequence[int], items: Iterable[int]) -> tuple[list[int], list[int]]:
    """Holds every fifth item of each class out, in the order given: (the others, those held out)."""
    seen: Counter[int] = Counter()
    kept, held = list[int](), list[int]()
    for item in items:
        (held if seen[labels[item]] % 5 == 4 else kept).append(item)
        seen[labels[item]] += 1
    return kept, held


def listed_once(
    lists: Mapping[str, Sequence[tuple[Hashable, str]]], root: PurePath, noun: str = "file"
) -> tuple[tuple[list[int], ...], tuple[str, ...]]:
    """The rows of lists that count: of each item the first row of a list, and none for training of what another list
    holds out.

    Args:
        lists: Name of a list -> (item, class) of its rows; the list for training is the first.
        root: The collection, for messages.
        noun: What an item is called.

    Returns:
        (numbers of the rows that count, for each list; what was left out, as warnings).
    """
    first, *others = lists
    held = {item for name in others for item, _ in lists[name]}
    kept, notes = list[list[int]](), list[str]()
    for name, rows in lists.items():
        seen, places = dict[Hashable, str](), list[int]()
        both, again, two = list[Hashable](), list[Hashable](), list[Hashable]()
        for place, (item, label) in enumerate(rows):
            if item in seen:
                (again if seen[item] == label else two).append(item)
            elif name == first and item in held:
                both.append(item)
            else:
                seen[item] = label
                places.append(place)
        kept.append(places)
        dropped = (
            (both, f"listed for training in {name} and held out by another list: never trained on"),
            (again, f"listed more than once in {name}: counted once"),
            (two, f"listed in {name} with more than one class: the first is taken"),
        )
        notes += [f"{counted(len(rest), noun)} of {root} {text} ({_item(rest[0])})." for rest, text in dropped if rest]
    return tuple(kept), tuple(notes)


def _item(item: Hashable) -> str:
    return str(item[0] if isinstance(item, tuple) else item)


def left_out(others: Mapping[str, int], noun: str = "file") -> tuple[str, str]:
    """Files whose endings are not read: (all of them for the plan, those that look like data for a warning); each
    empty where there are none.

    Args:
        others: Ending, in lower case with its dot, and perhaps what is wrong with such files, such as ".txt of no
            points" -> how many files.
        noun: What a file is called.
    """
    data = {ending: count for ending, count in others.items()
            if ending.split()[0] not in BESIDE and ending.replace(" ", "_") not in BESIDE}  # fmt: skip
    return _endings(others, noun), _endings(data, noun)


def _endings(others: Mapping[str, int], noun: str) -> str:
    if not others:
        return ""
    listed = ", ".join(f"{count:,} x {ending}" for ending, count in Counter(others).most_common(8))
    more = "" if len(others) <= 8 else ", ..."
    return f"{counted(sum(others.values()), noun)} with endings that are not read: {listed}{more}"


def _class_names(folders: Sequence[tuple[str, ...]], named: Mapping[str, str]) -> list[str]:
    """The first folder of each file that is no split, below those that all files share."""
    shared = next(
        (i for i, names in enumerate(zip(*folders, strict=False)) if len(set(names)) > 1), min(map(len, folders))
    )
    return [next((name for name in parts[shared:] if name not in named), "") for parts in folders]


def _labels(names: Sequence[str], train: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...] | None]:
    """Numbers and names of the classes that the files for training have."""
    classes = sorted({names[i] for i in train})
    if "" in classes or len(classes) < 2:
        return (-1,) * len(names), None
    number = {name: i for i, name in enumerate(classes)}
    return tuple(number.get(name, -1) for name in names), tuple(classes)


def _like_splits(root: PurePath, files: Sequence[str], noun: str) -> tuple[str, ...]:
    """Warnings where splits are said in names of files, such as train_0.png and test_0.png, of folders in part, or of
    lists that nobody reads, and files are trained on all the same."""
    notes = []
    words = Counter(split_in(PurePath(file).stem) for file in files)
    held = next((name for name in HELD_OUT if words[name]), None)
    if held is not None and words["train"] and words[None] <= len(files) / 10:
        example = next(file for file in files if split_in(PurePath(file).stem) == held)
        notes.append(
            f"{root} has {counted(words[held], noun)} named like the split {held} ({example}), trained on like all "
            f"others. To hold them out, move them to a folder {held}/, and the others to train/."
        )
    folders = {name for file in files for name in PurePath(file).parts[:-1]}
    if {"train"} < {split for name in folders if (split := split_in(name))}:
        notes += _held_words(root, [PurePath(file).parts[:-1] for file in files], range(len(files)), noun)
    return (*notes, *unread_lists(Path(root), noun))


def unread_lists(root: Path, noun: str = "file") -> tuple[str, ...]:
    """A warning where lists by their names say splits, and nobody reads them."""
    lists = _lists_of_splits(root)
    if not lists:
        return ()
    return (
        f"{root} has lists that are named like splits ({', '.join(lists[:3])}). They are not read, so {noun}s for a "
        "test are trained on. To hold them out, lay them in test/ and others in train/, or write the columns path and "
        f"split into {root / 'labels.csv'}.",
    )


def _held_words(
    root: PurePath, folders: Sequence[tuple[str, ...]], items: Iterable[int], noun: str, known: Container[str] = ()
) -> list[str]:
    """A warning of files that are trained on though a folder's name has a word for a held-out split."""
    named = ((i, name) for i in items for name in folders[i] if name not in known and split_in(name) in HELD_OUT)
    held = dict(named)
    if not held:
        return []
    names = ", ".join(f"{name}/" for name in sorted(set(held.values()))[:3])
    return [
        f"{root}: {counted(len(held), noun)} in folders that may be held out, by a word in their names ({names}), are "
        "trained on. If they are for a test, call their folder test/."
    ]


_LISTS_BELOW = ("", "ImageSets", "ImageSets/Main", "lists", "splits", "split", "meta", "metadata", "annotations")
"""Folders in which lists of splits lie."""


def _lists_of_splits(root: Path) -> list[str]:
    """Files below a root that by their names list splits, such as train.txt beside test.txt, or train_test_split.txt;
    empty unless some are for training and some held out."""
    lists: dict[str, set[str]] = {}
    for below in _LISTS_BELOW:
        folder = root / below
        names = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() in (".txt", ".csv", ".tsv", ".json", ".jsonl", ".lst"):
                words = re.findall(r"[^\W\d_]+", stem.lower())
                lists[os.path.join(below, name)] = {WORDS[word] for word in words if word in WORDS}
    splits = set[str]().union(*lists.values())
    return [name for name, kinds in lists.items() if kinds] if {"train"} < splits & {"train", *HELD_OUT} else []


def _folder(folders: Sequence[tuple[str, ...]], items: Sequence[int], named: Mapping[str, str]) -> str:
    """The path of the first folder that makes these files a split, as it is written."""
    if not items:
        return ""
    parts = folders[items[0]]
    end = deciding(parts, named)
    return "/".join(parts if end is None else parts[: end + 1])


def _refuse_two_readings(
    root: PurePath, folders: Sequence[tuple[str, ...]], rest: Sequence[int], held: str | None, named: Mapping[str, str]
) -> None:
    """A folder train/ beside class folders, with nothing held out, may be a split or a class."""
    beside = sorted({folders[i][0] for i in rest if folders[i]})
    if beside and held is None:
        train = _folder(folders, [i for i, parts in enumerate(folders) if set(parts) & set(named)], named)
        raise MimError(
            f"{root} has {train}/, which is named like a split, beside {', '.join(beside[:5])}. If it is the training "
            f"split, name it alone: --data.root {root / train}; if it is a class, give it another name."
        )


def _same_classes(root: PurePath, noun: str, name: str, train: tuple[str, ...], test: set[str]) -> None:
    if "" in test and len(test) == 1:
        raise MimError(
            f"{root}: the classes of train and {name} differ: train has {len(train)}, and {name} none. Give both their "
            f"classes; or, to train without them, name the folder or the shards of train alone."
        )
    different = sorted(set(train) ^ test)
    if different:
        raise MimError(f"{root}: the classes of train and {name} differ, in: {', '.join(different[:10])}.")


def _splits_text(
    folders: Sequence[tuple[str, ...]], named: Mapping[str, str], uses: Mapping[str, Sequence[int]]
) -> str:
    """Such as "train/ for training (1,200), valid/ held out (300)"."""
    texts = []
    for use, items in uses.items():
        if items:
            deep = ((folders[i], deciding(folders[i], named)) for i in items)
            places = {"all others" if place is None else f"{parts[place]}/" for parts, place in deep}
            texts.append(f"{', '.join(sorted(places))} {use} ({len(items):,})")
    return "; ".join(texts)
