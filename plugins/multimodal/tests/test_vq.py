"""Tokenizers that are trained here: codes that follow and are revived, runs that name units."""

from dataclasses import replace

import pytest
import torch
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.parts.encoder_codebook import Codebook
from mim_core.recipes.config import Part, RunConfig
from mim_core.recipes.resolve import load_recipe, resolve
from mim_core.runs.load import load_run
from mim_core.testing import MethodContract, keys
from mim_core.training import loop

FRAMES = {"modality": "rgb", "size": (16, 24), "patch": (8, 8), "channels": 3}


def parts():
    sizes = {"width": 16, "depth": 1, "heads": 2}
    return {
        "method": Part.of("core:vq"),
        "tokenizer": Part.of("core:patch", **FRAMES),
        "encoder": Part.of("core:codebook", codes=9, size=4, **sizes),
        "decoder": Part.of("core:plain", **sizes),
        "target": Part.of("core:values", normalize=False),
    }


class TestRgb(MethodContract):
    recipe = "multimodal:vq-rgb-tiny"
    keyed = False
    moving = (*MethodContract.moving,)


class TestClasses(MethodContract):
    recipe = "multimodal:vq-semseg-tiny"
    keyed = False


class TestFeatures(MethodContract):
    recipe = "multimodal:vq-features-tiny"
    keyed = False


def test_codes_are_the_running_means_by_hand():
    """Two codes, two vectors of one and one of the other: share and mean by the formula of the paper's appendix."""
    book = Codebook(2, 1, decay=0.75, revive=0.0, normalize=False).train()
    book.book.copy_(torch.tensor([[0.0], [10.0]]))
    book.share.copy_(torch.tensor([0.5, 0.5]))
    book.sums.copy_(torch.tensor([[0.0], [5.0]]))
    codes, ids, apart = book(torch.tensor([[[1.0], [9.0], [2.0]]]))
    assert ids.tolist() == [[0, 1, 0]]
    assert codes.flatten().tolist() == [0.0, 10.0, 0.0]
    assert apart.flatten().tolist() == [1.0, 1.0, 4.0]
    book.after_step()
    share, sums = [0.375 + 0.25 * 2 / 3, 0.375 + 0.25 / 3], [0.25 * 3 / 3, 3.75 + 0.25 * 9 / 3]
    torch.testing.assert_close(book.book[:, 0], torch.tensor([s / n for s, n in zip(sums, share, strict=True)]))
    before = book.book.clone()
    book.after_step()
    assert torch.equal(book.book, before), "without a batch nothing moves"


def test_the_gradient_goes_straight_through():
    book = Codebook(4, 2, 0.9, 0.0, normalize=False)
    vectors = torch.randn(1, 3, 2, requires_grad=True)
    codes, _, _ = book(vectors)
    (codes * torch.arange(6.0).reshape(1, 3, 2)).sum().backward()
    assert torch.equal(vectors.grad, torch.arange(6.0).reshape(1, 3, 2))


