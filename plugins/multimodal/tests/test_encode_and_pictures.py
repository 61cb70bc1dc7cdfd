"""What encode refuses, and pictures in which hidden parts look like nothing else."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from mim_core.data.labelled import LabelledSource
from mim_core.evaluation.reconstruction import across, held_out_samples, reconstruct
from mim_core.evaluation.report import _pictures
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.parts.tokenizer import zeros
from mim_core.recipes.resolve import load_recipe, override, swap
from mim_multimodal import pictures
from mim_multimodal.text import TextTokenizer
from PIL import Image


@pytest.fixture(scope="module")
def method():
    return build_method(load_recipe("multimodal:multimae-vit-tiny", installed(), twin=True)).eval()


def batch(method, rows=2):
    return zeros(method.tokenizer.shapes, method.tokenizer.ids, rows)


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB"))


def test_encode_names_entries_that_it_does_not_know(method):
    sample = batch(method)
    del sample["depth"]
    with pytest.raises(ValueError, match=r"'dept', which is no modality .*: rgb, depth, semseg. Did you mean 'depth'"):
        method.encode({**sample, "dept": torch.zeros(2, 1, 32, 32)})
    flags = {"key": torch.zeros(2), "label": torch.zeros(2), "rgb.present": torch.tensor([True, True])}
    assert method.encode({**sample, **flags}).pooled.shape[0] == 2


def test_batches_of_different_sizes_are_refused(method):
    sample = batch(method)
    sample["depth"] = sample["depth"][:1]
    for call in (method.encode, method.prepare):
        with pytest.raises(ValueError, match="different numbers of samples: rgb 2, depth 1, semseg 2"):
            call({**sample, "key": torch.arange(2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(method, value):
    sample = batch(method)
    sample["depth"][1, 0, 3, 4] = value
    with pytest.raises(ValueError, match="depth of sample 1 has values that are not finite"):
        method.encode(sample)
    absent = {"depth.present": torch.tensor([True, False]), "rgb.present": torch.tensor([True, True])}
    with pytest.raises(ValueError, match="depth of sample 1"):
        method.encode({**sample, "depth.present": torch.tensor([False, True])})
    sample["depth"][1] = 0
    assert method.encode({**sample, **absent}).pooled.isfinite().all()


def test_what_is_no_float_and_flags_that_are_no_flags_are_refused(method):
    sample = batch(method)
    with pytest.raises(ValueError, match="rgb is uint8, and the encoder takes floats, normalised as"):
        method.encode({**sample, "rgb": sample["rgb"].to(torch.uint8)})
    for flag, words in (
        (torch.ones(2, dtype=torch.int64), r"depth.present must be bool \[B\], .* got int64 \[2\]"),
        (torch.ones(2, 1, dtype=torch.bool), r"got bool \[2, 1\]"),
        (torch.tensor(True), r"got bool \[\]"),
    ):
        with pytest.raises(ValueError, match=words):
            method.encode({**sample, "depth.present": flag})
    with pytest.raises(KeyError, match="none of rgb, depth, semseg; it has nothing"):
        method.encode({})


def test_hidden_depths_and_classes_look_like_no_value():
    hidden = torch.zeros(1, 8, 8, dtype=torch.bool)
    hidden[:, :4] = True
    depth = torch.linspace(-3, 3, 64).reshape(1, 8, 8)
    shown = pixels(pictures.depth_map(depth, hidden))
    half = len(shown) // 2
    assert (shown[:half] == pictures.HIDDEN).all()
    every = pixels(pictures.depth_map(torch.linspace(-4, 4, 4096).reshape(1, 64, 64))).reshape(-1, 3).astype(int)
    assert np.abs(every - pictures.HIDDEN).sum(axis=1).min() > 60, "no depth is of this colour"
    classes = pixels(pictures.class_map(torch.arange(64).reshape(8, 8), hidden[0]))
    assert (classes[:half] == pictures.HIDDEN).all()
    assert not (pictures.palette() == pictures.HIDDEN).all(axis=1).any()


@pytest.mark.parametrize("name", ["multimae-vit-tiny", "points-depth-vit-tiny"])
def test_the_report_marks_what_is_hidden(name, monkeypatch):
    run = load_recipe(f"multimodal:{name}", installed(), twin=True)
    method = build_method(run)
    source = make_source(run, method)
    seen = []
    own = source.masked_picture
    monkeypatch.setattr(source, "masked_picture", lambda m, v, h: seen.append((m, h)) or own(m, v, h))
    _pictures(method, source, 2)
    assert {modality for modality, _ in seen} >= {"depth"}
    found = reconstruct(method, held_out_samples(source, 2)[0])["depth"]
    assert found.hidden.shape == found.masked.shape
    assert torch.equal(found.masked[~found.hidden], found.input[~found.hidden])
    picture = pixels(own("depth", found.masked[0], found.hidden[0]))
    assert not np.array_equal(picture, pixels(source.picture("depth", found.masked[0])))
    if "points" in name:
        assert not [modality for modality, _ in seen if modality == "points"], "groups lie on no grid"
    else:
        wrapped = LabelledSource(source)
        assert (
            wrapped.masked_picture("depth", found.masked[0], found.hidden[0]).content
            == own("depth", found.masked[0], found.hidden[0]).content
        )


def test_the_report_shows_the_sample_beside_what_its_ids_stand_for():
    run = load_recipe("multimodal:4m-vit-tiny", installed(), twin=True)
    run = replace(run, parts={role: part for role, part in run.parts.items() if not role.startswith("caption.")})
    method = build_method(run)
    source = make_source(run, method)
    heads = {head["name"]: list(head["rows"]) for head in _pictures(method, source, 2)}
    assert heads["depth"][:2] == ["input", "as ids"]
    assert heads["rgb_ids"][:2] == ["input", "as ids"]
    assert "as ids" not in heads["semseg"], "these ids are the data's own"
    sample = held_out_samples(source, 2)[0]
    found = reconstruct(method, sample)["depth"]
    assert torch.equal(found.whole, sample["depth"])
    tokenizer = method.tokenizer.part("depth")
    cut = tokenizer.split(sample)
    assert torch.equal(found.input, tokenizer.join(cut.values, cut.layout))


def test_captions_are_large_enough_and_show_gaps():
    picture = pixels(pictures.text("an imp and two zombies stand in a dark corridor to the left of a door, far away"))
    dark = np.flatnonzero(picture.min(axis=(1, 2)) < 128)
    first = dark[: int(np.argmax(np.diff(dark) > 1)) + 1]
    assert len(first) >= 14, "letters are as high as they can be read at half the size"
    assert picture[:, -3:].min() == 255, "no line is cut off"
    tokenizer = TextTokenizer(TextTokenizer.Config(length=5, vocabulary=50), 8)
    values = tokenizer.split({"caption": torch.tensor([[7, 8, 9, 0, 0]])}).values
    hidden = torch.tensor([[False, True, True, True, True]])
    assert tokenizer.blank(values, hidden).flatten().tolist() == [7, -1, -1, 0, 0]


def test_across_where_each_sample_has_several_masks():
    run = swap(
        load_recipe("multimodal:multimae-vit-tiny", installed(), twin=True), "masker", "core:random", installed()
    )
    several = build_method(override(run, {"masker": {"masks": 2}}, "test", installed())).eval()
    sample = batch(several) | {"key": torch.arange(2), "depth.present": torch.tensor([True, False])}
    found = across(several, sample)
    assert all(len(value) == 2 for made in found.values() for value in made.values())
