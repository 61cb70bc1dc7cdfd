"""What a GPU must give: the same draws to the bit, the same loss, and no synchronisation in `prepare` and `forward`."""

import pytest
import torch
from mim_core import build_method, randomness
from mim_core.layout import Layout
from mim_core.mask import Draw
from mim_core.masker import BlockMasker, GridMasker, RandomMasker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

KEYS = randomness.make_key(3, 1, torch.arange(256))


def test_draws_are_equal_to_the_bit():
    assert torch.equal(randomness.bits(KEYS.cuda(), "mask", 1000).cpu(), randomness.bits(KEYS, "mask", 1000))
    assert torch.equal(randomness.uniform(KEYS.cuda(), "u", 1000).cpu(), randomness.uniform(KEYS, "u", 1000))
    assert torch.equal(randomness.permutation(KEYS.cuda(), "p", 196).cpu(), randomness.permutation(KEYS, "p", 196))


@pytest.mark.parametrize(
    "masker",
    [RandomMasker(RandomMasker.Config()), GridMasker(GridMasker.Config()), BlockMasker(BlockMasker.Config())],
    ids=lambda m: type(m).__name__,
)
def test_masks_are_equal_to_the_bit(masker):
    layout = Layout.on_grid(14, 14)
    here, there = masker(layout, Draw(KEYS)), masker.cuda()(layout, Draw(KEYS.cuda()))
    for name in ("hidden", "kept_ids", "query_ids", "weight"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name


@pytest.mark.parametrize("recipe", ["image:mae-vit-tiny", "image:simmim-vit-base"])
def test_a_step_equals_the_cpu_and_does_not_synchronise(recipe):
    from mim_core.plugins import installed
    from mim_core.recipe import load_recipe

    method = build_method(load_recipe(recipe, installed(), twin=True)).eval()
    sample = {"image": torch.randn(16, 1, 28, 28), "key": KEYS[:16]}
    expected = method(method.prepare(sample)).loss
    method.cuda()
    moved = {name: value.cuda() for name, value in sample.items()}
    method(method.prepare(moved))  # first use may build kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome = method(method.prepare(moved))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(outcome.loss.cpu(), expected, rtol=1e-4, atol=1e-5)
