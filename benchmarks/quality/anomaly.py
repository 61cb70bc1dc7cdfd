"""Anomaly detection on real pictures that are at hand: detectors are trained on normal ones, and judged beside chance,
the nearest normal picture and the same network untrained.

    python benchmarks/quality/anomaly.py fashion --out FOLDER [--seeds 3] [--steps 600]
    python benchmarks/quality/anomaly.py frames --out FOLDER

``fashion``: the bundled sample of Fashion-MNIST, each of its ten classes as the normal one in turn. ``frames``: frames
of the bundled clips of mim-video, with defects made here, whose pixels are known. Each run is a line of
FOLDER/scores.jsonl as soon as it is done; those that are there are not repeated.

AMAE begins as the run of "MAE", which must come before it, and also learns from unlabelled pictures, 30 % of them
abnormal: of the classes that are not normal, or of training frames with defects. No picture of the test is among them.
"AMAE by errors" is the run of "AMAE", which must come before it, judged once more by the option score = "errors".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
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

DETECTORS = (
    *("MAE", "autoencoder", "autoencoder with SSMCTB", "AMAE, first step", "AMAE", "AMAE by errors"),
    "autoencoder with SSPCAB",
)
RECIPES = {"MAE": "mae-vit-tiny", "AMAE, first step": "amae-1-tiny", "AMAE": "amae-2-tiny"}
"""Of the masked ones; the others are ssmctb-autoencoder-tiny."""

COVERS = 2
"""Of masks, in the scores."""

MIX = 0.3
"""Share of abnormal pictures among those that AMAE learns from unlabelled."""


# ---- frames with defects ---------------------------------------------------------------------------------------------


def frames_of(split: str) -> list[Image.Image]:
    """The middle frame of every bundled clip of a split."""
    import av

    pictures = []
    for path in sorted((Path(mim_video.__file__).parent / "sample" / split).rglob("*.mp4")):
        with av.open(str(path)) as clip:
            frames = [frame.to_image() for frame in clip.decode(video=0)]
        pictures.append(frames[len(frames) // 2].resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return pictures


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
    """The frames in MVTec AD's layout: every second test frame has a defect. Beside them, for AMAE, every second
    training frame once more, of which 30 % have a defect."""
    if (root / "test").exists():
        return
    images = frames_of("train")
    for number in range(1, len(images), 2):
        bad = number // 2 % 10 < 10 * MIX
        image = spoiled(images[number], images[(number + 30) % len(images)], np.random.default_rng((1, number)))[0]
        _save(image if bad else images[number], root.parent / f"unlabelled/{number:04}.png")
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


@dataclass(frozen=True)
class Task:
    """What is normal, and how it is learned.

    Attributes:
        name: In the table.
        data: Options of the data.
        mixed: Those that also give AMAE unlabelled pictures.
        size: Of pictures, in pixels.
        channels: Of pictures.
        batch: Pictures of a step.
    """

    name: str
    data: dict[str, Any]
    mixed: dict[str, Any]
    size: int
    channels: int
    batch: int


def tasks(what: str, out: Path) -> list[Task]:
    """Each class of Fashion-MNIST, or the frames, which are written first."""
    if what == "fashion":
        grey = {"root": Path("sample"), "mean": (0.286,), "std": (0.353,)}
        return [Task(name, {**grey, "normal": name}, {"mix": MIX}, 28, 1, 64) for name in FASHION]
    write_frames(out / "frames")
    colour = {"root": out / "frames", "mean": None, "std": None}
    return [Task("frames", colour, {"unlabelled": out / "unlabelled"}, SIZE, 3, 16)]


def recipe_of(detector: str, task: Task, seed: int, steps: int, runs: dict[str, Path]) -> ResolvedRun:
    """A detector's run.

    Args:
        detector: One of `DETECTORS`.
        task: What is normal.
        seed: Of the run.
        steps: Of the run.
        runs: Folders of all detectors' runs on this task, for those that go on from another.
    """
    run = load_recipe(f"image:{RECIPES.get(detector, 'ssmctb-autoencoder-tiny')}", installed())
    mixed = task.mixed if detector == "AMAE" else {}
    data = Part.of("image:anomalies", crop=(0.8, 1.0), flip=0.0, **task.data, **mixed)
    patch = 4 if detector not in RECIPES else 7 if task.size == 28 else 8
    sizes = {"size": (task.size, task.size), "patch": (patch, patch), "channels": task.channels}
    tokenizer = Part.of("image:patch", **sizes)
    method = run.parts["method"]
    parts = {
        **run.parts,
        "data": resolve_part("data", data, installed()),
        "tokenizer": resolve_part("tokenizer", tokenizer, installed()),
        "method": replace(method, options=replace(method.options, **method_of(detector, runs))),
    }
    rate = run.train.base_lr * 64 / run.train.lr_batch  # the rate of a batch of 64, for any batch
    rate = rate * 10 if detector == "AMAE" else rate  # its recipe has many more steps
    train = replace(
        run.train, steps=steps, batch_size=task.batch, micro_batch=None, base_lr=rate, lr_batch=task.batch,
        warmup_epochs=1, workers=0, seed=seed, log_every=50, checkpoint_every=10**6, device="cpu",
    )  # fmt: skip
    return replace(run, parts=parts, train=train, evaluate=EvaluateConfig(on=("image:anomaly",), covers=COVERS))


def method_of(detector: str, runs: dict[str, Path]) -> dict[str, Any]:
    """Options of a detector's method."""
    if detector == "MAE":
        return {}
    if detector in RECIPES:
        first = {"classifier": runs["AMAE, first step"]} if detector == "AMAE" else {}
        return {"run": runs["MAE"], **first}
    blocks = {"autoencoder": "none", "autoencoder with SSPCAB": "sspcab", "autoencoder with SSMCTB": "ssmctb"}
    return {"block": blocks[detector], "widths": (16, 32)}


