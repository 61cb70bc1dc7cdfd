"""4M on the bundled frames: class maps and depth made of RGB by generation, beside what else reads them from RGB.

    python benchmarks/quality/fourm.py --out runs/fourm

One seed. Trains `4m-vit-tiny`, and two encoders of the same size from scratch on the same frames' class
maps and depth (`rgb-vit-tiny` under a linear head, as many steps of as many samples). All are judged on the 240 frames
of 8 maps that training never saw, in class maps of 16 x 16 and depth of 64 x 64, as MultiMAE's probes are. Each row is
printed, and kept in results.json, as it is done; what is there already is not done again.

Generation gives standardised depth, which has neither a frame's mean nor its deviation: "RMSE" puts those of the
training frames in their place, "RMSE, aligned" those of the frame itself, which a user does not have.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mim_core import EvaluateConfig, Study, build_method, installed, load_recipe, load_run
from mim_core import main as command
from mim_core.methods.generation import Generation
from mim_multimodal import evaluations
from mim_multimodal.data import SAMPLE, Aligned
from mim_multimodal.depth import standardise
from torch import Tensor
from torch.nn import functional as F

CLASSES = 14
SHAPES = {"rgb": (3, 64, 64), "depth": (1, 64, 64), "semseg": (16, 16)}


class Frames:
    """All frames of a split: inputs as a method sees them, and the truth.

    Attributes:
        sample: rgb, standardised depth, class ids.
        depth: [n, 64, 64], as a share of the largest of the training frames.
        shift: [n, 1, 1], the depth that standardised depth calls 0.
        scale: [n, 1, 1], and how much one of its units is.
    """

    def __init__(self, split: str, largest: float | None = None) -> None:
        source = Aligned(Aligned.Config(root=SAMPLE, depth_limit=3.0, flip=0.0), SHAPES)
        items = source.dense(split)
        self.sample = source.finish({k: torch.stack([items[i][k] for i in range(len(items))]) for k in items[0]})
        raw = self.sample.pop("depth_raw")[:, 0].double()
        self.largest = float(raw.max()) if largest is None else largest
        self.depth = (raw / self.largest).clamp(min=evaluations.STEP)
        made = standardise(self.depth[:, None].float())[:, 0].double()
        low, high = self.depth.flatten(1).amin(dim=1), self.depth.flatten(1).amax(dim=1)
        first, last = made.flatten(1).amin(dim=1), made.flatten(1).amax(dim=1)
        self.scale = ((high - low) / (last - first).clamp(min=1e-9))[:, None, None]
        self.shift = low[:, None, None] - self.scale * first[:, None, None]


def scored(classes: Tensor | None, depth: Tensor | None, aligned: Tensor | None, test: Frames) -> dict[str, float]:
    """mIoU of class maps [n, 16, 16], RMSE and delta 1 of depth [n, 64, 64] as a share of the largest."""
    scores: dict[str, float] = {}
    if classes is not None:
        scores["mIoU"], scores["pixels"] = evaluations.mean_iou(classes, test.sample["semseg"], CLASSES)
    if depth is not None:
        scores["RMSE"], scores["delta 1"] = evaluations.depth_errors(depth, test.depth)
    if aligned is not None:
        scores["RMSE, aligned"] = evaluations.depth_errors(aligned, test.depth)[0]
    return {name: round(value, 4) for name, value in scores.items()}


def from_standardised(values: Tensor, train: Frames, test: Frames) -> tuple[Tensor, Tensor]:
    """Standardised depth [n, 64, 64] in shares: with the training frames' mean shift and scale, and the frame's own."""
    return values * train.scale.mean() + train.shift.mean(), values * test.scale + test.shift


def majority(train: Frames, test: Frames) -> dict[str, float]:
    """The commonest class and the mean depth at each pixel; aligned: the mean standardised depth."""
    ids = evaluations.commonest(train.sample["semseg"], CLASSES).expand_as(test.sample["semseg"])
    standard = train.sample["depth"][:, 0].double().mean(dim=0).expand_as(test.depth)
    mean = train.depth.mean(dim=0).expand_as(test.depth)
    return scored(ids, mean, from_standardised(standard, train, test)[1], test)


def wide(ids: Tensor) -> Tensor:
    """Class maps of 8 x 8 as 16 x 16."""
    return ids.long().repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


def true_ids(method: Any, train: Frames, test: Frames) -> dict[str, float]:
    """What the right ids would give: the best that this run's ids can be."""
    depth = method.tokenizer.part("depth")
    patches = depth.split({"depth": test.sample["depth"]})
    values = depth.join(patches.values, patches.layout)[:, 0].double()
    coarse = test.sample["semseg"][:, ::2, ::2]
    return scored(wide(coarse), *from_standardised(values, train, test), test)


@torch.no_grad()
def generated(method: Any, train: Frames, test: Frames, **how: Any) -> dict[str, float]:
    """Both maps from RGB, class maps first."""
    method.generation = Generation(wanted=("semseg", "depth"), **how)
    parts = [method.predict({"rgb": rgb}) for rgb in test.sample["rgb"].split(60)]
    values = torch.cat([part["depth"] for part in parts])[:, 0].double()
    ids = torch.cat([part["semseg"] for part in parts])
    return scored(wide(ids), *from_standardised(values, train, test), test)


