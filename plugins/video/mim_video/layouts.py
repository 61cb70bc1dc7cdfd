"""Which clips there are: a folder of files, UCF101, Kinetics, Something-Something v2, each as it lies on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mim_core import LabelTable, MimError, arranged, class_order, collections, read_label_table, unknown, walk_folders

from mim_video import listings
from mim_video.listings import Entry
from mim_video.reader_frames import PICTURES, frame_names

EXTENSIONS = (
    *(".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv"),
    *(".mts", ".m2ts", ".vob", ".3g2", ".asf", ".divx", ".f4v", ".mxf", ".rm", ".rmvb", ".y4m", ".gif", ".qt", ".dv"),
    *(".mpe", ".m2v", ".ogm", ".ivf", ".mjpeg", ".h264", ".264", ".hevc", ".h265"),
)
"""Endings of files that are read as videos, in any case."""
SSV2_LABELS = ("labels.json", "something-something-v2-labels.json")


@dataclass(frozen=True)
class ClipStore:
    """One split: video files, the part of each that counts, and their classes if there are any.

    Attributes:
        root: What names are relative to.
        files: Paths below the root.
        labels: Class of each file.
        classes: Their names; None when there are fewer than two.
        windows: Start and end in seconds, for files of which only a part counts; empty when all of all files do.
        note: What a reader of scores should know about the split.
    """

    root: Path
    files: tuple[str, ...]
    labels: Sequence[int] = ()
    classes: tuple[str, ...] | None = None
    windows: tuple[tuple[float, float] | None, ...] = ()
    note: str = ""

    def __len__(self) -> int:
        return len(self.files)

    def window(self, index: int) -> tuple[float, float] | None:
        """The part of a file that counts, in seconds; None for all of it."""
        return self.windows[index] if self.windows else None

    def name(self, index: int) -> str:
        """The file below the root, and its part."""
        part = self.window(index)
        return self.files[index] + (f" ({part[0]:g} to {part[1]:g} s)" if part else "")

    def subset(self, keep: Sequence[int], note: str = "") -> ClipStore:
        """Some of the files."""
        return ClipStore(
            self.root,
            tuple(self.files[i] for i in keep),
            [self.labels[i] for i in keep] if self.labels else (),
            self.classes,
            tuple(self.windows[i] for i in keep) if self.windows else (),
            note or self.note,
        )


@dataclass(frozen=True)
class Clipping:
    """What pre-training sees, and what probes are trained and tested on.

    Attributes:
        kind: The layout's name.
        pretrain: For training without labels.
        train: For the probes.
        test: Held out; empty when the lists have none.
        missing: What the lists name and the disk lacks.
        splits: What was taken for splits, for people.
        others: Endings of files that are not read -> how many.
        unlisted: Videos that lie there and that the lists do not name.
        advice: What was left out, and why.
        framed: Whether clips are folders of frames.
    """

    kind: str
    pretrain: ClipStore
    train: ClipStore
    test: ClipStore
    missing: tuple[str, ...] = ()
    splits: str = ""
    others: Mapping[str, int] = field(default_factory=dict)
    unlisted: int = 0
    advice: tuple[str, ...] = ()
    framed: bool = False


def find_clips(root: Path, layout: str = "auto", split: int = 1, table: LabelTable | None = None) -> Clipping:
    """The clips below a folder.

    Args:
        root: The folder.
        layout: auto, folder, ucf101, kinetics, ssv2 or lists.
        split: Which of UCF101's three.
        table: Labels of the clips of a folder.

    Raises:
        MimError: Nothing there; says what was looked for and what is there.
    """
    if layout == "auto":
        layout = recognise(root) if table is None else "folder"
    if layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    if table is not None and layout != "folder":
        raise MimError(f"--data.labels-from goes with --data.layout folder; the layout {layout} has labels of its own.")
    if layout == "folder":
        return folder(root, table)
    return ucf101(root, split) if layout == "ucf101" else LAYOUTS[layout](root)


def recognise(root: Path) -> str:
    """The layout that a folder has: by UCF101's lists, Something-Something's json, Kinetics' csv; else a folder."""
    if _below(root, ("classInd.txt",)):
        return "ucf101"
    if _below(root, SSV2_LABELS):
        return "ssv2"
    if _kinetics_lists(root):
        return "kinetics"
    return "lists" if _path_lists(root) else "folder"


