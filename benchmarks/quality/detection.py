"""Detection on small scenes: Mask R-CNN on an encoder that was pre-trained as MAE for a moment, beside the same
detector from scratch, given the same steps, and given the pre-training's time on top.

    python benchmarks/quality/detection.py --out FOLDER [--seeds 3] [--steps 240] [--pretrain-steps 240]

Scenes of several bundled Fashion-MNIST pictures are made and written as a COCO folder in FOLDER/scenes: many without
labels for pre-training, a few of them with boxes and masks, and held-out ones of pictures that training never sees. All
is done by the commands that people use. Each run is a line of FOLDER/scores.jsonl as soon as it is done; those that are
there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mim_core.cli import main as command
from mim_image import scenes
from mim_image.data import SAMPLE
from PIL import Image

UNLABELLED, LABELLED, HELD = 4000, 400, 200
"""Scenes."""
ARMS = ("pre-trained", "from scratch", "from scratch, longer")
COLUMNS = ("AP", "AP50", "AP75", "mask AP", "mask AP50", "mask AP75")
ENCODER = ["--encoder.width", "96", "--encoder.depth", "3", "--encoder.heads", "3", "--tokenizer.size", "64", "64"]
ENCODER += ["--tokenizer.patch", "8", "8", "--tokenizer.channels", "1"]
STATISTICS = ["--data.mean", "0.12", "--data.std", "0.2"]
HEADS = ["--method.channels", "32", "--method.hidden", "64", "--method.convolutions", "1", "--method.regions", "32"]
HEADS += ["--method.proposals", "50", "--method.detections", "20", "--method.least-score", "0.02"]
QUIET = ["--train.workers", "0", "--train.device", "cpu", "--quiet"]


def write_scenes(root: Path) -> None:
    """A COCO folder of scenes."""
    if (root / "annotations/instances_val.json").exists():
        return
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, source, count in (("train", "train", UNLABELLED), ("val", "test", HELD)):
        images, objects = scenes.compose(SAMPLE, source, count)
        (root / split).mkdir(exist_ok=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / split / f"{number:05}.png")
        made = objects.take(range(LABELLED if split == "train" else HELD)).as_coco()
        for number, image in enumerate(made["images"]):
            image["file_name"] = f"{number:05}.png"
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(made))


def pretrain(root: Path, out: Path, seed: int, steps: int) -> None:
    """MAE on all scenes of the training folder, without labels."""
    args = ["pretrain", "image:mae-vit-tiny", "--data.root", str(root / "train"), "--data.crop", "0.5", "1.0"]
    args += ["--train.batch-size", "64", "--train.steps", str(steps), "--train.warmup-epochs", "1"]
    args += ["--train.base-lr", "1e-3", "--train.lr-batch", "64", "--train.seed", str(seed), "--out", str(out)]
    assert command([*args, *STATISTICS, *ENCODER, *QUIET]) == 0


def finetune(run: Path, root: Path, out: Path, steps: int, scratch: bool) -> dict[str, float]:
    """The detector on the labelled scenes; its scores."""
    args = [
        "finetune",
        str(run),
        "--use",
        "method=image:detector",
        "--data.root",
        str(root),
        "--data.scale",
        "0.8",
        "1.2",
    ]
    args += ["--train.batch-size", "8", "--train.steps", str(steps), "--train.warmup-epochs", "0.5"]
    args += ["--train.base-lr", "2e-3", "--train.lr-batch", "8", "--train.weight-decay", "0.05", "--out", str(out)]
    assert command([*args, *HEADS, *QUIET, *(["--scratch"] if scratch else [])]) == 0
    scores = json.loads((out / "scores.json").read_text())["scores"]
    row = "trained from scratch" if scratch else "fine-tuned"
    others = {
        f"{s['row']}: {s['column']}": s["value"] for s in scores if s["row"] in ("mean box", "untrained detector")
    }
    return {**{s["column"]: s["value"] for s in scores if s["row"] == row}, **others}


def runs(out: Path, seed: int, steps: int, pretrain_steps: int, done: set[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    """The arms of a seed that are not done."""
    root, run = out / "scenes", out / f"mae-{seed}"
    began = time.process_time()
    pretrain(root, run, seed, pretrain_steps)
    kept = out / f"mae-{seed}.seconds"
    if not kept.exists():
        kept.write_text(str(time.process_time() - began))
    extra = float(kept.read_text())
    for arm in ARMS:
        count = steps
        if arm.endswith("longer"):
            times = json.loads((out / f"seconds-{seed}.json").read_text())
            count = steps + round(extra / times["step"])
        if (seed, arm) in done:
            continue
        began = time.process_time()
        folder = out / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
        scores = finetune(run, root, folder, count, arm != "pre-trained")
        each = time.process_time() - began
        if arm == "from scratch":
            began = time.process_time()
            assert command(["evaluate", str(folder)]) == 0  # what the test takes is no part of a step
            step = (each - (time.process_time() - began)) / steps
            (out / f"seconds-{seed}.json").write_text(json.dumps({"step": step}))
        yield {"seed": seed, "arm": arm, "steps": count, "seconds": each, "pretraining": extra, **scores}


def table(lines: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of each arm, as Markdown."""
    rows = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for arm in ARMS:
        own = [line for line in lines if line["arm"] == arm]
        cells = []
        for column in COLUMNS:
            values = [line[column] for line in own]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "-")
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """All seeds, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--pretrain-steps", type=int, default=240)
    given = parser.parse_args()
    write_scenes(given.out / "scenes")
    path = given.out / "scores.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in range(given.seeds):
        done = {(line["seed"], line["arm"]) for line in lines}
        if all((seed, arm) in done for arm in ARMS):
            continue
        for line in runs(given.out, seed, given.steps, given.pretrain_steps, done):
            lines.append(line)
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
