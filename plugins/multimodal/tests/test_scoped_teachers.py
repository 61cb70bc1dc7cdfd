"""A teacher of one modality among several: pixels are seen, and ids that a frozen run gives them are asked (BEiT)."""

import shutil

import pytest
import torch
from mim_core.cli import main as command
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, check_teachers, make_source
from mim_core.recipes.config import Part, RunConfig
from mim_core.recipes.resolve import load_recipe, resolve
from mim_core.runs.load import load_run
from mim_core.testing import noise
from mim_multimodal.plugin import COMMANDS

SHORT = ["--twin", "--train.workers", "0", "--train.warmup-epochs", "0", "--quiet", "--evaluate.on", "knn"]
BEIT = ["--use", "rgb.target=core:ids", "--use", "rgb.teacher=core:frozen"]


def begun(recipe, folder, *options, steps=2):
    start = ["pretrain", f"multimodal:{recipe}", *SHORT, "--train.steps", str(steps), *options]
    return command([*start, "--out", str(folder)], "multimodal", COMMANDS)


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    """A tokenizer of RGB."""
    folder = tmp_path_factory.mktemp("vq") / "run"
    assert begun("vq-rgb-tiny", folder) == 0
    return folder


def with_teacher(recipe, part, target="core:ids", **more):
    """A recipe's twin with a teacher of RGB."""
    run = load_recipe(f"multimodal:{recipe}", installed(), twin=True)
    own = resolve(RunConfig(parts={"teacher": part, "target": Part.of(target)}), installed()).parts
    parts = {**run.parts, "rgb.teacher": own["teacher"], "rgb.target": own["target"], **more}
    return build_method(type(run)(parts, run.train, run.evaluate, ""))


@pytest.mark.parametrize("recipe", ["multimae-vit-tiny", "4m-vit-tiny"])
def test_a_frozen_run_names_the_units_of_one_modality(recipe, vq):
    """At every query of RGB the id that the run gives that unit, whatever the others are."""
    pytest.importorskip("tokenizers")
    method = with_teacher(recipe, Part.of("core:frozen", run=str(vq))).train()
    named = load_run(vq, installed()).method.eval()
    sample = {**noise(method.tokenizer.shapes, 6, ids=method.tokenizer.ids), "key": torch.arange(6)}
    layout = method.tokenizer.layout
    start, part = layout.span("rgb")
    hidden = {name: torch.arange(each.count).expand(6, -1) % 3 == 0 for name, each in layout.segments}
    prepared = method.prepare(sample, {name: mask.clone() for name, mask in hidden.items()})
    head = method.heads["rgb"]
    asked = head.asked(prepared.layout, prepared.mask)
    own = (asked.query_ids - start).clamp(0, part.count - 1)
    wanted = named.name({"rgb": sample["rgb"]}).gather(1, own)
    counts = prepared.weights["rgb"] > 0
    assert counts.any()
    assert torch.equal(prepared.targets["rgb"][counts], wanted[counts])
    other = {**sample, "depth": sample["depth"] + 1}
    assert torch.equal(method.prepare(other, hidden).targets["rgb"][counts], wanted[counts])
    method(prepared).loss.backward()
    assert not any(p.grad is not None for p in method.teachers["rgb"].parameters())


def test_the_options_are_those_of_one_modality(vq, tmp_path, capsys):
    """`--rgb.teacher.run`, in MultiMAE and in 4M, where RGB is otherwise only seen; the run opens alone."""
    lent = tmp_path / "lent"
    shutil.copytree(vq, lent)
    run = tmp_path / "multimae"
    assert begun("multimae-vit-tiny", run, *BEIT, "--rgb.teacher.run", str(lent)) == 0
    shutil.rmtree(lent)
    opened = load_run(run, installed())
    assert opened.recipe.parts["rgb.teacher"].options.parts
    theirs = load_run(vq, installed()).method.encoder.state_dict()
    mine = opened.method.teachers["rgb"].encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert make_source(opened.recipe, opened.method)
    own = ["--use", "caption.tokenizer=none", "--masker.only-seen"]
    assert begun("4m-vit-tiny", tmp_path / "4m", *BEIT, "--rgb.teacher.run", str(vq), *own) == 0
    assert begun("multimae-vit-tiny", tmp_path / "x", *BEIT) == 2
    assert "rgb.teacher (core:frozen): say whose encoder it is: --rgb.teacher.run" in capsys.readouterr().err
    opened.method.teachers["rgb"].filled = False
    with pytest.raises(MimError, match=r"not at hand: .*give them with --rgb\.teacher\.run .* --rgb\.teacher\.format"):
        check_teachers(opened.method)


def test_random_codes_name_one_modality():
    """BEST-RQ's names of the units of RGB alone."""
    method = with_teacher("multimae-vit-tiny", Part.of("core:random-codes", codes=12)).train()
    sample = {**noise(method.tokenizer.shapes, 4, ids=method.tokenizer.ids), "key": torch.arange(4)}
    prepared = method.prepare(sample)
    assert 0 <= int(prepared.targets["rgb"].min()) <= int(prepared.targets["rgb"].max()) < 12
    assert method.heads["rgb"].target.size == 12


def test_features_of_a_run_that_joins_one_modality(tmp_path):
    """`rgb-vit-tiny` has RGB alone, yet joined: its features are answers too."""
    folder = tmp_path / "rgb"
    assert begun("rgb-vit-tiny", folder) == 0
    method = with_teacher("multimae-vit-tiny", Part.of("core:frozen", run=str(folder)), "core:features").train()
    sample = {**noise(method.tokenizer.shapes, 4, ids=method.tokenizer.ids), "key": torch.arange(4)}
    prepared = method.prepare(sample)
    theirs = load_run(folder, installed()).method.eval().encode({"rgb": sample["rgb"]}).tokens
    asked = method.heads["rgb"].local(method.tokenizer.split(sample), prepared.mask)[1]
    wanted = torch.nn.functional.layer_norm(theirs, theirs.shape[-1:])
    wanted = wanted.gather(1, asked.query_ids[:, :, None].expand(-1, -1, wanted.shape[-1]))
    torch.testing.assert_close(prepared.targets["rgb"].features, wanted)


def test_other_units_are_refused(vq):
    part = Part.of("image:patch", modality="rgb", size=(32, 32), patch=(4, 4))
    finer = resolve(RunConfig(parts={"tokenizer": part}), installed()).parts["tokenizer"]
    with pytest.raises(MimError, match=r"rgb\.teacher .*16 units .* 64 on .*: give both the same size and patch"):
        with_teacher("multimae-vit-tiny", Part.of("core:frozen", run=str(vq)), **{"rgb.tokenizer": finer})