def _below(root: Path, names: Iterable[str]) -> Path | None:
    """A file of one of these names in the folder or in one below it; UCF101's lists may also lie beside its videos."""
    for name in names:
        beside = sorted(root.parent.glob(f"ucfTrain*/{name}")) if root.name.lower().startswith("ucf") else []
        for path in (root / name, *sorted(root.glob(f"*/{name}")), *beside):
            if path.is_file():
                return path
    return None


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        files: Videos, or else folders of frames, below the root, sorted.
        others: Endings of other files -> how many.
        framed: Whether clips are folders of frames.
    """

    files: list[str]
    others: Counter[str]
    framed: bool = False


def walk(root: Path) -> Found:
    """Videos below the root; where there are none, folders of at least two numbered pictures."""
    files, frames, pictures = list[str](), list[str](), Counter[str]()
    others: Counter[str] = Counter()
    for folder, names, _ in walk_folders(root):
        shown = [name for name in names if not name.startswith(".")]
        endings = {name: os.path.splitext(name)[1].lower() for name in shown}
        files += [os.path.relpath(os.path.join(folder, name), root) for name in shown if endings[name] in EXTENSIONS]
        numbered = frame_names(shown)
        if len(numbered) > 1:
            frames.append(os.path.relpath(folder, root))
            pictures.update(endings[name] for name in numbered)
        others.update(ending or "no ending" for ending in endings.values() if ending not in EXTENSIONS)
    if files or not frames:
        return Found(sorted(files), others)
    return Found(sorted(frames), others - pictures, True)


def _videos(root: Path, looked_for: str) -> Found:
    videos = walk(root)
    if videos.files:
        return videos
    raise no_videos(root, looked_for, videos.others)


def no_videos(root: Path, looked_for: str, others: Counter[str]) -> MimError:
    """The error for a folder without videos: what is there, and what clips may be."""
    listing = ", ".join(f"{n} x {ending}" for ending, n in others.most_common(5)) or "nothing"
    more = _of_frames(root) if set(others) & set(PICTURES) else ""
    return MimError(f"No videos in {root}. Looked for {looked_for} in it and below; found {listing}.{more}")


def _of_frames(root: Path) -> str:
    """What to do with folders of pictures: as clips they need no preparing, and are named by numbers."""
    for folder, names, _ in walk_folders(root):
        frames = frame_names(sorted(names))
        if len(frames) > 1:
            ending = os.path.splitext(frames[0])[1]
            return (
                f"\nFolders of frames ({folder}/{frames[0]}, ...) are read as clips as they are. To make a video of "
                f"one all the same, with the frame rate that it was taken with:\n  ffmpeg -framerate 25 -pattern_type "
                f"glob -i '{folder}/*{ending}' -pix_fmt yuv420p -vf 'crop=trunc(iw/2)*2:trunc(ih/2)*2' {folder}.mp4"
            )
    return (
        " A clip may be a folder of pictures whose names end in numbers, such as run/v0/0001.jpg and 0002.jpg. For "
        "single pictures there is mim-image."
    )


def stem_of(file: str) -> str:
    """The name of a clip without folder and ending; that of a folder of frames may have dots of its own."""
    stem, ending = os.path.splitext(os.path.basename(file))
    return stem if ending.lower() in EXTENSIONS else stem + ending


# ---- a folder of clips -----------------------------------------------------------------------------------------------


def folder(root: Path, table: LabelTable | None = None) -> Clipping:
    """A folder's own splits if it has them (`mim_core.collections`); or one collection, a fifth of each class held out
    from the probes. Classes are the names of the first folders that are no splits, or those of a table."""
    videos = _videos(root, ", ".join(EXTENSIONS))
    files = videos.files
    arrangement = collections.arrange(files, root, "clip")
    if table is not None:
        arrangement = arranged(arrangement, table, files, root, "clip")
    every = ClipStore(root, tuple(files), arrangement.labels if arrangement.classes else (), arrangement.classes)
    pretrain = every.subset(arrangement.pretrain)
    if arrangement.test is not None:
        train, test = every.subset(arrangement.train), every.subset(arrangement.test)
    else:
        kept, held = collections.every_fifth(arrangement.labels, arrangement.train) if arrangement.classes else ((), ())
        note = (
            "Every fifth clip of a class is held out from the probes; a run that was pre-trained on this folder has "
            "seen them, without labels."
        )
        train, test = every.subset(kept, note), every.subset(held, note)
    rest = {"splits": arrangement.splits, "others": videos.others, "advice": arrangement.advice}
    return Clipping("folder", pretrain, train, test, framed=videos.framed, **rest)  # type: ignore[arg-type]


def every_clip(root: Path) -> Clipping:
    """All videos below a folder as one collection, whatever lists and folders say."""
    videos = _videos(root, ", ".join(EXTENSIONS))
    every = ClipStore(root, tuple(videos.files))
    return Clipping("folder", every, every, every.subset(()), others=videos.others, framed=videos.framed)


# ---- official lists --------------------------------------------------------------------------------------------------


def _listed(
    kind: str,
    root: Path,
    lists: Mapping[str, Sequence[Entry]],
    classes: tuple[str, ...],
    looked_for: str,
) -> Clipping:
    """The files that lists name, those for training first, then those held out, wherever below the root they lie; what
    is missing is counted and named."""
    by_stem: dict[str, list[str]] = {}
    whole = _videos(root, looked_for)
    videos = whole.files
    for file in videos:
        by_stem.setdefault(stem_of(file), []).append(file)
    missing: list[str] = []
    number = {name: i for i, name in enumerate(classes)}
    stores, present, absences = [], {}, {}
    for name, entries in lists.items():
        places = [(entry, _place(by_stem, entry, listings.split_of(Path(name)))) for entry in entries]
        present[name] = [(entry, place) for entry, place in places if place]
        absences[name] = [entry.stem for entry, place in places if not place]
    kept, advice = collections.listed_once(
        {name: [(place, entry.label) for entry, place in rows] for name, rows in present.items()}, root, "clip"
    )
    for split, (name, entries), keep in zip(("train", "test"), lists.items(), kept, strict=True):
        clips, absent = [present[name][row] for row in keep], absences[name]
        missing += absent
        note = f"{len(absent):,} of {len(entries):,} listed {split} clips are missing." if absent else ""
        files = tuple(file for _, (file, _) in clips)
        labels = [number[entry.label] for entry, _ in clips]
        windows = tuple(part for _, (_, part) in clips)
        stores.append(ClipStore(root, files, labels, classes, windows if any(windows) else (), note))
    if not stores[0]:
        names = ", ".join(missing[:3])
        listed = len(next(iter(lists.values())))
        raise MimError(f"None of the {listed:,} listed training clips is in {root}: {names}, ... {looked_for}.")
    summary = ", ".join(f"{name} {use} ({len(store):,})" for name, use, store in
                     zip(lists, ("for training", "held out"), stores, strict=True) if store)  # fmt: skip
    unlisted = len(set(videos) - {file for store in stores for file in store.files})
    gone = tuple(missing)
    return Clipping(kind, stores[0], stores[0], stores[1], gone, summary, whole.others, unlisted, advice, whole.framed)


def _place(by_stem: dict[str, list[str]], entry: Entry, split: str) -> tuple[str, tuple[float, float] | None] | None:
    """The file of an entry, and the part of it that counts: all of a trimmed file, whose name says its part."""
    choices = [(f"{entry.stem}_{entry.window[0]:06.0f}_{entry.window[1]:06.0f}", None)] if entry.window else []
    for stem, part in (*choices, (entry.stem, entry.window)):
        files = by_stem.get(stem, [])
        if files:  # the same clip may lie in several folders: the one of its class, then of its split
            parts = [set(os.path.dirname(file).replace("_", " ").split(os.sep)) for file in files]
            ranks = [(entry.label.replace("_", " ") in p, split in {*map(collections.split_of, p)}) for p in parts]
            return files[ranks.index(max(ranks))], part
    return None


def ucf101(root: Path, split: int = 1) -> Clipping:
    """UCF101: ``UCF-101/Class/v_*.avi`` and ``ucfTrainTestlist/`` with classInd, trainlist and testlist.

    Raises:
        MimError: There is no such split, a list is missing, or it has classes that classInd lacks.
    """
    if split not in (1, 2, 3):
        raise MimError(f"UCF101 has splits 1, 2 and 3, not {split}.")
    names = _below(root, ("classInd.txt",))
    looked_for = "UCF-101/CLASS/v_*.avi and ucfTrainTestlist/ with classInd.txt, trainlist01.txt and testlist01.txt"
    if names is None:
        raise MimError(f"No lists of UCF101 in {root}. Looked for {looked_for}.")
    classes = listings.ucf101_classes(names)
    lists = {}
    for name in (f"trainlist{split:02}.txt", f"testlist{split:02}.txt"):
        path = names.with_name(name)
        if not path.is_file():
            raise MimError(f"{path} is missing. Looked for {looked_for}.")
        lists[name] = listings.ucf101_entries(path)
        strange = {entry.label for entry in lists[name]} - set(classes)
        if strange:
            raise MimError(f"{path} has classes that {names.name} lacks: {', '.join(sorted(strange)[:5])}.")
    clipping = _listed("ucf101", root, lists, classes, looked_for)
    read = {names.name, *(f"{kind}list{number:02}.txt" for kind in ("train", "test") for number in (1, 2, 3))}
    beside = sum(path.name in read for path in names.parent.glob("*.txt"))
    return replace(clipping, others=Counter(clipping.others) - Counter({".txt": beside}))


def _kinetics_lists(root: Path) -> list[Path]:
    """Kinetics' csv files: in the folder or one below it, with the columns of the official ones."""
    return [path for path in _tables(root) if set(listings.TIMED) <= set(listings.header(path))]


