"""Any modality from any: what is learned is generated, in steps and word by word."""

import csv
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mim_core import Head, IdTarget, IdTokenizer, JoinedTokenizer, JointDecoder, MaskedAutoencoder, SequenceTokenizer
from mim_core.cli import main
from mim_core.errors import MimError
from mim_core.methods.generation import Generation
from mim_core.parts.encoder import ViTEncoder
from mim_core.runs.load import load_run
from mim_multimodal.budgets import BudgetMasker

sys.path.insert(0, str(Path(__file__).parent))
from aligned_items import IDS, save

KINDS = {"semseg": torch.int64, "caption": torch.int64}
SAMPLE = {
    "one": torch.tensor([[[3, 1, 4], [1, 5, 9]], [[2, 6, 5], [3, 5, 8]]]),
    "words": torch.tensor([[7, 3, 2, 8, 0], [5, 6, 0, 0, 0]]),
    "other": torch.tensor([[[1, 2], [3, 4]], [[6, 5], [4, 3]]]),
}


def method_of():
    torch.manual_seed(0)
    tokenizer = JoinedTokenizer(
        {
            "one": IdTokenizer(IdTokenizer.Config(modality="one", size=(2, 3), names=11), 32),
            "words": SequenceTokenizer(SequenceTokenizer.Config(modality="words", length=5, vocabulary=9), 32),
            "other": IdTokenizer(IdTokenizer.Config(modality="other", size=(2, 2), names=7), 32),
        }
    )
    options = {"width": 32, "depth": 2, "heads": 2}
    encoder = ViTEncoder(
        ViTEncoder.Config(class_token=False, segments=True, position="sincos-first", **options), tokenizer.layout
    )
    decoder = JointDecoder(JointDecoder.Config(**options), encoder, tokenizer.layout)
    heads = {}
    for name in ("one", "words", "other"):
        target = IdTarget(IdTarget.Config(), tokenizer.part(name))
        heads[name] = Head(decoder.head(target.size, name, encoder), target, 1.0, name)
    masker = BudgetMasker(BudgetMasker.Config(seen=6, asked=10))
    return MaskedAutoencoder(tokenizer, masker, encoder, heads, decoder=decoder, total="mean")


@pytest.fixture(scope="module")
def learned():
    """Two samples, learned by heart."""
    method = method_of().train()
    batch = {name: value.repeat(16, *[1] * (value.ndim - 1)) for name, value in SAMPLE.items()}
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3, betas=(0.9, 0.95))
    for step in range(120):
        loss = method(method.prepare({**batch, "key": torch.arange(32) + 32 * step})).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
    return method.eval()


def generate(method, given, **how):
    method.generation = Generation(**how)
    try:
        return method.predict({name: SAMPLE[name] for name in given})
    finally:
        method.generation = Generation()


@pytest.mark.parametrize("given", [("one",), ("other",), ("one", "words")])
@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_learned_is_generated(learned, given, steps):
    """Ids of both grids, and the whole sequence with its end."""
    found = generate(learned, given, steps=steps, temperature=0.0)
    assert set(found) == {"one", "words", "other"} - set(given)
    for name, values in found.items():
        assert torch.equal(values, SAMPLE[name]), name


def test_no_temperature_is_too_low_and_no_number_of_steps_too_large(learned):
    """The likeliest ids in the limit; all is decided after as many steps as there are ids."""
    wanted = generate(learned, ("words",), temperature=0.0)
    for low in (1e-45, 1e-9):
        assert all(
            torch.equal(value, wanted[name]) for name, value in generate(learned, ("words",), temperature=low).items()
        )
    with mock.patch.object(Generation, "undecided", side_effect=Generation.undecided, autospec=True) as asked:
        many = generate(learned, ("words",), steps=10**6, temperature=0.0)
    assert all(torch.equal(value, wanted[name]) for name, value in many.items())
    assert asked.call_count < 20
    assert all(len(value.unique()) > 1 for value in generate(learned, ("words",), temperature=1e38).values())


def test_only_what_is_wanted_in_its_order(learned):
    found = generate(learned, ("one",), wanted=("words", "other"), temperature=0.0)
    assert list(found) == ["words", "other"]
    assert list(generate(learned, ("one",), wanted=("other",))) == ["other"]
    with pytest.raises(MimError, match=r"--predict one: it is given\. What can be predicted .*: words, other\."):
        generate(learned, ("one",), wanted=("one",))
    with pytest.raises(MimError, match="Unknown modality in --predict 'sound'"):
        generate(learned, ("one",), wanted=("sound",))
    with pytest.raises(MimError, match="names a modality twice: words words"):
        generate(learned, ("one",), wanted=("words", "words"))
    with pytest.raises(MimError, match="Which modalities are given"):
        learned.predict(dict(SAMPLE))


def test_what_is_made_is_seen_when_the_next_is_made():
    """Of a method that learned nothing, which is made first changes what comes second."""
    method = method_of().eval()
    one = generate(method, ("words",), wanted=("one", "other"), temperature=3.0)
    two = generate(method, ("words",), wanted=("other", "one"), temperature=3.0)
    assert not torch.equal(one["other"], two["other"]) or not torch.equal(one["one"], two["one"])


def test_draws_are_of_the_seed_and_not_of_the_batch():
    method = method_of().eval()
    whole = generate(method, ("one",), seed=3)
    again, other = generate(method, ("one",), seed=3), generate(method, ("one",), seed=4)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert any(not torch.equal(value, other[name]) for name, value in whole.items())
    method.generation = Generation(seed=3)
    alone = method.predict({"one": SAMPLE["one"][1:]})
    assert all(torch.equal(value[1:], alone[name]) for name, value in whole.items())


