"""Weights at another input size, in another kind of positions, and uneven classes."""

from pathlib import Path

import pytest
import torch
from mim_core.commands.tables import print_table
from mim_core.errors import MimError
from mim_core.evaluation.probes import knn, linear, probe
from mim_core.evaluation.study import SplitFeatures, Study
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.methods.classifier import Classifier
from mim_core.parts.layout import Layout
from mim_core.parts.position import LearnedPosition, SinCosPosition, resampled
from mim_core.recipes.config import EvaluateConfig
from mim_core.recipes.resolve import load_recipe, override
from mim_core.runs.initial_weights import take_encoder, take_weights
from mim_core.scores import Score, class_weights
from mim_image.data import Images
from PIL import Image
from timm.layers import resample_abs_pos_embed

HERE = Path("RUN")
TWICE = {"tokenizer": {"size": (56, 56)}}
DECODER = "heads.main.decoder.position"


@pytest.mark.parametrize("kind", [SinCosPosition, LearnedPosition])
def test_another_grid_is_interpolated_as_timm_does(kind):
    module = kind(Layout(16, (4, 4)), 32)
    found = module(Layout(48, (8, 6)))
    wanted = resample_abs_pos_embed(module.table, new_size=[8, 6], old_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(found, wanted)


# ---- starting from weights of another size ---------------------------------------------------------------------------


def method_of(seed=0, recipe="image:mae-vit-small", **tables):
    run = override(load_recipe(recipe, installed(), twin=True), tables, "test", installed())
    return build_method(run, seed=seed)


def positions(kind, decoder=None):
    return {"encoder": {"position": kind}, "decoder": {"position": decoder or kind}}


def classifier(**tables):
    base = method_of(3, **tables)
    return Classifier(base.tokenizer, base.encoder, Classifier.Config(classes=3))


@pytest.mark.parametrize("kind", ["sincos", "sincos-first", "flat", "learned"])
def test_init_at_another_size_interpolates_and_says_so(kind):
    small, large = method_of(1, **positions(kind)), method_of(2, **positions(kind), **TWICE)
    said = take_weights(large, small, HERE)
    assert [line.partition(":")[0] for line in said] == ["encoder.position", DECODER]
    assert all("a grid of 4 x 4, here 8 x 8; they are interpolated to that grid" in line for line in said)
    for mine, theirs in ((large.encoder, small.encoder), (large.heads["main"].decoder, small.heads["main"].decoder)):
        assert torch.equal(mine.position.table, resampled(theirs.position.table, (4, 4), (8, 8)))


@pytest.mark.parametrize("kind", ["sincos", "flat", "learned"])
def test_finetune_at_another_size_interpolates_and_says_so(kind):
    encoder = {"encoder": {"position": kind}}
    small, large = method_of(1, **encoder), classifier(**encoder, **TWICE)
    (said,) = take_encoder(large, small, HERE)
    assert said == "encoder.position: trained at a grid of 4 x 4, here 8 x 8; they are interpolated to that grid"
    assert torch.equal(large.encoder.position.table, resampled(small.encoder.position.table, (4, 4), (8, 8)))
    assert not take_encoder(classifier(**encoder), small, HERE), "at its own size there is nothing to say"


def test_as_many_units_on_another_grid_are_interpolated():
    wide = {"tokenizer": {"size": (14, 56)}}
    small, other = method_of(1, **positions("learned")), classifier(encoder={"position": "learned"}, **wide)
    (said,) = take_encoder(other, small, HERE)
    assert "a grid of 4 x 4, here 2 x 8" in said
    assert torch.equal(other.encoder.position.table, resampled(small.encoder.position.table, (4, 4), (2, 8)))


def test_what_was_interpolated_once_is_kept():
    """A run that began at another size goes on from its own table, not from the formula."""
    first, second, third = method_of(1), method_of(2, **TWICE), method_of(3, **TWICE)
    take_weights(second, first, HERE)
    said = take_weights(third, second, HERE)
    assert torch.equal(third.encoder.position.table, second.encoder.position.table)
    assert "encoder.position: taken as they are there, interpolated from another grid" in said


def test_another_computed_kind_is_said():
    """Of equal shape: the recipe's table stays, and the way to the other is named."""
    run, recipe = method_of(1), method_of(2, **positions("sincos-first"))
    table = recipe.encoder.position.table.clone()
    said = take_weights(recipe, run, HERE)
    assert said[0] == (
        "encoder.position: this recipe's positions are sincos-first; the sincos ones there are not used. To take them: "
        "--encoder.position sincos"
    )
    assert "--decoder.position sincos" in said[1]
    assert torch.equal(recipe.encoder.position.table, table)
    with pytest.raises(MimError, match=r"(?s)encoder\.position: sincos-first here, sincos there.*input size alone"):
        take_encoder(classifier(encoder={"position": "sincos-first"}), run, HERE)


def test_trained_positions_do_not_vanish_in_a_computed_recipe():
    run = method_of(1, **positions("learned"))
    with pytest.raises(MimError, match=r"encoder\.position is trained there \(learned\).*--encoder\.position learned"):
        take_weights(method_of(2), run, HERE)
    with pytest.raises(MimError, match=r"encoder\.position is trained there \(learned\).*--encoder\.position learned"):
        take_encoder(classifier(), run, HERE)
    half = method_of(1, **positions("sincos", "learned"))
    with pytest.raises(MimError, match=r"decoder\.position is trained there \(learned\).*--decoder\.position learned"):
        take_weights(method_of(2), half, HERE)
    placed = method_of(1, **positions("coordinates", "sincos"))
    with pytest.raises(MimError, match=r"trained there \(coordinates\).*--encoder\.position coordinates"):
        take_weights(method_of(2), placed, HERE)


def test_trained_tables_start_from_computed_ones():
    run, recipe = method_of(1), method_of(2, **positions("learned"), **TWICE)
    said = take_weights(recipe, run, HERE)
    assert "encoder.position: learned here, and start from the sincos ones there" in said
    assert torch.equal(recipe.encoder.position.table, resampled(run.encoder.position.table, (4, 4), (8, 8)))


def test_positions_that_only_one_has_are_said():
    assert "encoder.position: sincos there; none here" in take_weights(
        method_of(2, **positions("none")), method_of(1), HERE
    )
    assert "encoder.position: sincos here; there were none" in take_weights(
        method_of(2), method_of(1, **positions("none")), HERE
    )


def test_simmims_relative_bias_moves_to_another_size():
    tables = {"tokenizer": {"size": (24, 24), "patch": (4, 4), "channels": 1}}
    other = {"tokenizer": {"size": (32, 40), "patch": (4, 4), "channels": 1}}
    small = method_of(1, "image:simmim-vit-base", **tables).eval()
    torch.nn.init.normal_(small.encoder.rel_pos_bias.relative_position_bias_table)
    large = method_of(2, "image:simmim-vit-base", **other).eval()
    said = take_weights(large, small, HERE)
    assert "encoder.rel_pos_bias: trained at a grid of 6 x 6, here 8 x 10; they are interpolated to that grid" in said
    image = {"image": torch.randn(2, 1, 32, 40)}
    torch.testing.assert_close(small.encode(image).tokens, large.encode(image).tokens, rtol=1e-4, atol=1e-5)


# ---- classes of different sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "columns"), [(50, 1), (60, 1), (70, 2), (95, 2)])
def test_uneven_classes_have_their_own_column(share, columns):
    labels = (torch.arange(100) >= share).long()
    rows = {"raw input": SplitFeatures(torch.randn(100, 4), torch.randn(100, 4))}
    study = Study(EvaluateConfig(few_labels=()), (labels, labels), ("a", "b"), rows)
    assert len({score.column for score in knn(study)}) == columns
    assert len({score.column for score in linear(study)}) == columns
    assert sum("weigh every class alike" in note for note in study.notes) == columns - 1, "the note is given once"
    if columns == 2:
        assert next(s.value for s in knn(study) if s.row == "majority class" and "mean" in s.column) == 0.5


def test_no_column_of_a_wide_table_is_cut_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = ("majority class", "raw input", "untrained encoder", "pre-trained encoder")
    columns = [f"{c}{m}" for c in ("k-NN", "linear", "linear, 1,000 labels") for m in ("", ", mean class accuracy")]
    scores = [Score(row, column, 0.5 + i / 10, 0.001) for i, row in enumerate(rows) for column in columns]
    print_table(scores, [], "score")
    said = capsys.readouterr().out
    assert "0.800 ± 0.001" in said, "the last row of the scores"
    assert said.count("0.800 ± 0.001") == len(columns)
    assert "pre-trained" in said
    assert max(map(len, said.splitlines())) <= 80


def test_one_rare_class_among_many_is_uneven():
    labels = torch.cat([torch.arange(10).repeat_interleave(20), torch.full((4,), 10)])
    rows = {"raw input": SplitFeatures(torch.randn(204, 4), torch.randn(204, 4))}
    study = Study(EvaluateConfig(), (labels, labels), tuple(map(str, range(11))), rows)
    assert {score.column for score in knn(study)} == {"k-NN", "k-NN, mean class accuracy"}


def test_a_balanced_probe_finds_the_rare_class():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(200) >= 190).long()
    features = torch.randn(200, 2, generator=generator) + labels[:, None] * 1.5
    every = torch.arange(200)[None]
    found = {b: probe(features, labels, every, features, 2, 1.0, balance=b)[0] for b in (False, True)}
    recall = {b: float((one[190:] == 1).float().mean()) for b, one in found.items()}
    assert recall[True] >= 0.7 > recall[False]