def _tables(root: Path) -> list[Path]:
    return sorted({*root.glob("*.csv"), *root.glob("*/*.csv")})


def kinetics(root: Path) -> Clipping:
    """Kinetics-400, 600 or 700: csv files with label, youtube_id, time_start, time_end and split; clips anywhere
    below, trimmed (``ID_000010_000020.mp4``) or whole (``ID.mp4``, of which the csv's part is used).

    Raises:
        MimError: No such csv files or no such videos, a training list without labels, or a cell that is no time.
    """
    looked_for = (
        "csv files with the columns label, youtube_id, time_start, time_end, split, and videos named "
        "ID_000010_000020.mp4 or ID.mp4"
    )
    lists = _kinetics_lists(root)
    if not lists:
        tables = [f"{path.name} with {', '.join(listings.header(path))}" for path in _tables(root)[:3]]
        raise MimError(
            f"No lists of Kinetics in {root}. Looked for {looked_for}, in it or a folder below; "
            f"found {'; '.join(tables) or 'no csv files'}. Without lists, take "
            "--data.layout folder: its classes are the names of folders."
        )
    named: dict[str, dict[Entry, None]] = {}
    for path in lists:  # the same list may lie in two places: a clip of it counts once
        for name, entry in listings.kinetics_rows(path):
            named.setdefault(name, {})[entry] = None
    splits = {name: list(entries) for name, entries in named.items()}
    held_out = next((name for name in ("val", "test") if _labelled(splits, name)), "")
    train, test = splits.get("train", []), splits.get(held_out, [])
    if not train:
        raise MimError(f"{root}: the csv files list no split 'train', only: {', '.join(sorted(splits))}.")
    classes = tuple(sorted({entry.label for entry in (*train, *test)}))
    clipping = _listed("kinetics", root, {"train": train, held_out: test}, classes, looked_for)
    unused = ", ".join(f"{name} ({len(splits[name]):,} listed)" for name in sorted({*splits} - {"train", held_out}))
    return replace(clipping, splits=f"{clipping.splits}; not used: {unused}") if unused else clipping


