"""A run of 4M trained on labels: samples lack some units, and what gave its ids may be gone."""

import shutil

import pytest
import torch
from mim_core import Part
from mim_core.cli import main
from mim_core.interop.importers import build
from mim_core.runs.load import load_run

SHORT = ["--train.steps", "1", "--train.workers", "0", "--train.warmup-epochs", "0", "--train.batch-size", "4"]
SHORT += ["--quiet"]


def classifier(pool, **encoder):
    """Three units of a map and up to four words."""
    torch.manual_seed(0)
    parts = {
        "one.tokenizer": Part.of("core:ids", modality="one", size=(1, 3), names=5),
        "words.tokenizer": Part.of("core:sequence", modality="words", length=4, vocabulary=9),
        "encoder": Part.of("core:vit", width=16, depth=1, heads=2, position="sincos-first", **encoder),
        "method": Part.of("core:classifier", classes=3, pool=pool),
    }
    return build(**parts).eval()


SAMPLE = {
    "one": torch.tensor([[[255, 1, 4]], [[2, 3, 255]]]),
    "words": torch.tensor([[7, 3, 0, 0], [5, 6, 2, 1]]),
    "label": torch.tensor([0, 1]),
}


def pooled(method, sample):
    prepared = method.prepare(sample)
    return method._pooled(method.encoded(prepared), prepared.mask.kept_valid)


@pytest.mark.parametrize("pool", ["mean", "max", "first", "mean-max"])
def test_units_that_are_not_there_are_left_out(pool):
    """As if the row held the others alone; what stands in their places changes nothing."""
    method = classifier(pool, class_token=False)
    tokens = method.encode(SAMPLE).tokens.detach()
    valid = method.tokenizer.split(SAMPLE).layout.valid
    rows = [row[there] for row, there in zip(tokens, valid, strict=True)]
    assert [len(row) for row in rows] == [4, 6]
    kinds = {"mean": lambda row: row.mean(0), "max": lambda row: row.amax(0), "first": lambda row: row[0]}
    wanted = torch.stack([torch.cat([kinds[kind](row) for kind in pool.split("-")]) for row in rows])
    torch.testing.assert_close(pooled(method, SAMPLE), wanted)
    other = {**SAMPLE, "one": SAMPLE["one"].where(SAMPLE["one"] != 255, -7)}
    assert torch.equal(pooled(method, other), pooled(method, SAMPLE))
    method(method.prepare(SAMPLE)).loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_a_sample_without_any_unit_is_refused():
    nothing = {**SAMPLE, "one": torch.full((2, 1, 3), 255), "words": torch.zeros(2, 4, dtype=torch.int64)}
    with pytest.raises(ValueError, match="none of its units"):
        classifier("mean").prepare(nothing)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """4M's twin, whose depth is named by a run that is gone by now."""
    pytest.importorskip("tokenizers")
    home = tmp_path_factory.mktemp("labels")
    assert main(["pretrain", "multimodal:vq-depth-tiny", "--twin", *SHORT, "--out", str(home / "vq")]) == 0
    own = ["--use", "depth.tokenizer=core:codes", "--depth.tokenizer.run", str(home / "vq")]
    assert main(["pretrain", "multimodal:4m-vit-tiny", "--twin", *SHORT, *own, "--out", str(home / "run")]) == 0
    shutil.rmtree(home / "vq")
    return home / "run"


def test_what_comes_next_is_for_a_tokenizer_to_be_named(tmp_path, capsys):
    folder, loud = tmp_path / "vq", [option for option in SHORT if option != "--quiet"]
    assert main(["pretrain", "multimodal:vq-depth-tiny", "--twin", *loud, "--out", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Next: a run that predicts its ids, with --use X.tokenizer=core:codes --X.tokenizer.run {folder}" in said
    assert "evaluate" not in said


@pytest.mark.counted
def test_it_is_trained_on_labels(pretrained, tmp_path, capsys):
    """Captions are padded, class maps hold ids that are no class; ids of depth come from the checkpoint."""
    assert main(["finetune", str(pretrained), *SHORT, "--out", str(tmp_path / "c")]) == 0
    said = capsys.readouterr().err
    assert "cannot be counted" not in said
    method = load_run(tmp_path / "c").method
    theirs = load_run(pretrained).method.tokenizer.part("depth").quantised.state_dict()
    own = method.tokenizer.part("depth").quantised.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in theirs.items())


def test_a_map_is_learned_from_inputs_with_gaps(pretrained, tmp_path):
    own = ["--use", "method=multimodal:depth-regressor", "--method.head", "linear", "--use", "caption.tokenizer=none"]
    own += ["--use", "depth.tokenizer=none"]
    assert main(["finetune", str(pretrained), *SHORT, *own, "--out", str(tmp_path / "d")]) == 0
    method = load_run(tmp_path / "d").method.eval()
    torch.manual_seed(0)
    sample = {"rgb": torch.randn(1, 3, 32, 32), "semseg": torch.tensor([[[1, 255, 3, 0]] * 4])}
    other = {**sample, "semseg": sample["semseg"].where(sample["semseg"] != 255, 254)}
    assert torch.equal(method.predict(sample)["depth"], method.predict(other)["depth"])


def test_from_scratch_the_ids_are_those_of_the_run(pretrained, tmp_path, capsys):
    """What names units stands still and came with the run; all that learns is drawn."""
    loud = [option for option in SHORT if option != "--quiet"]
    assert (
        main(["finetune", str(pretrained), *loud, "--scratch", "--train.seed", "7", "--out", str(tmp_path / "s")]) == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "stands still, as the run holds it: tokenizer.parts.depth" in said
    assert "Weights of tokenizer and encoder" not in said
    theirs, own = load_run(pretrained).method.state_dict(), load_run(tmp_path / "s").method.state_dict()
    frozen = [name for name in theirs if name.startswith("tokenizer.parts.depth.quantised.")]
    assert frozen
    assert all(torch.equal(theirs[name], own[name]) for name in frozen)
    learned = ("tokenizer.parts.depth.token_embed.weight", "encoder.blocks.0.attn.qkv.weight")
    assert not any(torch.allclose(theirs[name], own[name], atol=1e-2) for name in learned)


def test_a_new_run_takes_them_over(pretrained, tmp_path):
    recipe = str(pretrained / "recipe.toml")
    options = ["--train.epochs", "0.005", "--train.workers", "0", "--quiet", "--out"]
    assert main(["pretrain", recipe, "--init", str(pretrained), *options, str(tmp_path / "a")]) == 0
    assert main(["pretrain", recipe, *options, str(tmp_path / "b")]) == 2


def test_an_encoder_that_needs_all_units_says_so():
    method = classifier("mean")
    method.encoder.pads = False
    with pytest.raises(ValueError, match=r"lack some of one, words\. Train without: --use one\.tokenizer=none"):
        method.prepare(SAMPLE)
