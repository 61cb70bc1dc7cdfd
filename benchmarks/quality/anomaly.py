"""Anomaly detection on real pictures that are at hand: detectors are trained on normal ones, and judged beside chance,
the nearest normal picture and the same network untrained.

    python benchmarks/quality/anomaly.py fashion --out FOLDER [--seeds 3] [--steps 600]
    python benchmarks/quality/anomaly.py frames --out FOLDER

``fashion``: the bundled sample of Fashion-MNIST, each of its ten classes as the normal one in turn. ``frames``: frames
of the bundled clips of mim-video, with defects made here, whose pixels are known. Each run is a line of
FOLDER/scores.jsonl as soon as it is done; those that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mim_video
import numpy as np
from mim_core.evaluation.features import prepare_study
from mim_core.evaluation.study import run_study
from mim_core.host.loading import installed
from mim_core.recipes.config import EvaluateConfig, Part, ResolvedRun
from mim_core.recipes.resolve import load_recipe, resolve_part
from mim_core.training.loop import start, train
from mim_image.idx import FASHION
from PIL import Image

SIZE = 64
"""Of frames, in pixels."""

DETECTORS = ("autoencoder", "autoencoder with SSMCTB", "autoencoder with SSPCAB", "MAE")


# ---- frames with defects ---------------------------------------------------------------------------------------------


def frames_of(split: str) -> list[Image.Image]:
    """The middle frame of every bundled clip of a split."""
    import av

    found = []
    for path in sorted((Path(mim_video.__file__).parent / "sample" / split).rglob("*.mp4")):
        with av.open(str(path)) as clip:
            frames = [frame.to_image() for frame in clip.decode(video=0)]
        found.append(frames[len(frames) // 2].resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return found


def spoiled(image: Image.Image, other: Image.Image, draw: np.random.Generator) -> tuple[Image.Image, Image.Image, str]:
    """A frame with a defect, where it is, and its kind: a piece of another frame, a thin scar, or a turned piece."""
    values, truth = np.array(image), np.zeros((SIZE, SIZE), np.uint8)
    kind = ("piece", "scar", "turned")[draw.integers(3)]
    high, wide = (3, draw.integers(14, 30)) if kind == "scar" else draw.integers(8, 20, size=2)
    top, left = draw.integers(0, SIZE - high), draw.integers(0, SIZE - wide)
    place = (slice(top, top + high), slice(left, left + wide))
    if kind == "piece":
        y, x = draw.integers(0, SIZE - high), draw.integers(0, SIZE - wide)
        values[place] = np.array(other)[y : y + high, x : x + wide]
    elif kind == "scar":
        values[place] = draw.integers(0, 256, size=3)
    else:
        values[place] = values[place][::-1, ::-1]
    changed = np.abs(values.astype(int) - np.array(image)).max(axis=-1) > 0
    truth[place] = 255 * changed[place]
    return Image.fromarray(values), Image.fromarray(truth), kind


def write_frames(root: Path) -> None:
    """The frames in MVTec AD's layout: every second test frame has a defect."""
    if (root / "test").exists():
        return
    for split, folder in (("train", "train/good"), ("test", "test/good")):
        images = frames_of(split)
        for number, image in enumerate(images):
            draw = np.random.default_rng(number)
            if split == "train" or number % 2 == 0:
                _save(image, root / folder / f"{number:04}.png")
                continue
            other = images[(number + 30) % len(images)]
            bad, truth, kind = spoiled(image, other, draw)
            while not np.array(truth).any():
                bad, truth, kind = spoiled(image, other, draw)
            _save(bad, root / "test" / kind / f"{number:04}.png")
            _save(truth, root / "ground_truth" / kind / f"{number:04}_mask.png")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


# ---- runs ------------------------------------------------------------------------------------------------------------