def _labelled(splits: dict[str, list[Entry]], name: str) -> bool:
    return name in splits and all(entry.label for entry in splits[name])


def ssv2(root: Path) -> Clipping:
    """Something-Something v2: json lists of labels, training and validation, and ``ID.webm`` files anywhere below.

    Raises:
        MimError: A list is missing.
    """
    looked_for = "labels.json, train.json, validation.json (or something-something-v2-*.json) and ID.webm files"
    labels = _below(root, SSV2_LABELS)
    if labels is None:
        raise MimError(f"No lists of Something-Something v2 in {root}. Looked for {looked_for}.")
    prefix = labels.name.removesuffix("labels.json")
    numbers = listings.ssv2_labels(labels)
    classes = tuple(sorted(numbers, key=lambda label: numbers[label]))
    lists = {}
    for name in ("train", "validation"):
        path = labels.with_name(f"{prefix}{name}.json")
        if not path.is_file():
            raise MimError(f"{path} is missing. Looked for {looked_for}.")
        lists[name] = listings.ssv2_entries(path, numbers)
    return _listed("ssv2", root, lists, classes, looked_for)


# ---- VideoMAE's lists ------------------------------------------------------------------------------------------------


def _path_lists(root: Path, sure: bool = False) -> dict[str, Path]:
    """Split -> list of a path and a label in each line, as VideoMAE's train.csv, val.csv and test.csv: files in the
    folder that are named like a split; unless it is sure, those that name a clip in their first lines."""
    paths: dict[str, Path] = {}
    for path in sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".txt")):
        split = collections.split_of(path.stem)
        if split in ("train", *collections.HELD_OUT) and (sure or listings.names_a_clip(path, root)):
            paths.setdefault(split, path)
    return paths if "train" in paths else {}


