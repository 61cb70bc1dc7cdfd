"""A run that an earlier version wrote goes on, is judged and exported as that version did it; see old_run/README.md."""

import json
import shutil
from pathlib import Path

import pytest
from mim_core.cli import main

FOLDER = Path(__file__).parent / "old_run"
COMMAND = (
    "pretrain image:mae-vit-tiny --twin --train.batch-size 64 --train.epochs 0.05 --train.warmup-epochs 0 "
    "--train.checkpoint-every 4 --train.ema 0.9 --encoder.width 16 --decoder.width 8 --quiet --out"
)
LOSSES = [1.346874, 1.389828, 1.354373, 1.165272, 1.244312, 1.150034, 1.058741, 1.125627]
KNN = 0.540
"""By the same commit, on the first 3,000 and 1,000 pictures. The untrained encoder has 0.556."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(FOLDER, folder)
    assert main([*COMMAND.split(), str(folder)]) == 0
    return folder


def test_it_goes_on(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["loss"] for line in lines] == pytest.approx(LOSSES, rel=1e-5)


def test_it_is_judged(run, first_pictures):
    folder = first_pictures(3000, 1000)
    assert main(["evaluate", str(run), "--on", "knn", "--data.root", str(folder)]) == 0
    scores = json.loads((run / f"scores-{folder.name}.json").read_text())["scores"]
    (value,) = [score["value"] for score in scores if score["row"] == "pre-trained encoder"]
    assert value == pytest.approx(KNN, abs=0.002)


def test_it_is_shown_and_exported(run):
    assert main(["show", str(run)]) == 0
    assert main(["export", str(run), "--out", str(run / "encoder.safetensors")]) == 0
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "encoder.safetensors").exists()
