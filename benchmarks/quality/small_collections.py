"""Rate and steps on a small collection: MAE on the first 490 pictures of the bundled sample, and k-NN of its features
on all of it. docs/decisions.md ("Small collections") has what it gave.

    python benchmarks/quality/small_collections.py --out FOLDER 3.75e-5,1500 3e-4,1500 2.4e-3,1500 3e-4,500 3e-4,4000
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import mim_image
import numpy as np
import torch
from mim_core.cli import main as command
from mim_core.host.loading import installed
from mim_core.methods.build import open_source
from mim_core.recipes.resolve import load_recipe
from mim_core.runs.load import load_run
from PIL import Image
from torch.nn import functional

ITEMS, BATCH, TRAIN, TEST, NEAREST = 490, 64, 4000, 2000, 20
SAMPLE = Path(mim_image.__file__).parent / "sample"


def pictures(folder: Path) -> Path:
    """The first pictures of the sample as files, in a folder for each class."""
    with gzip.open(SAMPLE / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(SAMPLE / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    for number in range(ITEMS):
        path = folder / str(labels[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(path)
    return folder


@torch.no_grad()
def features(run: Path, split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean tokens of the first samples of the whole sample's split, of length 1, and their classes."""
    trained = load_run(run)
    method = trained.method.eval()
    opened = open_source(load_recipe("image:mae-vit-tiny", installed()), method.tokenizer)
    labelled, means = opened.labelled(split), []
    for first in range(0, count, 500):
        some = range(first, min(first + 500, count))
        batch = {"image": torch.stack([labelled.items[index]["image"] for index in some])}
        places = torch.arange(len(some))
        means.append(method.encode(opened.finish({**batch, "index": places, "key": places})).tokens.mean(dim=1))
    return functional.normalize(torch.cat(means), dim=1), labelled.labels[:count]


def score(run: Path) -> float:
    """k-NN of `TEST` pictures from `TRAIN` labels, votes weighted by exp(similarity / 0.07)."""
    (known, classes), (asked, truth) = features(run, "train", TRAIN), features(run, "test", TEST)
    near = (asked @ known.T).topk(NEAREST)
    votes = torch.zeros(len(asked), 10).scatter_add_(1, classes[near.indices], (near.values / 0.07).exp())
    return float((votes.argmax(dim=1) == truth).float().mean())


def main() -> None:
    """Each pair of a rate and steps in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", help="RATE,STEPS")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    root = pictures(given.out / "pictures")
    own = load_recipe("image:mae-vit-tiny", installed()).parts["tokenizer"].options
    patch = " ".join(map(str, own.patch))  # would follow from the data otherwise
    for pair in given.pairs:
        rate, steps = pair.split(",")
        out = given.out / f"{rate}-{steps}"
        options = {
            "data.root": root,
            "data.crop": "0.2 1.0",
            "train.base-lr": rate,
            "train.epochs": int(steps) * BATCH / ITEMS,
            "train.warmup-epochs": int(steps) * BATCH / ITEMS / 40,
            "train.batch-size": BATCH,
            "train.lr-batch": BATCH,
            "train.workers": 0,
            "tokenizer.size": "28 28",
            "tokenizer.patch": patch,
            "tokenizer.channels": 1,
            "out": out,
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
        assert command(["pretrain", "image:mae-vit-tiny", "--target.normalize", "--quiet", *arguments]) == 0
        print(json.dumps({"rate": float(rate), "steps": int(steps), "k-NN": round(score(out), 4)}), flush=True)


if __name__ == "__main__":
    main()