def lists(root: Path) -> Clipping:
    """VideoMAE's lists: ``train.csv``, and ``val.csv`` or ``test.csv``, with a path and a label in each line, between
    them perhaps a number of frames; separated by spaces or commas. Paths are below the folder, or whole.

    Raises:
        MimError: There are none, or none of their clips is there, or a clip has two labels.
    """
    tables = {split: read_label_table(path) for split, path in _path_lists(root, sure=True).items()}
    looked_for = "train.csv and val.csv or test.csv, with the path of a clip and its label in each line"
    if not tables:
        raise MimError(f"No lists of paths and labels in {root}. Looked for {looked_for}.")
    whole = _videos(root, looked_for)
    train = tables["train"]
    labelled = [split for split in collections.HELD_OUT if split in tables]
    held = next((split for split in labelled if len({label for label, _ in tables[split].rows.values()}) > 1), "")
    used = [train, *([tables[held]] if held else [])]
    places = [table.places(whole.files, root) for table in used]
    if not places[0][0]:
        first = next(iter(train.rows))
        raise MimError(f"None of the {len(train.rows):,} clips of {train.path} is in {root}: {first}, ...")
    rows = {table.path.name: [(i, label) for i, (label, _) in matches.items()]
            for table, (matches, _) in zip(used, places, strict=True)}  # fmt: skip
    kept, advice = collections.listed_once(rows, root, "clip")
    classes = class_order(label for _, label in rows[train.path.name])
    stores = []
    for (name, listed), keep in zip(rows.items(), kept, strict=True):
        new = sorted({label for _, label in listed} - set(classes))
        if new:
            raise MimError(f"{root / name} has classes that {train.path.name} lacks: {', '.join(new[:5])}.")
        some = [listed[row] for row in keep]
        files, labels = tuple(whole.files[i] for i, _ in some), [classes.index(label) for _, label in some]
        stores.append(ClipStore(root, files, labels, classes) if len(classes) > 1 else ClipStore(root, files))
    test = stores[1] if held else stores[0].subset(())
    summary = f"{train.path.name} for training ({len(stores[0]):,})"
    summary += f", {tables[held].path.name} held out ({len(test):,})" if held else ""
    missing = tuple(name for _, lost in places for name in lost)
    unlisted = len(whole.files) - len({i for matches, _ in places for i in matches})
    pre = stores[0]
    return Clipping("lists", pre, pre, test, missing, summary, whole.others, unlisted, advice, whole.framed)


LAYOUTS: dict[str, Callable[[Path], Clipping]] = {
    "folder": folder,
    "ucf101": ucf101,
    "kinetics": kinetics,
    "ssv2": ssv2,
    "lists": lists,
}
"""Layouts by name."""
