"""Fine-tuning beside training from scratch with 1 %, 10 % and 100 % of the labels, on the bundled data of each
modality.

One encoder of each modality is pre-trained by its tiny recipe on the bundled training data, without labels. Then
`finetune` trains it on a share of the labels (``--data.labels``, the same samples for every seed), and the same network
from untrained weights, with three seeds each: they draw the head, the order, the augmentation and, from scratch, all
weights. Both rows have the same options; nothing was tuned. The test split is never trained on.

    python benchmarks/quality/finetuning.py --out docs/results/finetuning.json

A cell that stands in the file is not done again, and a run that was stopped goes on, so that the work can be done in
parts: ``--only video --shares 0.01``. One more call without work to do prints the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_core.cli import main as command

STARTS = {"fine-tuned": (), "trained from scratch": ("--scratch",)}
FOLDERS = {"fine-tuned": "finetune", "trained from scratch": "scratch"}
SEEDS = 3


@dataclass(frozen=True)
class Setting:
    """What is trained of a modality: a tiny recipe, for how many epochs, and the epochs on each share of the labels."""

    recipe: str
    pretrain: float
    epochs: dict[float, float]


SETTINGS = {
    "images": Setting("image:mae-vit-tiny", 20, {0.01: 40, 0.1: 10, 1.0: 2}),
    "video": Setting("video:videomae-vit-tiny", 15, {0.01: 40, 0.1: 20, 1.0: 5}),
    "point clouds": Setting("pointcloud:point-mae-vit-tiny", 30, {0.01: 40, 0.1: 20, 1.0: 10}),
    "multimodal": Setting("multimodal:multimae-vit-tiny", 15, {0.01: 30, 0.1: 10, 1.0: 2}),
}


def pretrained(name: str, runs: Path) -> tuple[Path, float]:
    """The run of a modality's recipe, and how many seconds it took."""
    setting, folder = SETTINGS[name], runs / name.replace(" ", "-") / "run"
    done = folder / "benchmark.json"
    if not done.exists():
        start = time.monotonic()
        options = ["--train.epochs", str(setting.pretrain), "--train.workers", "0", "--quiet", "--out", str(folder)]
        assert command(["pretrain", setting.recipe, *options]) == 0, f"{name}: pre-training stopped"
        done.write_text(json.dumps({"seconds": time.monotonic() - start}))
    return folder, float(json.loads(done.read_text())["seconds"])


def cell(name: str, share: float, start: str, run: Path) -> dict[str, Any]:
    """Three seeds of one start with one share of the labels: their scores, and how many samples there were."""
    folder = run / f"{FOLDERS[start]}-labels-{share:g}"
    epochs = SETTINGS[name].epochs[share]
    options = ["--train.epochs", str(epochs), "--train.warmup-epochs", str(epochs / 10), "--train.workers", "0"]
    options += [] if share == 1 else ["--data.labels", str(share)]
    before = time.monotonic()
    seeds = ["--seeds", str(SEEDS), "--out", str(folder), "--quiet"]
    assert command(["finetune", str(run), *STARTS[start], *options, *seeds]) == 0, f"{folder} stopped"
    tables = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*/scores.json"))]
    scores = [{(s["row"], s["column"]): s for s in table["scores"]} for table in tables]
    note = next(note for note in tables[0]["notes"] if "labelled training samples" in note)
    columns = ("accuracy", "mean class accuracy")
    return {
        "modality": name,
        "share": share,
        "start": start,
        "epochs": epochs,
        "seconds": round(time.monotonic() - before),
        "samples": int(note.split()[0].replace(",", "")),
        "test": int(note.split(", ")[1].split()[0].replace(",", "")),
        "values": {column: [found[start, column]["value"] for found in scores] for column in columns},
        "errors": [found[start, "accuracy"].get("error") for found in scores],
        "majority": scores[0]["majority class", "accuracy"]["value"],
        "majority of classes": scores[0]["majority class", "mean class accuracy"]["value"],
    }


def mean_and_spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) ** 0.5
    return f"{mean:.3f} ± {spread:.3f}"


def tables(cells: list[dict[str, Any]]) -> str:
    """Markdown: a table for each modality."""
    text = []
    for name in SETTINGS:
        own = [each for each in cells if each["modality"] == name]
        if not own:
            continue
        lines = [
            "| labels | majority | from scratch | pre-trained | lead | from scratch, by class | pre-trained, by class |"
        ]
        lines.append("|---|---|---|---|---|---|---|")
        for share in SETTINGS[name].epochs:
            by = {each["start"]: each for each in own if each["share"] == share}
            if len(by) < len(STARTS):
                continue
            drawn, taken = by["trained from scratch"], by["fine-tuned"]
            means = [sum(each["values"]["accuracy"]) / SEEDS for each in (drawn, taken)]
            row = [f"{share:.0%}: {taken['samples']:,}", f"{taken['majority']:.3f}"]
            row += [mean_and_spread(each["values"]["accuracy"]) for each in (drawn, taken)]
            row += [f"{means[1] - means[0]:+.3f}"]
            row += [mean_and_spread(each["values"]["mean class accuracy"]) for each in (drawn, taken)]
            lines.append("| " + " | ".join(row) + " |")
        text.append(f"{name}, {own[0]['test']:,} test samples\n\n" + "\n".join(lines))
    return "\n\n".join(text)


def main() -> None:
    """Does what is not done yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--shares", nargs="*", type=float, default=[0.01, 0.1, 1.0])
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning/finetuning.json"))
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out.exists() else {"pretraining": {}, "cells": []}
    for name in options.only:
        for share in options.shares:
            for start in STARTS:
                key = (name, share, start)
                if key in [(each["modality"], each["share"], each["start"]) for each in known["cells"]]:
                    continue
                run, seconds = pretrained(name, options.runs)
                known["cells"].append(cell(*key, run))
                known["pretraining"][name] = round(seconds)
                known |= {
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                    "python": platform.python_version(),
                }
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(known, indent=1))
    print(tables(known["cells"]))


if __name__ == "__main__":
    main()