def recipe_of(detector: str, data: dict[str, Any], size: int, channels: int, seed: int, steps: int) -> ResolvedRun:
    """A detector's run on these data."""
    masked = detector == "MAE"
    run = load_recipe("image:mae-vit-tiny" if masked else "image:ssmctb-autoencoder-tiny", installed())
    colour = {} if channels == 1 else {"mean": None, "std": None}
    patch = (size // 8 if size == SIZE else 7) if masked else 4
    parts = dict(run.parts)
    crop = {"crop": (0.8, 1.0), "flip": 0.0, "mean": (0.286,), "std": (0.353,)}
    parts["data"] = resolve_part("data", Part.of("image:anomalies", **{**crop, **colour, **data}), installed())
    sizes = {"size": (size, size), "patch": (patch, patch), "channels": channels}
    parts["tokenizer"] = resolve_part("tokenizer", Part.of("image:patch", **sizes), installed())
    if not masked:
        block = {"autoencoder": "none", "autoencoder with SSPCAB": "sspcab"}.get(detector, "ssmctb")
        options = replace(parts["method"].options, block=block, widths=(16, 32) if channels == 1 else (32, 64))
        parts["method"] = replace(parts["method"], options=options)
    quick = {"steps": steps, "workers": 0, "seed": seed, "log_every": 50, "checkpoint_every": 10**6, "device": "cpu"}
    return replace(run, parts=parts, train=replace(run.train, **quick), evaluate=EvaluateConfig(on=("image:anomaly",)))


def measure(run: ResolvedRun, folder: Path) -> dict[str, Any]:
    """Trains and judges."""
    begun = time.process_time()
    assert train(start(run, folder, installed()), quiet=True)
    trained = time.process_time()
    study = prepare_study(folder, installed(), run.evaluate)
    scores = [vars(score) for score in run_study(study, installed())]
    return {"scores": scores, "seconds": [trained - begun, time.process_time() - trained]}


def tasks(what: str, out: Path, seeds: int) -> Iterator[tuple[str, dict[str, Any], int, int, int]]:
    """Name, data, size, channels and seed of each."""
    if what == "frames":
        write_frames(out / "frames")
    for seed in range(seeds):
        if what == "frames":
            yield "frames", {"root": out / "frames"}, SIZE, 3, seed
        for name in FASHION if what == "fashion" else ():
            yield name, {"root": Path("sample"), "normal": name}, 28, 1, seed


def main() -> None:
    """All runs that are not there yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fashion", "frames"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--detectors", nargs="+", default=DETECTORS, choices=DETECTORS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "scores.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for name, data, size, channels, seed in tasks(given.what, given.out, given.seeds):
        for detector in given.detectors:
            about = {"task": name, "detector": detector, "seed": seed, "steps": given.steps}
            if any(about.items() <= line.items() for line in done):
                continue
            run = recipe_of(detector, data, size, channels, seed, given.steps)
            found = measure(run, given.out / f"runs/{name}-{detector}-{seed}-{given.steps}".replace(" ", "-"))
            with open(path, "a") as file:
                file.write(json.dumps({**about, **found}) + "\n")
    print_table([json.loads(line) for line in path.read_text().splitlines()])


def print_table(lines: list[dict[str, Any]]) -> None:
    """Means over tasks and seeds; the deviation of the means of the seeds, and that over the tasks."""
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for line in lines:
        for score in line["scores"]:
            row = line["detector"] if score["row"] == "pre-trained encoder" else score["row"]
            row = f"{line['detector']}, untrained" if row == "untrained encoder" else row
            values.setdefault((row, score["column"]), {}).setdefault(line["seed"], {})[line["task"]] = score["value"]
    for (row, column), by_seed in sorted(values.items(), key=lambda item: (item[0][1], item[0][0])):
        of_seeds = [float(np.mean(list(tasks.values()))) for tasks in by_seed.values()]
        of_tasks = [np.mean([tasks[t] for tasks in by_seed.values() if t in tasks]) for t in by_seed[min(by_seed)]]
        spread = f"{np.std(of_seeds, ddof=1):.3f}" if len(of_seeds) > 1 else "-"
        across = f"{np.std(of_tasks, ddof=1):.3f}" if len(of_tasks) > 1 else "-"
        print(f"{column:24} {row:36} {np.mean(of_seeds):.3f}  seeds {spread} ({len(of_seeds)})  tasks {across}")


if __name__ == "__main__":
    main()
