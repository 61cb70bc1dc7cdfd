"""What a 4M run learned, to be looked at: units that a sample lacks, such as the places behind a short caption, are
seen by nobody and have no colour. And how its inputs are described in a model card."""

import pytest
import torch
from mim_core.evaluation.looks import attention, components, encode_shown
from mim_core.host.loading import installed
from mim_core.interop import model_card
from mim_core.methods.build import build_method, make_source
from mim_core.recipes.resolve import load_recipe


@pytest.fixture(scope="module")
def opened():
    pytest.importorskip("tokenizers")
    run = load_recipe("multimodal:4m-vit-tiny", installed(), twin=True)
    return run, build_method(run)


def test_nobody_attends_to_what_is_not_there(opened):
    shown = encode_shown(*opened, 3, attention=True)
    assert not shown.valid.all(), "some caption is shorter than its places"
    weights = shown.encoded.attention.sum(dim=(1, 2))
    assert float(weights[~shown.valid].max()) == 0
    assert float(weights[shown.valid].min()) > 0
    method, sample = opened[1], shown.sample
    torch.testing.assert_close(shown.encoded.tokens[shown.valid], method.encode(sample).tokens[shown.valid])


@pytest.mark.parametrize("look", [attention, components])
def test_every_modality_is_shown_under_the_sample_s_name(opened, look):
    page = look(*opened, 2)
    shown = encode_shown(*opened, 2)
    every = [text for strip in page.strips for text in (strip.label, *(cell.caption for cell in strip.cells))]
    for name in shown.names:
        assert name.endswith(".jpg")
        assert any(name in text for text in every)
    for segment, *_ in shown.parts:
        assert any(segment in text for text in every)


def test_a_card_tells_ids_from_values(opened):
    run, method = opened
    entries = model_card._inputs(method, make_source(run, method).how_read(), ())
    assert entries["rgb"].endswith("normalised")
    assert entries["semseg"].endswith("int64, ids")
    assert entries["caption"].endswith("int64, ids")
    assert entries["depth values"].endswith("0 where nothing was measured")
    assert entries["caption ids"] == "of the run's vocabulary"
