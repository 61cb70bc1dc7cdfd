"""Clips a second of every installed video reader on the same files in one run, as Markdown tables.

    python benchmarks/video_decode.py                   # makes its own videos: 640x360, 10 s, 30 frames per second
    python benchmarks/video_decode.py --files CLIPS     # a folder of your own

Each set of files is read as it is and as `mim-video prepare` leaves it. A measurement is one file: open it, decode
clips of 16 frames, every fourth, at drawn places, scaled to a short side of 256, close it. Readers take turns file by
file, so that whatever else the machine does meets all of them. Counted is CPU time of one thread. pytorchvideo's
LabeledVideoDataset takes part where it imports; it gives one clip of the same length each time, thinned and scaled
alike. "alone" is a library without mim-video's adapter: its own index, no check of times, turn or edit lists.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from mim_core.errors import BadSample, MimError
from mim_video.prepare import Encoding, prepare_collection
from mim_video.pytorchvideo_adapter import ClipSamples, pytorchvideo_data
from mim_video.readers import known_readers, open_reader, scale

FRAMES, STRIDE, SHORT_SIDE = 16, 4, 256
Task = Callable[[Path, int, random.Random], int]


def make_videos(folder: Path, count: int, every: int, seconds: int) -> None:
    """Panned and zoomed texture with grain, in H.264 as cameras and sites leave it: key frames far apart, B-frames."""
    for number in range(count):
        draw = np.random.default_rng(number)
        coarse = torch.from_numpy(draw.random((1, 3, 45, 80), dtype=np.float32))
        fine = torch.from_numpy(draw.random((1, 3, 360, 640), dtype=np.float32))
        sizes = {"size": (720, 1280), "mode": "bicubic"}
        canvas = 0.8 * torch.nn.functional.interpolate(coarse, **sizes) + 0.2 * torch.nn.functional.interpolate(
            fine, **sizes
        )
        picture = (canvas[0].permute(1, 2, 0).clamp(0, 1) * 235).byte().numpy()
        with av.open(str(folder / f"{number}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=30, options={"crf": "23", "preset": "medium"})
            stream.height, stream.width, stream.pix_fmt = 360, 640, "yuv420p"
            stream.codec_context.gop_size = every
            for step in range(30 * seconds):
                top, left = int(180 + 170 * np.sin(step / 40)), int(320 + 310 * np.sin(step / 57 + number))
                grain = draw.integers(0, 12, (360, 640, 1), dtype=np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture[top : top + 360, left : left + 640] + grain)))
            out.mux(stream.encode(None))


def short_side(size: tuple[int, int]) -> tuple[int, int]:
    """The size that frames are scaled to."""
    factor = SHORT_SIDE / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def places(count: int, clips: int, draw: random.Random) -> list[int]:
    """The frames of clips of a video; a short one's last frame fills its clips."""
    latest = max(0, count - 1 - (FRAMES - 1) * STRIDE)
    starts = [draw.randrange(latest + 1) for _ in range(clips)]
    return [min(start + STRIDE * i, count - 1) for start in starts for i in range(FRAMES)]


def reader_task(name: str) -> Task:
    """Clips by one of mim-video's readers."""

    def task(path: Path, clips: int, draw: random.Random) -> int:
        with open_reader(path, name) as reader:
            wanted = places(len(reader), clips, draw)
            assert len(reader.frames_at(wanted, short_side(reader.size))) == FRAMES * clips
        return clips

    return task


def alone_task(name: str) -> Task:
    """Clips by torchcodec or decord as a script would call them."""
    if name == "torchcodec":
        decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
    else:
        decord = importlib.import_module("decord")

    def task(path: Path, clips: int, draw: random.Random) -> int:
        if name == "torchcodec":
            video = decoder(str(path), dimension_order="NHWC")
        else:
            video = decord.VideoReader(str(path), num_threads=1)
        wanted = sorted(set(places(len(video), clips, draw)))
        for first in range(0, len(wanted), 32):
            part = wanted[first : first + 32]
            if name == "torchcodec":
                frames = video.get_frames_at(part).data
            else:
                frames = torch.from_numpy(video.get_batch(part).asnumpy())
            scale(frames, short_side((frames.shape[1], frames.shape[2])))
        return clips

    return task


