"""Surveillance videos in which some frames are abnormal, as they lie on disk: UCSD Ped1 and Ped2, CUHK Avenue and
ShanghaiTech Campus."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mim_core import MimError, counted, walk_folders

from mim_video.anomaly_masks import mat_masks, picture_mask

PICTURES = (".tif", ".tiff", ".jpg", ".jpeg", ".png", ".bmp")
VIDEOS = (".avi", ".mp4", ".mkv", ".mov")


@dataclass(frozen=True)
class Footage:
    """One video, a file or a folder of its frames.

    Attributes:
        path: The file, or the folder.
        frames: Names of the frames in the folder, in order; empty where it is a file.
        abnormal: 0 or 1 of each frame; empty where nothing is known of them.
        masks: Where frames are abnormal, see `mim_video.anomaly_masks.read_masks`; empty where nobody knows.
    """

    path: Path
    frames: tuple[str, ...] = ()
    abnormal: tuple[int, ...] = ()
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Surveillance:
    """A collection: normal footage to train on, and footage to judge, whose frames are known.

    Attributes:
        kind: What it was taken for.
        train: Footage without anything abnormal.
        test: Footage with an answer for every frame.
    """

    kind: str
    train: tuple[Footage, ...]
    test: tuple[Footage, ...]


def find_surveillance(root: Path) -> Surveillance:
    """The collection below a folder.

    Raises:
        MimError: It is none of these, or answers are missing or do not fit.
    """
    for find in (ucsd, avenue, shanghai):
        collection = find(root)
        if collection is not None:
            if not collection.train or not collection.test:
                which = "training" if not collection.train else "test"
                raise MimError(f"{root} ({collection.kind}) holds no {which} footage.")
            return collection
    inner = [path.name for path in _folders(root) if (path / "Train").is_dir() and (path / "Test").is_dir()]
    if inner:
        raise MimError(f"{root} holds {', '.join(inner)}; each is trained alone: --data.root {root / inner[0]}")
    raise MimError(
        f"{root} is no collection of surveillance footage. Looked for Train/ and Test/ (UCSD Ped), training_videos/ "
        "and testing_videos/ (Avenue), training/ and testing/test_frame_mask/ (ShanghaiTech)."
    )


def all_footage(root: Path) -> Surveillance:
    """Every video file and folder of frames in and below a folder, of which nothing is known; masks are left out.

    Raises:
        MimError: There is none.
    """
    footage = list[Footage]()
    for place, _, _ in walk_folders(root):
        folder = Path(place)
        footage += map(Footage, _files(folder, VIDEOS))
        if not folder.name.endswith("_gt") and (frames := _of_frames(folder)).frames:
            footage.append(frames)
    if not footage:
        raise MimError(f"{root} holds no footage: neither video files ({', '.join(VIDEOS)}) nor folders of frames.")
    return Surveillance("footage", tuple(sorted(footage, key=lambda each: each.path)), ())


def _ordered(paths: Sequence[Path]) -> list[Path]:
    """By the numbers in their names."""
    return sorted(paths, key=lambda path: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", path.name)])


def _files(folder: Path, endings: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith("."))
    return _ordered([path for path in paths if path.is_file()])


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return _ordered([path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")])


def _of_frames(folder: Path) -> Footage:
    return Footage(folder, tuple(path.name for path in _files(folder, PICTURES)))


def _all_of_frames(folder: Path) -> list[Footage]:
    return [video for path in _folders(folder) if not path.name.endswith("_gt") and (video := _of_frames(path)).frames]


# ---- UCSD ------------------------------------------------------------------------------------------------------------


def ucsd(root: Path) -> Surveillance | None:
    """``Train/Train001/001.tif``, ``Test/Test001``, and answers in ``Test/UCSDped1.m``, a line ``gt_frame = [60:152]``
    for each, or in ``Test/Test001_gt``, a mask for each frame. Of Ped1 some videos alone have masks.

    Raises:
        MimError: There are answers for more videos than there are, or for fewer.
    """
    if not (root / "Train").is_dir() or not (root / "Test").is_dir():
        return None
    test, answers = _all_of_frames(root / "Test"), _files(root / "Test", (".m",))
    if answers:
        spans = _spans(answers[0])
        if len(spans) != len(test):
            raise MimError(
                f"{answers[0]} has answers for {counted(len(spans), 'video')}, and {root / 'Test'} holds {len(test)}."
            )
        judged = [
            replace(each, abnormal=_flags(span, each, answers[0]), masks=_masks(each))
            for each, span in zip(test, spans, strict=True)
        ]
    else:
        judged = [_by_masks(each) for each in test]
    return Surveillance("UCSD Ped", tuple(_all_of_frames(root / "Train")), tuple(judged))


def _spans(path: Path) -> list[list[tuple[int, int]]]:
    """First and last abnormal frames of each video, counted from 1."""
    text = path.read_text(encoding="utf-8", errors="replace")
    matches = re.findall(r"gt_frame\s*=\s*\[([^\]]*)\]", text)
    return [[(int(a), int(b or a)) for a, b in re.findall(r"(\d+)(?:\s*:\s*(\d+))?", ranges)] for ranges in matches]


def _flags(spans: list[tuple[int, int]], footage: Footage, path: Path) -> tuple[int, ...]:
    flags = [0] * len(footage.frames)
    for first, last in spans:
        if not 1 <= first <= last <= len(flags):
            raise MimError(
                f"{path} calls frames {first} to {last} of {footage.path.name} abnormal; it has {len(flags)} frames."
            )
        flags[first - 1 : last] = [1] * (last - first + 1)
    return tuple(flags)


def _by_masks(footage: Footage) -> Footage:
    """Frames whose mask shows anything are abnormal."""
    masks = _masks(footage)
    if not masks:
        raise MimError(
            f"{footage.path} has {len(footage.frames)} frames, and no masks in {footage.path}_gt: nothing says which "
            f"frames are abnormal. Put the collection's .m file into {footage.path.parent}, or a mask for each frame "
            "into that folder."
        )
    return replace(footage, abnormal=tuple(int(picture_mask(mask).any()) for mask in masks), masks=masks)


def _masks(footage: Footage) -> tuple[Path, ...]:
    """The mask of each frame, if there are any."""
    folder = footage.path.with_name(f"{footage.path.name}_gt")
    masks = _files(folder, PICTURES)
    if masks and len(masks) != len(footage.frames):
        raise MimError(
            f"{footage.path} has {len(footage.frames)} frames, and {folder} {counted(len(masks), 'mask')}: each frame "
            "needs one. Without the folder, and with the collection's .m file, frames alone are judged."
        )
    return tuple(masks)


# ---- Avenue ----------------------------------------------------------------------------------------------------------


def avenue(root: Path) -> Surveillance | None:
    """``training_videos/01.avi``, ``testing_videos/01.avi``, and answers in ``testing_label_mask/1_label.mat`` at any
    depth: a mask for each frame in ``volLabel``. Needs scipy.

    Raises:
        MimError: A video has no answers.
    """
    train, test = root / "training_videos", root / "testing_videos"
    if not train.is_dir() or not test.is_dir():
        return None
    answers = {int(path.name.split("_")[0]): path for path in root.rglob("*_label.mat") if path.name[0].isdigit()}
    judged = []
    for path in _files(test, VIDEOS):
        number = re.sub(r"\D", "", path.stem)
        if not number or int(number) not in answers:
            raise MimError(
                f"{path} has no answers: looked for testing_label_mask/{int(number or 0)}_label.mat below {root}."
            )
        answer = answers[int(number)]
        flags = tuple(int(np.asarray(mask).any()) for mask in mat_masks(answer))
        judged.append(Footage(path, abnormal=flags, masks=(answer,)))
    return Surveillance("Avenue", tuple(map(Footage, _files(train, VIDEOS))), tuple(judged))


# ---- ShanghaiTech ----------------------------------------------------------------------------------------------------


def shanghai(root: Path) -> Surveillance | None:
    """``training/videos/01_001.avi`` or ``training/frames/01_001/``, ``testing/frames/01_0014/`` or
    ``testing/videos``, and answers in ``testing/test_frame_mask/01_0014.npy``: 0 or 1 of each frame; masks in
    ``testing/test_pixel_mask/01_0014.npy``, [frames, height, width].

    Raises:
        MimError: A video has no answers, or they cannot be read, are not 0 or 1, or are not one of each frame.
    """
    answers = root / "testing" / "test_frame_mask"
    if not (root / "training").is_dir() or not answers.is_dir():
        return None
    train, test = (
        _all_of_frames(root / part / "frames") or [Footage(path) for path in _files(root / part / "videos", VIDEOS)]
        for part in ("training", "testing")
    )
    judged = []
    for each in test:
        path = answers / f"{each.path.stem if not each.frames else each.path.name}.npy"
        if not path.is_file():
            raise MimError(f"{each.path} has no answers: there is no {path}.")
        try:
            flags = np.load(path, allow_pickle=False).ravel()
        except (OSError, ValueError) as error:
            raise MimError(f"{path} cannot be read as numbers of frames: {error}.") from error
        if not np.isin(flags, (0, 1)).all():
            raise MimError(f"{path} should say 0 or 1 of each frame; it has other values too.")
        places = root / "testing" / "test_pixel_mask" / path.name
        masks = (places,) if places.is_file() else ()
        judged.append(replace(each, abnormal=tuple(int(flag != 0) for flag in flags.tolist()), masks=masks))
    for each in judged:
        if each.frames and len(each.frames) != len(each.abnormal):
            raise MimError(
                f"{each.path} has {len(each.frames)} frames, and answers for {len(each.abnormal)} in "
                f"{answers / each.path.name}.npy."
            )
    return Surveillance("ShanghaiTech", tuple(train), tuple(judged))