def test_codes_that_are_trained_are_drawn_to_what_they_name():
    """By the gradient of the distance, which draws both; those that are not used are replaced."""
    book = Codebook(4, 2, 0.5, 0.1, normalize=False, trained=True).train()
    with torch.no_grad():
        book.book.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0], [50.0, 50.0], [60.0, 60.0]]))
    vectors = torch.tensor([[[1.0, 0.0], [8.0, 9.0], [2.0, 0.0]]], requires_grad=True)
    codes, ids, apart = book(vectors)
    assert ids.tolist() == [[0, 1, 0]]
    (apart.sum() + codes.sum()).backward()
    assert torch.equal(book.book.grad, torch.tensor([[-3.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(vectors.grad, torch.tensor([[[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]]])), "and straight through"
    book.after_step()
    assert book.book[:2].tolist() == [[0.0, 0.0], [9.0, 9.0]], "a mean moves none of them"
    rows = vectors[0].tolist()
    assert all(row in rows for row in book.book[2:].tolist())


def test_a_tokenizer_of_trained_codes_learns_and_lies_on_the_sphere():
    config = parts()
    options = {**config["encoder"].options, "follow": "gradient"}
    config["encoder"] = Part.of("core:codebook", **options)
    torch.manual_seed(0)
    method = build_method(resolve(RunConfig(parts=config), installed())).train()
    sample, losses = {"rgb": torch.randn(8, 3, 16, 24)}, []
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    for _ in range(20):
        outcome = method(method.prepare(sample))
        optimizer.zero_grad()
        outcome.loss.backward()
        assert method.encoder.codebook.book.grad.any()
        optimizer.step()
        method.after_step(0.5)
        losses.append(float(outcome.parts["rebuilt"].detach()))
    assert losses[-1] < losses[0]
    ids = method.eval().name(sample)
    lengths = method.encoder.codebook.vectors_of(ids).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    config["method"] = Part.of("core:vq", commitment=0.0)
    with pytest.raises(MimError, match="learn by the commitment"):
        build_method(resolve(RunConfig(parts=config), installed()))


def test_codes_that_are_not_used_are_replaced_by_vectors_of_the_batch():
    book = Codebook(8, 2, decay=0.5, revive=0.1, normalize=False).train()
    book.book.copy_(100 + torch.randn(8, 2))
    book.book[0] = 0.0
    vectors = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    _, ids, _ = book(vectors)
    assert ids.unique().tolist() == [0]
    book.after_step()
    rows = {tuple(row) for row in vectors.flatten(0, 1).tolist()}
    assert all(tuple(row) in rows for row in book.book[1:].tolist())
    _, ids, _ = book(vectors)
    assert ids.unique().numel() > 3
    assert float(book.measures()["usage"]) == 1.0


def test_an_evaluated_codebook_stands_still():
    book = Codebook(4, 2, 0.9, 0.1, normalize=True).eval()
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book(torch.randn(2, 3, 2))
    book.after_step()
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


def test_usage_and_perplexity():
    book = Codebook(4, 2, 0.9, 0.1, normalize=True)
    book.share.copy_(torch.tensor([0.5, 0.5, 0.0, 0.0]))
    found = book.measures()
    assert float(found["usage"]) == 0.5
    assert float(found["perplexity"]) == pytest.approx(2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twenty steps of a tokenizer."""
    folder = tmp_path_factory.mktemp("vq") / "run"
    config = load_recipe("multimodal:vq-rgb-tiny", installed(), twin=True)
    assert loop.train(loop.start(config, folder, installed()), quiet=True)
    return folder


def test_metrics_tell_how_codes_are_used(run):
    import json

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["usage"] > 0.5
    assert 2 < lines[-1]["perplexity"] <= 16
    assert lines[-1]["loss/rebuilt"] < 0.8 * lines[0]["loss/rebuilt"]


def codes_of(run):
    return {
        "masker": Part.of("core:random"),
        "tokenizer": Part.of("core:codes", run=str(run)),
        "encoder": Part.of("core:vit", width=16, depth=1, heads=2),
    }


def sample_of(run, rows=4):
    opened = load_run(run, installed())
    source = make_source(opened.recipe, opened.method)
    items = [source.read(index, index) for index in range(rows)]
    sample = source.finish({name: torch.stack([item[name] for item in items]) for name in items[0]})
    return {"rgb": sample["rgb"], "key": keys(rows)}, opened.method.eval()


def test_a_run_names_units_and_its_ids_are_predicted(run):
    """`core:codes`: units are the run's ids; it is not trained, its weights go with the method."""
    sample, quantised = sample_of(run)
    config = {**codes_of(run), "decoder": Part.of("core:transformer", width=16, depth=1, heads=2),
              "target": Part.of("core:ids")}  # fmt: skip
    method = build_method(resolve(RunConfig(parts=config), installed())).train()
    patches = method.tokenizer.split(sample)
    assert torch.equal(patches.values[..., 0], quantised.name(sample))
    rebuilt = method.tokenizer.join(patches.values, patches.layout)
    torch.testing.assert_close(rebuilt, quantised.rebuild(quantised.name(sample)))
    assert (rebuilt - sample["rgb"]).square().mean() < sample["rgb"].square().mean()
    before = {name: value.clone() for name, value in method.tokenizer.quantised.state_dict().items()}
    outcome = method(method.prepare(sample))
    outcome.loss.backward()
    method.after_step(0.5)
    assert all(torch.equal(value, before[name]) for name, value in method.tokenizer.quantised.state_dict().items())
    assert not any(p.grad is not None for p in method.tokenizer.quantised.parameters())


def test_a_frozen_run_teaches_ids(run):
    """`core:frozen` and `core:ids`, as BEiT's tokenizer does."""
    sample, quantised = sample_of(run)
    config = {
        "masker": Part.of("core:random"),
        "tokenizer": Part.of("core:patch", modality="rgb", size=(32, 32), patch=(8, 8), channels=3),
        "encoder": Part.of("core:vit", width=16, depth=1, heads=2),
        "decoder": Part.of("core:transformer", width=16, depth=1, heads=2),
        "target": Part.of("core:ids"),
        "teacher": Part.of("core:frozen", run=str(run)),
    }
    method = build_method(resolve(RunConfig(parts=config), installed())).train()
    prepared = method.prepare(sample)
    wanted = quantised.name(sample).gather(1, prepared.mask.query_ids)
    assert torch.equal(prepared.targets["main"], wanted)
    method(prepared).loss.backward()


def test_a_run_whose_tokenizer_is_gone_is_opened(run, tmp_path):
    import shutil

    copied = tmp_path / "vq"
    shutil.copytree(run, copied)
    config = load_recipe("multimodal:4m-vit-tiny", installed(), twin=True)
    chosen = {role: part for role, part in config.parts.items() if not role.startswith("caption.")}
    code = resolve(RunConfig(parts={"tokenizer": Part.of("core:codes", run=str(copied))}), installed())
    config = replace(config, parts={**chosen, "rgb_ids.tokenizer": code.parts["tokenizer"]})
    config = replace(config, train=replace(config.train, epochs=config.train.epochs / 10, warmup_epochs=0.0))
    folder = tmp_path / "run"
    started = loop.start(config, folder, installed())
    assert loop.train(started, quiet=True)
    shutil.rmtree(copied)
    opened = load_run(folder, installed())
    mine = opened.method.tokenizer.part("rgb_ids").quantised.state_dict()
    theirs = load_run(run, installed()).method.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    with pytest.raises(MimError, match="not at hand"):
        loop.train(
            loop.start(replace(config, parts=dict(opened.recipe.parts)), tmp_path / "other", installed()), quiet=True
        )


def test_what_makes_no_tokenizer_is_refused():
    with pytest.raises(MimError, match="say which run gives the ids"):
        build_method(resolve(RunConfig(parts={**parts(), "tokenizer": Part.of("core:codes")}), installed()))
    other = {**parts(), "encoder": Part.of("core:vit", width=16, depth=1, heads=2)}
    with pytest.raises(MimError, match="--use encoder=core:codebook"):
        build_method(resolve(RunConfig(parts=other), installed()))