def pytorchvideo_task() -> Task:
    """Clips by LabeledVideoDataset, which gives one for each time that it opens a file."""
    data = pytorchvideo_data()

    def task(path: Path, clips: int, draw: random.Random) -> int:
        torch.manual_seed(draw.randrange(1 << 30))
        with open_reader(path) as reader:
            size = short_side(reader.size)
            seconds = float((reader.times[-1] - reader.times[0]) / (len(reader) - 1) * FRAMES * STRIDE)
        _clock[0] = time.process_time()  # what was read above is not counted
        dataset = data.LabeledVideoDataset(
            [(str(path), {"label": 0})], clip_sampler=data.make_clip_sampler("random", seconds), decode_audio=False
        )
        return len(list(ClipSamples(dataset, FRAMES, size)))

    return task


_clock = [0.0]


def measure(tasks: dict[str, Task], files: list[Path], clips: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds a clip of each task, one number a file and round; an empty list where it cannot read the files."""
    timings: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for number, path in enumerate(files):
            for name, task in tasks.items():
                draw = random.Random(1000 * turn + number)
                _clock[0] = time.process_time()
                try:
                    given = task(path, clips, draw)
                except (BadSample, RuntimeError) as error:
                    print(f"<!-- {name}: {path.name}: {error} -->")
                    continue
                if turn:  # the first round warms up
                    timings[name].append((time.process_time() - _clock[0]) / given)
    return timings


def quartiles(values: list[float]) -> list[float]:
    """The upper quartile, the median and the lower one; of a single value that value."""
    return statistics.quantiles(values, n=4)[::-1] if len(values) > 1 else values * 3


def table(title: str, timings: dict[str, dict[str, list[float]]]) -> None:
    """One table: a row a reader, a column a set of files."""
    columns = list(timings)
    print(f"\n{title}\n\n| reader | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name in next(iter(timings.values())):
        cells = []
        for column in columns:
            mine, base = timings[column].get(name), timings[column].get("pyav")
            if not mine or not base:
                cells.append("cannot")
                continue
            low, middle, high = (1 / value for value in quartiles(mine))
            cells.append(f"{middle:.1f} ({low:.1f} to {high:.1f}), {statistics.median(base) * middle:.2f}x")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def tasks_here() -> dict[str, Task]:
    """Everything that loads on this machine."""
    tasks = {}
    for name, version in known_readers().items():
        try:
            open_reader(Path(__file__), name)
        except BadSample:
            tasks[name] = reader_task(name)
            if name != "pyav":
                tasks[f"{name} alone"] = alone_task(name)
        except MimError as error:
            print(f"<!-- {name} {version}: {str(error).splitlines()[0]} -->")
    try:
        tasks["pytorchvideo LabeledVideoDataset"] = pytorchvideo_task()
    except MimError as error:
        print(f"<!-- {str(error).splitlines()[0]} -->")
    return tasks


def main() -> None:
    """Makes files, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = {name: version for name, version in known_readers().items() if version}
    versions["pytorchvideo"] = importlib.metadata.version("pytorchvideo") if "pytorchvideo" in _installed() else None
    print(f"{platform.machine()}, {platform.processor() or 'CPU'}, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as name:
        root, prepared = Path(name) / "in", Path(name) / "out"
        if options.files is None:
            root.mkdir()
            make_videos(root, options.videos, 250, options.seconds)
        else:
            root = options.files
        lines = list(prepare_collection(root, prepared, Encoding(), 1))
        made = [line for line in lines if line["status"] == "done"]
        for line in lines:
            if line["status"] == "failed":
                print(f"<!-- {line['file']} takes no part: {line['reason']} -->")
        tasks = tasks_here()
        sets = {
            "as they are": [root / line["file"] for line in made],
            "prepared": [prepared / line["out"] for line in made],
        }
        for clips in (1, 4):
            timings = {label: measure(tasks, files, clips, options.rounds) for label, files in sets.items()}
            table(f"Clips per CPU second, {clips} per opened file (quartiles), and times PyAV:", timings)


def _installed() -> set[str]:
    return {str(one.metadata["Name"]).lower() for one in importlib.metadata.distributions()}


if __name__ == "__main__":
    main()