def measure(run: ResolvedRun, folder: Path) -> dict[str, Any]:
    """Trains and judges."""
    begun = time.process_time()
    assert train(start(run, folder, installed()), quiet=True)
    trained = time.process_time()
    scores = judged(folder, run.evaluate)
    return {"scores": scores, "seconds": [trained - begun, time.process_time() - trained]}


def judged(folder: Path, config: EvaluateConfig, score: str = "") -> list[dict[str, Any]]:
    """Scores of a run; of AMAE's by another score than the run's own."""
    study = prepare_study(folder, installed(), config)
    if score:
        study.methods = {row: partial(scored, make, score) for row, make in study.methods.items()}
    return [vars(each) for each in run_study(study, installed())]


def scored(make: Callable[[], Any], score: str) -> Any:
    """A method that scores otherwise."""
    method = make()
    method.score = score
    return method


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
    chosen = product(range(given.seeds), tasks(given.what, given.out), given.detectors)
    for seed, task, detector in chosen:
        about = {"task": task.name, "detector": detector, "seed": seed, "steps": given.steps}
        if any(about.items() <= line.items() for line in done):
            continue
        runs = {
            one: given.out / f"runs/{task.name}-{one}-{seed}-{given.steps}".replace(" ", "-").replace(",", "")
            for one in DETECTORS
        }
        if detector == "AMAE by errors":
            begun = time.process_time()
            config = EvaluateConfig(on=("image:anomaly",), covers=COVERS)
            scores = judged(runs["AMAE"], config, "errors")
            measured = {"scores": scores, "seconds": [0.0, time.process_time() - begun]}
        else:
            measured = measure(recipe_of(detector, task, seed, given.steps, runs), runs[detector])
        with open(path, "a") as file:
            file.write(json.dumps({**about, **measured}) + "\n")
    print_table([json.loads(line) for line in path.read_text().splitlines()])


def print_table(lines: list[dict[str, Any]]) -> None:
    """Means over tasks and seeds; the deviation of the means of the seeds, and that over the tasks."""
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for line in lines:
        for score in line["scores"]:
            if line["detector"] in ("AMAE", "AMAE by errors") and score["row"] == "raw input":
                continue  # it knows fewer pictures for normal
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
