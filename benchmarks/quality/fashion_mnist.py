"""Probes of MAE encoders on Fashion-MNIST beside a reference that was measured with the official MAE model class.

The reference: encoder 128 wide, 4 blocks, patch 4, decoder 64 x 1, 40 epochs over the first 10,000 training images,
batch 256, mask 0.75, probed on mean-pooled tokens with all 10,000 test images. Two settings of crop, rate and target;
several seeds of each. Images are fed as the official code feeds them: its class cuts three channels whatever it is
given (``patchify``), and its loader normalises with ImageNet's means and deviations. ``--grey`` feeds one channel of
mean 0 and deviation 1 in their place.

    apt-get install dataset-fashion-mnist
    python benchmarks/quality/fashion_mnist.py --seeds 0 1 2 --out docs/results/quality.json

Each run takes 400,000 samples: 21 to 30 minutes on one busy CPU thread. A run that is complete under --runs is not
done again, so several processes can share the work and one more call prints the table.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = ("k-NN", "linear", "linear, 100 labels", "linear, 1,000 labels")
SETTINGS = {
    "crop 0.2-1, lr 1e-3, normalised": (
        ["--data.crop", "0.2", "1.0", "--train.base-lr", "1e-3", "--target.normalize"],
        (0.787, 0.807, 0.648, 0.756),
    ),
    "crop 0.6-1, lr 2e-3, raw": (
        ["--data.crop", "0.6", "1.0", "--train.base-lr", "2e-3", "--target.no-normalize"],
        (0.791, 0.817, 0.675, 0.767),
    ),
}
SHAPE = [
    "--tokenizer.patch", "4", "4", "--encoder.width", "128", "--encoder.depth", "4", "--encoder.heads", "4",
    "--decoder.width", "64", "--decoder.depth", "1", "--decoder.heads", "4", "--masker.ratio", "0.75",
    "--train.epochs", "40", "--train.batch-size", "256", "--train.warmup-epochs", "2", "--train.workers", "0",
]  # fmt: skip
COLOUR = [
    "--tokenizer.channels", "3", "--data.mean", "0.485", "0.456", "0.406", "--data.std", "0.229", "0.224", "0.225",
]  # fmt: skip


def first_images(source: Path, target: Path, count: int) -> Path:
    """The first training images, and all test images, as a folder of idx files."""
    target.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{prefix}-{kind}-ubyte.gz"
            content = gzip.decompress((source / name).read_bytes())
            axes = content[3]
            sizes = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
            keep = min(count, sizes[0]) if prefix == "train" else sizes[0]
            start, item = 4 + 4 * axes, (len(content) - 4 - 4 * axes) // sizes[0]
            head = content[:4] + struct.pack(f">{axes}I", keep, *sizes[1:])
            (target / name).write_bytes(gzip.compress(head + content[start : start + keep * item], 1))
    return target


def one_run(setting: str, seed: int, data: Path, runs: Path, precision: str, grey: bool) -> dict[str, object]:
    """Trains and evaluates; returns the scores by row and column, and the seconds of training."""
    folder = runs / f"{setting.split(',')[0].replace(' ', '-')}-{precision}{'-grey' if grey else ''}-{seed}"
    done = folder / "benchmark.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    arguments = [*SETTINGS[setting][0], *SHAPE, "--train.seed", str(seed), "--train.precision", precision]
    arguments += [] if grey else COLOUR
    command = [sys.executable, "-m", "mim_core"]
    start = time.monotonic()
    subprocess.run(
        [*command, "pretrain", "image:mae-vit-tiny", "--data.root", data, "--out", folder, *arguments], check=True
    )
    seconds = time.monotonic() - start
    subprocess.run([*command, "evaluate", folder], check=True, stdout=subprocess.DEVNULL)
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    result = {"setting": setting, "seed": seed, "seconds": round(seconds), "scores": scores}
    done.write_text(json.dumps(result))
    return result


def value(run: dict, row: str, column: str) -> float:
    """One score of a run."""
    return next(s["value"] for s in run["scores"] if s["row"] == row and s["column"] == column)


def table(results: list[dict]) -> str:
    """Means over seeds, with their spread, beside the reference, as Markdown."""
    lines = ["| setting | row | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for setting, (_, reference) in SETTINGS.items():
        runs = [run for run in results if run["setting"] == setting]
        if not runs:
            continue
        cells = []
        for column in COLUMNS:
            values = [value(run, "pre-trained encoder", column) for run in runs]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {setting} | mim-image, {len(runs)} seeds | " + " | ".join(cells) + " |")
        lines.append("| | reference | " + " | ".join(f"{v:.3f}" for v in reference) + " |")
    for row in ("untrained encoder", "raw input", "majority class"):
        cells = [f"{statistics.mean(value(run, row, column) for run in results):.3f}" for column in COLUMNS]
        lines.append(f"| any | {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--precision", default="fp32", help="bf16 is slower than fp32 on most CPUs")
    parser.add_argument("--grey", action="store_true", help="one channel, of mean 0 and deviation 1")
    parser.add_argument("--out", type=Path, default=Path("runs/quality/quality.json"))
    options = parser.parse_args()
    data = first_images(options.data, options.runs / "fashion-mnist", 10_000)
    results = []
    for seed in options.seeds:
        for setting in options.settings:
            results.append(one_run(setting, seed, data, options.runs, options.precision, options.grey))
            import torch

            about = {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "torch": torch.__version__,
                "precision": options.precision,
                "channels": 1 if options.grey else 3,
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({**about, "runs": results}, indent=1))
            print(table(results), flush=True)


if __name__ == "__main__":
    main()
