"""Runs over tar files of images: workers, resuming to the bit, the command line."""

import json
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from mim_core.cli import main
from mim_core.data.loading import KeyedBatches, KeyedDataset, collate, loader
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe, override
from mim_core.training import loop

sys.path.insert(0, str(Path(__file__).parent))

from shard_files import picture, samples, write

# ---- workers and runs ------------------------------------------------------------------------------------------------


def test_the_store_is_small_and_holds_no_file(tmp_path, images):
    write(tmp_path / "x.tar", samples(range(200)))
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    source = images()
    source.read(3, 1)
    content = pickle.dumps(source.splits.pretrain)
    assert len(content) < 200 * 64
    assert pickle.loads(content).open(7).size == (40, 30)
    assert source.splits.pretrain.shards.places.dtype == np.int64
    assert not before or set(os.listdir("/proc/self/fd")) <= before


def test_workers_change_nothing(tmp_path, images):
    for shard in range(3):
        write(tmp_path / f"{shard}.tar", samples(range(shard * 5, shard * 5 + 5)))
    write(tmp_path / "3.tar", [("bad.png", b"none"), ("bad.cls", b"1")])
    source = images()

    def batches(count):
        sampler = KeyedBatches(len(source), 4, seed=1, first=0, last=48)
        return list(loader(KeyedDataset(source), sampler, count, collate))

    one, other = batches(0), batches(2)
    assert len(one) == 12
    assert {file for batch in one for file, _ in batch.skipped} == {"3.tar/bad.png"}
    for a, b in zip(one, other, strict=True):
        assert a.skipped == b.skipped
        assert all(torch.equal(value, b.sample[name]) for name, value in a.sample.items())


def run(folder, root, **train):
    """Six steps of mae-vit-tiny's twin, from where the folder's run stands: whether it is complete, its losses and
    weights."""
    registry = installed()
    config = load_recipe("image:mae-vit-tiny", registry, twin=True)
    options = {"data": {"root": str(root)}, "train": {"epochs": 6 * 16 / 21, "workers": 0, **train}}
    under_way = loop.start(override(config, options, "the test", registry), folder, registry)
    complete = loop.train(under_way, quiet=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return complete, [json.loads(line)["loss"] for line in lines], under_way.method.state_dict()


def test_a_run_goes_on_to_the_bit(tmp_path):
    """Over shards in two formats, with a bad member, stopped twice and gone on with other workers; and as over the
    loose files in the same order."""
    root, loose = tmp_path / "tars", tmp_path / "loose"
    write(root / "a.tar", samples(range(10)))
    write(root / "b.tar", [*samples(range(10, 20)), ("020.png", b"none"), ("020.cls", b"1")], format=tarfile.GNU_FORMAT)
    for i in range(21):
        path = loose / ("a.tar" if i < 10 else "b.tar") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i) if i < 20 else b"none")
    complete, losses, weights = run(tmp_path / "whole", root)
    assert complete
    assert len(losses) == 6
    for step in (1, 2):
        complete, found, _ = run(tmp_path / "parts", root, max_hours=0.0, workers=2 * (step - 1))
        assert not complete
        assert found == losses[:step]
    for complete, found, other in (run(tmp_path / "parts", root), run(tmp_path / "loose run", loose)):
        assert complete
        assert found == losses
        assert all(torch.equal(value, other[name]) for name, value in weights.items())
    lines = (tmp_path / "parts/skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["b.tar/020.png"]


def test_the_command_line_says_shards_and_what_is_left_out(tmp_path, capsys):
    write(tmp_path / "x.tar", [*samples(range(20)), ("3.a.png", picture()), ("3.b.png", picture())])
    arguments = [
        "pretrain",
        "mae-vit-tiny",
        "--twin",
        "--data.root",
        str(tmp_path),
        "--train.epochs",
        "20",
        "--dry-run",
    ]
    assert main(arguments, plugin="image") == 2  # of the last key
    assert "1 image of 21 without a class; the first is x.tar/3.a.png" in " ".join(capsys.readouterr().err.split())
    write(tmp_path / "x.tar", [*samples(range(20)), ("003.a.png", picture())])
    assert main(arguments, plugin="image") == 0
    told = capsys.readouterr()
    assert "20 images in 1 shard for training, 2 classes" in " ".join(told.out.split())
    assert "warning: left out of the shards in" in told.err
    assert "1 second image of a sample (the first: x.tar/003.a.png)" in told.err