def test_weights_of_classes():
    weights = class_weights(torch.tensor([0, 0, 0, 2]), 3)
    assert torch.allclose(weights, torch.tensor([2 / 3, 0.0, 2.0]))
    assert float(weights[torch.tensor([0, 0, 0, 2])].mean()) == pytest.approx(1)


def test_a_classifier_weighs_samples_by_their_class():
    base = method_of(3)
    plain = Classifier(base.tokenizer, base.encoder, Classifier.Config(classes=2)).eval()
    weighed = Classifier(base.tokenizer, base.encoder, Classifier.Config(classes=2, class_weights=(0.5, 3.0))).eval()
    weighed.head.load_state_dict(plain.head.state_dict())
    sample = {"image": torch.randn(3, 1, 28, 28), "label": torch.tensor([0, 1, 1])}
    logits = plain(plain.prepare(sample)).predictions["class"]
    each = torch.nn.functional.cross_entropy(logits, sample["label"], reduction="none")
    wanted = (each * torch.tensor([0.5, 3.0, 3.0])).mean()
    torch.testing.assert_close(weighed(weighed.prepare(sample)).loss, wanted)


def test_balance_takes_the_weights_from_the_data(tmp_path):
    for name, count in (("a", 9), ("b", 3)):
        for number in range(count):
            path = tmp_path / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28)).save(path)
    source = Images(Images.Config(root=tmp_path / "train"), {"image": (1, 28, 28)})
    labels = source.labelled("train").labels
    found = Classifier.completed(Classifier.Config(balance=True), source)
    assert found.class_weights == pytest.approx(class_weights(labels, 2).tolist(), abs=1e-6)
    assert found.class_weights[0] < 1 < found.class_weights[1]
    assert Classifier.completed(found, source) == found
    assert Classifier.completed(Classifier.Config(), source).class_weights == ()
