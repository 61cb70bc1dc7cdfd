"""Scores of places from a masked autoencoder: masks that together hide every unit, and the error under them."""

import pytest
import torch
from mim_core import MimError, build_method
from mim_core.evaluation.anomaly_maps import covering_masks, score_maps
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import noise


@pytest.mark.parametrize(("units", "hidden", "covers"), [(16, 12, 1), (196, 147, 4), (7, 2, 3), (5, 4, 2), (6, 3, 1)])
def test_masks_cover_every_unit(units, hidden, covers):
    masks = torch.stack(list(covering_masks(units, hidden, covers)))
    assert masks.shape == (covers * -(-units // hidden), units)
    assert (masks.sum(dim=1) == hidden).all()
    assert (masks.sum(dim=0) >= covers).all()
    assert torch.equal(masks, torch.stack(list(covering_masks(units, hidden, covers))))
    assert covers == 1 or not torch.equal(masks[: len(masks) // covers], masks[-(len(masks) // covers) :])


@pytest.fixture(scope="module")
def method():
    return build_method(load_recipe("image:mae-vit-tiny", installed(), twin=True)).eval()


def sample_of(method, rows=3):
    return {name: value for name, value in noise(method.tokenizer.shapes, rows).items() if name != "key"}


def test_the_error_is_that_of_hidden_pixels(method):
    """By hand: each mask prepared and predicted, its squared errors put where its patches lie, and averaged."""
    sample = sample_of(method)
    size, patch = method.tokenizer.shapes["image"][-1], 7
    total, times = torch.zeros(3, size, size), torch.zeros(size, size)
    for mask in covering_masks(16, 12, 2):
        prepared = method.prepare(sample, mask=mask.expand(3, -1))
        with torch.no_grad():
            answers = method(prepared).prediction
        for place, unit in enumerate(prepared.mask.query_ids[0].tolist()):
            row, column = divmod(unit, size // patch)
            spot = (slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
            wanted = sample["image"][:, 0][(slice(None), *spot)]
            total[(slice(None), *spot)] += (answers[:, place].reshape(3, patch, patch) - wanted).square()
            times[spot] += 1
    assert float(times.min()) >= 2
    torch.testing.assert_close(score_maps(method, sample, covers=2), total / times)


def test_scores_of_a_sample_are_its_own(method):
    sample = sample_of(method)
    whole = score_maps(method, sample, 1)
    alone = score_maps(method, {"image": sample["image"][1:2]}, 1)
    torch.testing.assert_close(alone, whole[1:2])
    assert not torch.equal(whole, score_maps(method, sample, 3))


@pytest.mark.parametrize("recipe", ["image:simmim-vit-base", "image:cmae-vit-tiny", "image:mae-vit-base"])
def test_other_methods_of_pixels(recipe):
    method = build_method(load_recipe(recipe, installed(), twin=True)).eval()
    maps = score_maps(method, sample_of(method), 1)
    assert maps.shape == (3, 28, 28)
    assert bool((maps >= 0).all())
    assert bool(maps.isfinite().all())


@pytest.mark.parametrize("recipe", ["image:ijepa-vit-tiny", "multimodal:multimae-vit-base", "pointcloud:point-mae"])
def test_methods_without_values_are_refused(recipe):
    names = [entry.full_name for entry in installed().of_kind("recipes")]
    recipe = next(name for name in names if name.startswith(recipe))
    method = build_method(load_recipe(recipe, installed(), twin=True)).eval()
    with pytest.raises(MimError, match=r"predicts no values|gives no anomaly scores"):
        score_maps(method, sample_of(method), 1)
