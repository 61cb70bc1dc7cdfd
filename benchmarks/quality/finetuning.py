"""Fine-tuning beside training from scratch with 1 %, 10 % and 100 % of the labels, on the bundled data of each
modality.

One encoder of each modality is pre-trained by its tiny recipe on the bundled training data, without labels. Then
`finetune` trains it on a share of the labels (``--data.labels``, the same samples for every seed), and the same network
from untrained weights, with three seeds each: they draw the head, the order, the augmentation and, from scratch, all
weights. Both rows have the same options; nothing was tuned. The test split is never trained on.

    python benchmarks/quality/finetuning.py --page docs/results/finetuning.md

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
from mim_core.data.labelled import share_of
from mim_core.methods.build import open_source
from mim_core.runs.load import load_run

STARTS = {"fine-tuned": (), "trained from scratch": ("--scratch",)}
FOLDERS = {"fine-tuned": "finetune", "trained from scratch": "scratch"}
SEEDS = 3
MARKS = ("<!-- tables -->", "<!-- end of tables -->")


@dataclass(frozen=True)
class Setting:
    """What is trained of a modality: a tiny recipe, its epochs, the samples of a step of fine-tuning, and the steps
    with each share of the labels. Few labels are soon known by heart: they get fewer steps."""

    recipe: str
    pretrain: float
    batch: int
    steps: dict[float, int]


SETTINGS = {
    "images": Setting("image:mae-vit-tiny", 20, 32, {0.01: 124, 0.1: 250, 1.0: 625}),
    "video": Setting("video:videomae-vit-tiny", 15, 16, {0.01: 60, 0.1: 80, 1.0: 120}),
    "point clouds": Setting("pointcloud:point-mae-vit-tiny", 30, 16, {0.01: 100, 0.1: 150, 1.0: 200}),
    "multimodal": Setting("multimodal:multimae-vit-tiny", 15, 16, {0.01: 60, 0.1: 80, 1.0: 100}),
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


def labelled_samples(run: Path, share: float) -> int:
    """How many samples a share of the labels is: at least one of each class."""
    opened = load_run(run)
    tokenizer: Any = opened.method.tokenizer
    split = open_source(opened.recipe, tokenizer).labelled("train")
    return len(share_of(split, 0.0 if share == 1 else share)[0].labels)


def cell(name: str, share: float, start: str, run: Path) -> dict[str, Any]:
    """Three seeds of one start with one share of the labels: their scores, and how many samples there were."""
    folder = run / f"{FOLDERS[start]}-labels-{share:g}"
    setting, samples = SETTINGS[name], labelled_samples(run, share)
    batch, steps = setting.batch, setting.steps[share]
    options = ["--train.steps", str(steps), "--train.batch-size", str(batch), "--train.lr-batch", str(batch)]
    options += ["--train.warmup-epochs", f"{steps * batch / samples / 10:.6g}", "--train.workers", "0"]
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
        "steps": steps,
        "seconds": round(time.monotonic() - before),
        "samples": int(note.split()[0].replace(",", "")),
        "test": int(note.split(", ")[1].split()[0].replace(",", "")),
        "values": {column: [seed_scores[start, column]["value"] for seed_scores in scores] for column in columns},
        "errors": [seed_scores[start, "accuracy"].get("error") for seed_scores in scores],
        "majority": scores[0]["majority class", "accuracy"]["value"],
        "majority of classes": scores[0]["majority class", "mean class accuracy"]["value"],
    }


def mean_and_spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) ** 0.5
    return f"{mean:.3f} ± {spread:.3f}"


def tables(cells: list[dict[str, Any]]) -> str:
    """A table for each modality, as Markdown; what was not measured is a dash."""
    text = []
    for name, setting in SETTINGS.items():
        own = {(each["share"], each["start"]): each for each in cells if each["modality"] == name}
        head = [
            "labels",
            "steps",
            "majority",
            "from scratch",
            "pre-trained",
            "lead",
            "by class: from scratch",
            "pre-trained",
        ]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for share, steps in setting.steps.items():
            both = [own.get((share, start)) for start in reversed(STARTS)]
            known = [each for each in both if each is not None]
            row = [f"{share:.0%}" + (f": {known[0]['samples']:,}" if known else ""), str(steps)]
            row += [f"{known[0]['majority']:.3f}" if known else "-"]
            row += ["-" if each is None else mean_and_spread(each["values"]["accuracy"]) for each in both]
            row += [lead(*known) if len(known) == len(both) else "-"]
            row += ["-" if each is None else mean_and_spread(each["values"]["mean class accuracy"]) for each in both]
            lines.append("| " + " | ".join(row) + " |")
        test = f", {next(iter(own.values()))['test']:,} test samples" if own else ": not measured"
        text.append(f"**{name.capitalize()}**{test}\n\n" + "\n".join(lines))
    return "\n\n".join(text)


def lead(drawn: dict[str, Any], taken: dict[str, Any]) -> str:
    """What the pre-trained start is worth in accuracy, and the standard error of that, over the test samples (binomial,
    as if the two were independent, which is rather too large) and over the seeds."""
    means, noise = [], 0.0
    for each in (drawn, taken):
        values, test = each["values"]["accuracy"], each["test"]
        mean = sum(values) / len(values)
        noise += mean * (1 - mean) / test + sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)
        means.append(mean)
    return f"{means[1] - means[0]:+.3f} ({noise**0.5:.3f})"


def write_page(page: Path, cells: list[dict[str, Any]]) -> None:
    """Puts the tables between the two marks of a page."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n\n{tables(cells)}\n\n{MARKS[1]}{after}")


def main() -> None:
    """Does what is not done yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--shares", nargs="*", type=float, default=[0.01, 0.1, 1.0])
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning/finetuning.json"))
    parser.add_argument("--page", type=Path, help="a page whose tables are written anew, docs/results/finetuning.md")
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
    if options.page is not None:
        write_page(options.page, known["cells"])
    print(tables(known["cells"]))


if __name__ == "__main__":
    main()
