"""Ids of a collection, made once and read back as a modality: the same whatever makes them, whole or not at all."""

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.cli import main as command
from mim_core.errors import BadSample, MimError
from mim_core.runs.load import load_run
from mim_multimodal.plugin import COMMANDS
from mim_multimodal.token_store import TokenStore, facts_in, names_in, shard_path
from mim_multimodal.tokenize import opened
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from aligned_items import SHAPES, items, save, source


def tokenize(run, data, out, *options):
    return command(["tokenize", str(run), str(data), str(out), "--quiet", *options], "multimodal", COMMANDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    start = ["pretrain", "multimodal:vq-depth-tiny", "--twin", "--train.steps", "2", "--train.workers", "0"]
    assert command([*start, "--train.warmup-epochs", "0", "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve items of two splits, no two alike."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for number in range(12):
        depth = random.integers(1, 9999, (64, 64)).astype(np.uint16)
        save(root, f"{number:02}", depth=depth, split="train" if number < 9 else "test")
    return root


@pytest.fixture(scope="module")
def ids(run, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("ids") / "depth"
    assert tokenize(run, data, out, "--crops", "3", "--shard", "5") == 0
    return out


def every(store):
    return {name: torch.stack([store.ids(name, k) for k in range(store.crops.count)]) for name in store.places}


def test_ids_are_those_of_the_run(run, data, ids):
    """Of the fixed crop, item by item, as the run's own method names it."""
    store, method = TokenStore(ids), load_run(run).method.eval()
    own = source(data, {"depth": (1, 32, 32)}, depth_limit=3.0)
    assert sorted(store.places) == [f"test/{n:02}" for n in (9, 10, 11)] + [f"train/{n:02}" for n in range(9)]
    for collection in (own.collection.pretrain, own.collection.test):
        for index in range(len(collection)):
            sample = own.take(collection, index, {"depth": (1, 32, 32)})
            named = method.name(own.finish({"depth": sample["depth"][None]}))
            assert torch.equal(store.ids(collection.identity(index), 0).flatten(), named[0])
    assert len({value.numpy().tobytes() for value in every(store).values()}) == 12


@pytest.mark.parametrize("options", [("--shard", "12"), ("--shard", "6", "--workers", "2")])
def test_ids_do_not_depend_on_processes_and_shards(run, data, ids, tmp_path, options):
    assert tokenize(run, data, tmp_path / "other", "--crops", "3", *options) == 0
    for process in multiprocessing.active_children():  # they end by themselves, in a while
        process.join(60)
    found, wanted = every(TokenStore(tmp_path / "other")), every(TokenStore(ids))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_files_of_the_same_ids_are_the_same(run, data, tmp_path):
    for name in ("one", "two"):
        assert tokenize(run, data, tmp_path / name) == 0
    one, two = (shard_path(tmp_path / name, 0).read_bytes() for name in ("one", "two"))
    assert one == two
    with safe_open(shard_path(tmp_path / "one", 0), "pt") as file:
        assert list(file.metadata()) == ["about"], "safetensors writes several entries in any order"


def test_what_was_stopped_goes_on(run, data, ids, tmp_path, capsys):
    out = tmp_path / "ids"
    shutil.copytree(ids, out)
    kept = shard_path(out, 0).stat().st_mtime_ns
    shard_path(out, 1).unlink()
    shard_path(out, 2).write_bytes(shard_path(out, 2).read_bytes()[:-9])
    with pytest.raises(MimError, match="shard-00001"):
        TokenStore(out)
    assert tokenize(run, data, out, "--crops", "3", "--shard", "5") == 0
    assert shard_path(out, 0).stat().st_mtime_ns == kept
    moved = tmp_path / "data"
    shutil.copytree(data, moved)  # with their times
    shutil.copyfile(moved / "train/depth/01.png", moved / "train/depth/00.png")
    again = tmp_path / "again"
    shutil.copytree(out, again)
    assert tokenize(run, moved, again, "--crops", "3", "--shard", "5") == 0
    assert [shard_path(again, n).stat().st_mtime_ns == shard_path(out, n).stat().st_mtime_ns for n in range(3)] == [
        False,
        True,
        True,
    ], "ids of a file that was replaced are made anew"
    found, wanted = every(TokenStore(out)), every(TokenStore(ids))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert tokenize(run, data, out, "--crops", "2", "--shard", "5") == 2
    assert "ids of something else (other: crops)" in capsys.readouterr().err
    assert json.loads((out / "manifest.json").read_text())["crops"]["count"] == 3, "nothing is lost"


def test_ids_that_were_written_before_stay(run, data, ids, tmp_path):
    """Shards once held what they say of themselves in several entries."""
    old = shutil.copytree(ids, tmp_path / "old")
    for path in old.glob("shard-*"):
        facts = facts_in(path)
        about = {"names": json.dumps(facts["names"]), "made_of": facts["made_of"], "files": json.dumps(facts["files"])}
        save_file(load_file(path), path, about)
    before = {path.name: path.read_bytes() for path in old.glob("shard-*")}
    assert {name: value.tolist() for name, value in every(TokenStore(old)).items()} == {
        name: value.tolist() for name, value in every(TokenStore(ids)).items()
    }
    assert TokenStore(old).check_files(data) == TokenStore(ids).check_files(data)
    assert tokenize(run, data, old, "--crops", "3", "--shard", "5") == 0
    assert {path.name: path.read_bytes() for path in old.glob("shard-*")} == before, "they are made anew"


def test_they_are_read_back_under_their_own_crops(run, data, ids):
    """Depth beside them shows the part that the ids are of, whichever crop is drawn."""
    shapes = {"depth": (1, 32, 32), "depth_ids": (4, 4)}
    back = source(data, shapes, tokens={"depth_ids": str(ids)}, depth_limit=3.0)
    back.take_ids({"depth_ids": TokenStore(ids).codes})
    method, seen = load_run(run).method.eval(), set()
    for key in range(12):
        sample = back.finish({name: value[None] for name, value in back.read(4, key).items()})
        assert torch.equal(sample["depth_ids"].flatten(), method.name({"depth": sample["depth"]})[0])
        seen.add(sample["depth"].numpy().tobytes())
    assert len(seen) == 3
    fixed = back.plain().items[4]
    assert torch.equal(fixed["depth_ids"], TokenStore(ids).ids("train/04", 0))


def test_what_does_not_fit_is_refused(run, data, ids, tmp_path, capsys):
    told = {"depth_ids": str(ids)}
    with pytest.raises(MimError, match=r"--depth_ids\.tokenizer\.size 4 4"):
        source(data, {**SHAPES, "depth_ids": (8, 8)}, tokens=told)
    with pytest.raises(MimError, match=r"core:ids --depth_ids\.tokenizer\.modality depth_ids"):
        source(data, {**SHAPES, "depth_ids": (4, 4)}, tokens=told).take_ids({"depth_ids": 9})
    with pytest.raises(MimError, match=r"no tokenizer reads depth_ids.* Add --use depth_ids.tokenizer=core:ids"):
        source(data, {**SHAPES, "input": (4, 4)}, tokens=told)
    with pytest.raises(MimError, match="holds no ids"):
        source(data, {**SHAPES, "depth_ids": (4, 4)}, tokens={"depth_ids": str(tmp_path)})
    with pytest.raises(MimError, match=r"have no ids in .*, such as train/a/1"):
        source(items(tmp_path / "other"), {**SHAPES, "depth_ids": (4, 4)}, tokens=told)
    assert tokenize(run, data, tmp_path / "x", "--crops", "0") == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("x")
    assert tokenize(run, data, tmp_path / "full") == 2
    assert "holds other files" in capsys.readouterr().err


def test_an_item_that_cannot_be_read_has_no_ids(run, data, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    (root / "train/depth/03.png").write_bytes(b"no picture")
    opened.cache_clear()
    assert tokenize(run, root, tmp_path / "ids") == 0
    assert "1 item cannot be read and has no ids (train/depth/03.png: it is no picture" in capsys.readouterr().err
    assert tokenize(run, root, tmp_path / "ids") == 0
    assert "train/depth/03.png" in capsys.readouterr().err, "one that goes on names what was bad before"
    store = TokenStore(tmp_path / "ids")
    with pytest.raises(BadSample, match="could not be read when they were made"):
        store.ids("train/03", 0)
    assert int(store.ids("train/04", 0).min()) >= 0
    assert names_in(shard_path(tmp_path / "ids", 0))[3] == "train/03"


def test_items_without_ids_are_masked_where_what_is_missing_is(data, ids, tmp_path):
    root, told = tmp_path / "data", {"depth": str(ids)}
    shutil.copytree(data, root)
    for kind in ("rgb", "semseg"):
        shutil.copy(
            next((root / "train" / kind).glob("03.*")), next((root / "train" / kind).glob("03.*")).with_stem("99")
        )
    shapes = {**SHAPES, "depth": (4, 4)}
    with pytest.raises(MimError, match=r"--data\.missing mask keeps them"):
        source(root, shapes, tokens=told)
    found = source(root, shapes, tokens=told, missing="mask")
    flags = [bool(found.read(index, 1)["depth.present"]) for index in range(len(found))]
    assert flags.count(False) == 1
    assert not found.read(flags.index(False), 1)["depth"].any()
    assert {frozenset(SHAPES): 9, frozenset({"rgb", "semseg"}): 1} == {k: n for k, (n, _) in found.presence().items()}
    assert any("1 item without ids of depth" in line for line in found.advice())
    with pytest.raises(MimError, match="another collection"):
        source(items(tmp_path / "other"), shapes, tokens=told, missing="mask")


def test_a_picture_that_was_replaced_since_is_noticed(data, ids, tmp_path):
    """Another size is refused, another time is told, and files that are gone are none of its business."""
    root, told = tmp_path / "data", {"depth_ids": str(ids)}
    shutil.copytree(data, root)  # with their times
    shapes = {"rgb": (3, 32, 32), "depth_ids": (4, 4)}
    assert not source(root, shapes, tokens=told).advice()
    depth = root / "train/depth"
    (depth / "01.png").unlink()
    os.utime(depth / "00.png")
    lines = source(root, shapes, tokens=told).advice()
    assert len(lines) == 1
    assert "of 1 file in" in lines[0]
    assert "such as train/depth/00.png" in lines[0]
    assert "If they were copied, all is well" in lines[0]
    shutil.copyfile(depth / "03.png", depth / "02.png")
    with pytest.raises(MimError, match=r"the size is another than when .* such as train/depth/02\.png; "):
        source(root, shapes, tokens=told)


def test_4m_is_trained_on_them(data, ids, tmp_path):
    pytest.importorskip("tokenizers")
    codes = str(TokenStore(ids).codes)
    start = ["pretrain", "multimodal:4m-vit-tiny", "--twin", "--data.root", str(data), "--data.classes", "64"]
    start += ["--use", "caption.tokenizer=none", "--semseg.tokenizer.names", "64"]
    start += ["--use", "depth.tokenizer=core:ids", "--depth.tokenizer.modality", "depth", "--depth.tokenizer.size", "4"]
    start += ["4", "--depth.tokenizer.names", codes, "--data.tokens", "depth", str(ids)]
    start += ["--train.workers", "0", "--train.batch-size", "4", "--train.steps", "2", "--train.warmup-epochs", "0"]
    assert command([*start, "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/report.html").is_file()
    few = tmp_path / "few/rgb"
    few.mkdir(parents=True)
    shutil.copy(next((data / "test/rgb").iterdir()), few / "1.png")
    asked = ["predict", str(tmp_path / "run"), str(few.parent), "--given", "rgb", "--predict", "depth", "--steps", "2"]
    assert command([*asked, "--out", str(tmp_path / "made")], "multimodal", COMMANDS) == 0
    made = np.load(tmp_path / "made/rgb/1-depth.npy")
    assert made.shape == (4, 4)
    assert made.dtype == np.int64
