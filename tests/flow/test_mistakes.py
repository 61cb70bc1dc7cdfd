"""Wrong samples as pictures, in every modality; and what to try where pre-training does not help."""

import json
from dataclasses import replace

import pytest
import torch
from mim_core.evaluation import mistakes
from mim_core.evaluation.next_steps import next_steps
from mim_core.host.loading import installed
from mim_core.methods.assembly import Parts
from mim_core.methods.build import build_method, open_source
from mim_core.recipes.resolve import load_recipe, swap
from mim_core.runs import logs
from mim_core.scores import PRETRAINED, UNTRAINED, Score

RECIPES = ("image:mae-vit-tiny", "video:videomae-vit-tiny", "pointcloud:point-mae-vit-tiny")


@pytest.mark.parametrize("recipe", [*RECIPES, "multimodal:multimae-vit-tiny"])
def test_an_untrained_classifier_shows_what_it_gets_wrong(recipe, monkeypatch):
    monkeypatch.setattr(mistakes, "MOST", 16)
    run = swap(load_recipe(recipe, installed(), twin=True), "method", "core:classifier", installed())
    run = replace(run, parts={role: part for role, part in run.parts.items() if _is_kept(role)})
    source = open_source(run, Parts(run.parts).tokenizer())
    part = run.parts["method"]
    run = replace(run, parts={**run.parts, "method": replace(part, options=part.cls.completed(part.options, source))})
    found = mistakes.mistakes_of(build_method(run), source, torch.device("cpu"), 8)
    assert found is not None
    split = source.labelled("test")
    assert (found.asked, found.split) == (16, len(split.labels))
    assert found.worst
    assert len(found.worst) == min(found.wrong, mistakes.WORST)
    assert sum(map(sum, found.matrix)) == 16
    for each in found.worst:
        assert each.name in split.names
        assert each.truth == split.classes[int(split.labels[split.names.index(each.name)])] != each.answer
        assert each.picture.media_type.startswith("image/")
        assert len(each.picture.content) > 200


def _is_kept(role):
    return role.rpartition(".")[2] in ("tokenizer", "encoder", "data", "method")


def judged(own, other):
    return [Score(UNTRAINED, "k-NN", other), Score(PRETRAINED, "k-NN", own)]


@pytest.fixture(scope="module")
def run():
    run = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    return run, build_method(run)


def told(folder, run, losses, ranks, own=0.4):
    names = ("epoch", "grad_norm", "lr", "samples_per_second", "seconds_per_step")
    phases = {f"time/{phase}": 0.0 for phase in logs.PHASES}
    lines = [
        {"step": 10 * (i + 1), **dict.fromkeys(names, 1.0), **phases, "loss": loss, "effective_rank": rank}
        for i, (loss, rank) in enumerate(zip(losses, ranks, strict=True))
    ]
    (folder / logs.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return " ".join(next_steps(judged(own, 0.5), *run, folder))


def test_what_to_try_follows_from_the_metrics(tmp_path, run):
    falling = told(tmp_path, run, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [20.0] * 8)
    assert "still falling in the last quarter (0.55 to 0.35)" in falling
    assert f"--train.epochs {2 * run[0].train.epochs:.3g}" in falling
    assert "collapsed" not in falling
    flat = told(tmp_path, run, [0.5] * 8, [20.0] * 7 + [3.0])
    assert "train longer than 80 steps" in flat
    assert "collapsed (effective rank 20 to 3)" in flat
    assert "the input has 16 units" in flat
    assert flat.endswith("beside finetune --scratch.")
    assert told(tmp_path, run, [0.5] * 8, [20.0] * 8, own=0.6) == ""


def test_without_metrics_something_is_said(tmp_path, run):
    assert next_steps(judged(0.1, 0.2), *run, tmp_path)[0].startswith("Try: the input has 16 units")
