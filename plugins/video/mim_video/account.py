"""What is said of a collection of clips: when a run starts, in the plan, and as advice."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from mim_core import collections, counted, lasting

from mim_video.layouts import Clipping
from mim_video.looking import Look

LONG = 30
"""Times the length of a clip; of longer files an epoch sees little."""

COARSE = 8
"""Times the input's size; larger frames lose most of what they show."""


@runtime_checkable
class ClipCollection(Protocol):
    """A source of clips that can be described, such as `mim_video.data.Clips`.

    Attributes:
        config: Its options.
        clips: The files by split.
        look: What some of them hold.
        size: Height and width of a clip.
        frames: How many a clip has.
        channels: How many a frame has.
        bundled: Whether it is the bundled sample.
    """

    config: Any
    clips: Clipping
    look: Look
    size: tuple[int, int]
    frames: int
    channels: int
    bundled: bool

    def __len__(self) -> int:
        """Files for pre-training."""
        ...


def contents(source: ClipCollection) -> dict[str, str]:
    """Splits, classes, what was left out, what the files hold, and what an epoch sees of them, label by label."""
    clipping, rows = source.clips, dict[str, str]()
    rows["splits"] = clipping.splits or _without_splits(source)
    if names := clipping.train.classes or clipping.pretrain.classes:
        rows["classes"] = f"{len(names):,}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    left = [collections.left_out(clipping.others)[0]] if clipping.others else []
    left += [f"{counted(clipping.unlisted, 'video')} that the lists do not name"] if clipping.unlisted else []
    if left:
        rows["left out"] = "; ".join(left)
    rows["files hold"] = source.look.text(_span(source) if source.config.fps is None else 0)
    rows["an epoch"] = _epoch(source)
    return rows


def _without_splits(source: ClipCollection) -> str:
    """What stands for splits where no folder is one."""
    clipping = source.clips
    if clipping.kind != "folder":
        return f"as {clipping.kind} has them: {len(clipping.train):,} for training, {len(clipping.test):,} held out"
    held = f", {len(clipping.test):,} of them are held out from the probes alone" if clipping.test else ""
    return f"none: all clips are for pre-training{held}"


def advice(source: ClipCollection) -> list[str]:
    """What was left out and looks like data, and long files of which an epoch sees little."""
    clipping, config, share = source.clips, source.config, _share(source)
    notes = list(clipping.advice)
    if config.frame_rate is not None and not clipping.framed:
        notes.append("no clip is a folder of frames, so --data.frame-rate does nothing: video files have their own.")
    if data := collections.left_out(clipping.others)[1]:
        notes.append(f"{config.root}: {data}. They are left out; convert them to .mp4 to use them.")
    notes += [*_reduced(source), *_interlaced(source), *_sparse(source)]
    if share is None or share[1] <= LONG * share[0]:
        return notes
    shown = f"a clip shows about {lasting(share[0])} of files of {lasting(share[1])}"
    if config.repeat > 1 and config.repeat_start == "same":
        return [
            *notes,
            f"{shown}, and the {config.repeat} clips of a file show the same frames. For clips from different places: "
            f"--data.repeat-start own",
        ]
    if share[1] <= LONG * share[0] * config.repeat:
        return notes
    more = 2 ** min(6, int(math.log2(share[1] / share[0])))
    clips = counted(config.repeat, "clip")
    return [*notes, f"{shown}: an epoch sees {clips} of each file. For more of them: --data.repeat {more}"]


def _reduced(source: ClipCollection) -> list[str]:
    """What the recipe's input leaves of the files: colour read as grey, and large frames read small."""
    facts = source.look.seen[0]
    if not facts or source.bundled:
        return []
    notes, small = [], min(source.size)
    if source.channels == 1 and sum(video.colour for video in facts) > len(facts) / 2:
        notes.append("the files are in colour and are read as grey. In colour: --tokenizer.channels 3")
    middle = sorted(min(video.size) for video in facts)[len(facts) // 2]
    if middle >= COARSE * small:
        height, width = source.size
        notes.append(
            f"frames whose shorter side has {middle} pixels are read at {width} x {height}, which is coarse. Larger: "
            f"--tokenizer.size {source.frames} {4 * height} {4 * width}, at 16 times the work or more"
        )
    return notes


def _interlaced(source: ClipCollection) -> list[str]:
    """Files whose frames hold two moments."""
    facts = source.look.seen[0]
    count = sum(video.interlaced for video in facts)
    if not count:
        return []
    return [
        f"{count} of {counted(len(facts), 'file')} looked at: marked as interlaced, so what moves has combs at its "
        "edges. To be rid of them before training: ffmpeg -i IN -vf bwdif -c:v libx264 -crf 18 OUT.mp4"
    ]


def _sparse(source: ClipCollection) -> list[str]:
    """Where clips go by time: files with fewer frames in it than are asked for, and files shorter than a clip."""
    facts, fps = source.look.seen[0], source.config.fps
    if fps is None or source.config.segments:
        return []
    notes, seconds = [], (source.frames - 1) / fps
    few = [video.rate for video in facts if video.rate and video.rate < 0.99 * fps]
    if few:
        notes.append(
            f"{len(few)} of {counted(len(facts), 'file')} looked at: {min(few):.4g} frames per second at least, and "
            f"--data.fps {fps:g} asks for more, so clips show the same frame several times. Fewer: "
            f"--data.fps {min(few):.4g}"
        )
    short = sum(video.seconds is not None and video.seconds < seconds - 1 / fps for video in facts)
    if short:
        notes.append(
            f"{short} of {counted(len(facts), 'file')} looked at: shorter than the {seconds:.3g} s of a clip, which "
            "repeats their frames. To leave them out: --data.short refuse"
        )
    return notes if source.config.short != "refuse" else notes[: bool(few)]


def _span(source: ClipCollection) -> int:
    """Frames of a file that a clip spans."""
    return source.frames if source.config.segments else (source.frames - 1) * source.config.stride + 1


def _share(source: ClipCollection) -> tuple[float, float] | None:
    """Seconds that a clip shows, and those of the file in the middle of those looked at; None where headers do not
    tell, or where clips are spread over the file."""
    config, lengths = source.config, source.look.seconds()
    rates = sorted(facts.rate for facts in source.look.seen[0] if facts.rate)
    if config.segments or not lengths or not (rates or config.fps):
        return None
    clip = source.frames / config.fps if config.fps else _span(source) / rates[len(rates) // 2]
    return clip, lengths[len(lengths) // 2]


def _epoch(source: ClipCollection) -> str:
    """How many clips an epoch sees, and how much of a file one shows."""
    repeat, share = source.config.repeat, _share(source)
    files = counted(len(source), "file")
    text = counted(len(source) * repeat, "clip")
    if repeat > 1:
        own = source.config.repeat_start == "own"
        where = "each from its own place" if own else "all of the same frames (--data.repeat-start same)"
        text += f": {repeat} of each of {files}, {where}" if len(source) > 1 else f" of {files}, {where}"
    else:
        text += f" of {files}" if len(source) == 1 else f": one of each of {files}"
    return text + (f"; a clip shows about {lasting(share[0])} of {lasting(share[1])}" if share else "")