def test_a_sequence_that_is_told_ends_at_its_sentinel(learned):
    found = generate(learned, ("one",), temperature=0.0)["words"]
    assert found.tolist() == SAMPLE["words"].tolist()
    assert int(found.max()) < 9


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules(schedule):
    """Each step decides one at least where there are as many, and the last decides all."""
    for steps, count in ((1, 9), (4, 64), (8, 64), (12, 196), (5, 5)):
        how = Generation(steps=steps, schedule=schedule)
        left = [count, *(how.undecided(step, count) for step in range(1, steps + 1))]
        assert left[-1] == 0
        assert all(left[number] > left[number + 1] for number in range(steps))
    assert Generation(steps=4).undecided(2, 100) == 70, "100 times the cosine of an eighth of a turn"
    with pytest.raises(MimError, match="steps must be at least 1"):
        Generation(steps=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("generation") / "run"
    start = ["pretrain", "multimodal:4m-vit-tiny", "--twin", "--train.steps", "2", "--train.workers", "0"]
    assert main([*start, "--train.warmup-epochs", "0", "--quiet", "--out", str(folder)]) == 0
    return folder


def test_predict_writes_what_is_generated(run, tmp_path):
    for number in range(2):
        save(tmp_path / "new", str(number), depth=None, semseg=None, split="test")
    options = ["--given", "rgb", "--quiet", "--steps", "3", "--temperature", "0"]
    command = ["predict", str(run), str(tmp_path / "new")]
    assert main([*command, "--out", str(tmp_path / "p"), *options, "--predict", "depth", "semseg"]) == 0
    with open(tmp_path / "p/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all({"name", "depth", "semseg", "crop left", "crop height"} <= set(row) for row in rows)
    assert len(rows) == 2
    assert all((tmp_path / "p" / row[name]).is_file() for row in rows for name in ("depth", "semseg"))
    assert main([*command, "--out", str(tmp_path / "all"), *options]) == 0
    with open(tmp_path / "all/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"depth", "semseg", "caption"} <= set(rows[0])


def test_generating_is_asked_of_runs_that_can(run, tmp_path, capsys):
    save(tmp_path / "new", "0", depth=None, semseg=None, split="test")
    command = ["predict", str(run), str(tmp_path / "new"), "--out", str(tmp_path / "p"), "--quiet", "--given", "rgb"]
    for wanted, told in (
        ("dept", "Did you mean 'depth'?"),
        ("rgb", "--predict rgb: it is given. What can be predicted from what is given: depth, semseg, caption."),
        ("rgb_ids", "--predict rgb_ids: it follows from rgb, which is given."),
    ):
        assert main([*command, "--predict", wanted]) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--given", "depth", "--predict", "rgb"]) == 2
    assert "--predict rgb: this run has no head that answers for it." in " ".join(capsys.readouterr().err.split())
    assert main([*command[:-2], "--predict", "depth"]) == 2
    assert "Which modalities are given?" in capsys.readouterr().err
    assert main([*command, "--steps", "0"]) == 2
    assert "steps must be at least 1" in capsys.readouterr().err


def test_what_has_nothing_of_what_is_given_has_no_answer(run, tmp_path, capsys):
    save(tmp_path / "new", "0", depth=None, semseg=None, split="test")
    command = ["predict", str(run), str(tmp_path / "new"), "--out", str(tmp_path / "p"), "--quiet"]
    assert main([*command, "--given", "depth", "--predict", "semseg", "--data.missing", "mask"]) == 2
    assert "nothing of what is given" in capsys.readouterr().err


def test_a_map_without_any_class_gives_nothing(run, tmp_path, capsys):
    """It is named and left out; the others have their answers."""
    save(tmp_path / "new", "0", split="test", depth=None, semseg=np.full_like(IDS, 255))
    save(tmp_path / "new", "1", split="test", depth=None, semseg=IDS % 14)
    new, given = str(tmp_path / "new"), ["--given", "semseg", "--quiet"]
    assert main(["embed", str(run), new, "--out", str(tmp_path / "f.npz"), *given]) == 0
    assert np.load(tmp_path / "f.npz")["names"].tolist() == ["test/rgb/1.jpg"]
    assert "nothing of what is given" in capsys.readouterr().err
    assert main(["predict", str(run), new, "--out", str(tmp_path / "p"), *given, "--predict", "depth"]) == 0
    with open(tmp_path / "p/predictions.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["test/rgb/1.jpg"]


def test_a_run_with_captions_is_exported(run, tmp_path):
    assert main(["export", str(run), "--to", "torch", "--out", str(tmp_path / "program.pt2")]) == 0
    method = load_run(run).method.eval()
    program = torch.export.load(tmp_path / "program.pt2").module()
    shapes = method.tokenizer.shapes
    sample = {name: torch.zeros(1, *shape, dtype=KINDS.get(name, torch.float32)) for name, shape in shapes.items()}
    sample["caption"][0, :2] = torch.tensor([5, 6])
    (pooled,) = program(*sample.values()).values()
    torch.testing.assert_close(pooled, method.encode(sample).pooled)


def test_maps_are_not_learned_with_captions_and_the_way_out_is_said(run, tmp_path, capsys):
    command = ["finetune", str(run), "--train.steps", "1", "--train.workers", "0", "--out", str(tmp_path / "run")]
    assert main([*command, "--use", "method=multimodal:depth-regressor", "--use", "depth.tokenizer=none"]) == 2
    assert "--use caption.tokenizer=none" in capsys.readouterr().err