def probed(method: Any, train: Frames, test: Frames) -> dict[str, float]:
    """Linear probes of the frozen tokens of RGB, as `evaluate` has them: pixels and their ids are both RGB's."""
    source = Aligned(Aligned.Config(root=SAMPLE, depth_limit=3.0, flip=0.0), {"rgb": SHAPES["rgb"]})
    row = "pre-trained encoder"
    config = EvaluateConfig(inputs=("rgb",))
    study = Study(config, (torch.empty(0), torch.empty(0)), (), {}, source=source, methods={row: lambda: method})
    table = {s.column: s.value for s in evaluations.segmentation(study) + evaluations.depth(study) if s.row == row}
    names = {"mIoU": "mIoU, rgb", "pixels": "pixels, rgb", "RMSE": "RMSE, rgb", "delta 1": "delta 1, rgb"}
    return {name: round(table[column], 4) for name, column in names.items()}


def neighbours(run: Path) -> dict[str, float]:
    """k-NN of mean tokens of RGB, by the ten classes of items."""
    assert command(["evaluate", str(run), "--on", "knn", "--evaluate.inputs", "rgb"]) == 0
    scores = json.loads((run / "scores.json").read_text())["scores"]
    return {s["row"]: round(s["value"], 4) for s in scores}


def of_epochs(epochs: float) -> list[str]:
    """So many epochs, a twentieth of them to warm up, as the recipe has it."""
    return ["--train.epochs", str(epochs), "--train.warmup-epochs", str(epochs / 20)]


def trained(out: Path, epochs: float) -> Path:
    """The recipe, of so many epochs."""
    run = out / "4m"
    start = ["pretrain", "multimodal:4m-vit-tiny", *of_epochs(epochs), "--out", str(run), "--quiet"]
    assert command(start) == 0, "the run stopped"
    return run


def from_scratch(out: Path, epochs: float, method: str, train: Frames, test: Frames) -> dict[str, float]:
    """An encoder of the same size that learns one map from RGB, and nothing else."""
    start, run = out / "rgb", out / f"scratch-{method}"
    assert command(["pretrain", "multimodal:rgb-vit-tiny", "--train.steps", "1", "--train.warmup-epochs", "0",
                    "--out", str(start), "--quiet"]) == 0  # fmt: skip
    options = [
        *of_epochs(epochs),
        "--train.batch-size",
        "64",
        "--train.lr-batch",
        "64",
        "--train.base-lr",
        "1e-3",
        "--method.head",
        "linear",
    ]
    options += ["--data.area", "0.5", "1.0", "--use", f"method=multimodal:{method}", "--scratch"]
    assert command(["finetune", str(start), *options, "--out", str(run), "--quiet"]) == 0, "the run stopped"
    model: Any = load_run(run).method.eval()
    with torch.no_grad():
        answers = [model.predict({"rgb": rgb}) for rgb in test.sample["rgb"].split(60)]
    if method == "segmenter":
        shares = torch.cat([part["semseg"] for part in answers])
        return scored(F.avg_pool2d(shares, 4).argmax(dim=1), None, None, test)
    depth = torch.cat([part["depth"] for part in answers])[:, 0].double() / train.largest
    return scored(None, depth, None, test)


def main() -> None:
    """Every row that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fourm"))
    parser.add_argument("--epochs", type=float, default=50.0, help="of 4M and from scratch; the recipe has 50")
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose names begin so")
    asked = parser.parse_args()
    out, epochs = asked.out, asked.epochs
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    kept = out / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    train = Frames("train")
    test = Frames("test", train.largest)

    def row(name: str, make: Callable[[], dict[str, float]]) -> None:
        if asked.rows and not name.startswith(tuple(asked.rows)):
            return
        if name not in results:
            wall, processor = time.monotonic(), time.process_time()
            scores = make()
            seconds = {"seconds": round(time.monotonic() - wall), "processor": round(time.process_time() - processor)}
            results[name] = {**scores, **seconds}
            kept.write_text(json.dumps(results, indent=1))
        print(f"{name}: {results[name]}", flush=True)

    row("majority class, or mean, per pixel", lambda: majority(train, test))
    row("4M: training", lambda: {"epochs": epochs} if trained(out, epochs) else {})
    method = functools.cache(lambda: load_run(out / "4m").method.eval())
    row("the right ids", lambda: true_ids(method(), train, test))
    row("4M, generated: the likeliest ids", lambda: generated(method(), train, test, temperature=0.0))
    row("4M, generated: drawn", lambda: generated(method(), train, test, temperature=1.0))
    row("4M, generated: the likeliest, in one step", lambda: generated(method(), train, test, temperature=0.0, steps=1))
    row("4M, linear probe", lambda: probed(method(), train, test))
    row(
        "untrained encoder, linear probe",
        lambda: probed(build_method(load_recipe("multimodal:4m-vit-tiny", installed())), train, test),
    )
    row("k-NN of RGB", lambda: neighbours(out / "4m"))
    row("from scratch, class maps", lambda: from_scratch(out, epochs, "segmenter", train, test))
    row("from scratch, depth", lambda: from_scratch(out, epochs, "depth-regressor", train, test))


if __name__ == "__main__":
    main()
