"""Masked blocks: what they see and do not see, their gradients, their losses, and how they stand behind a module of
somebody else's network."""

import copy
import itertools
import pickle

import pytest
import timm
import torch
from mim_core import SSMCTB, SSPCAB, MimError, block_loss, with_block
from mim_core.parts.masked_block import MaskedConvolution
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SIZES = {1: (7,), 2: (5, 9), 3: (3, 6, 5)}
DENSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def dense(convolution, kernel):
    """The same convolution as one kernel with zeros wherever it is masked."""
    side, axes = 2 * convolution.pad + 1, convolution.axes
    channels = len(convolution.corners[0].weight)
    whole = torch.zeros(channels, channels, *[side] * axes, dtype=convolution.corners[0].weight.dtype)
    for place, corner in zip(convolution.sides, convolution.corners, strict=True):
        spans = [slice(0, kernel) if sign < 0 else slice(side - kernel, side) for sign in place]
        whole[(slice(None), slice(None), *spans)] = corner.weight.detach()
    bias = sum(corner.bias.detach() for corner in convolution.corners)
    return lambda x: DENSE[axes](x, whole, bias, padding=convolution.pad)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("channels", "kernel", "dilation"), [(1, 1, 1), (5, 1, 0), (3, 2, 1), (7, 3, 2)])
def test_the_convolution_is_a_dense_one_with_zeros(axes, channels, kernel, dilation):
    convolution = MaskedConvolution(channels, axes, kernel, dilation).double()
    x = torch.randn(2, channels, *SIZES[axes], dtype=torch.float64)
    torch.testing.assert_close(convolution(x), dense(convolution, kernel)(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 1)])
def test_inputs_smaller_than_the_mask(size):
    block = SSMCTB(3, kernel=2, dilation=2)
    assert block(torch.randn(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_nothing_of_the_cross_is_seen(axes):
    """The middle of a 7-wide input and all within ``dilation`` of it on any axis say nothing of the middle."""
    x = torch.randn(1, 2, *[7] * axes, requires_grad=True)
    MaskedConvolution(2, axes, kernel=1, dilation=1)(x)[(0, slice(None), *[3] * axes)].sum().backward()
    seen = set(map(tuple, x.grad[0].abs().sum(dim=0).nonzero().tolist()))
    assert seen == set(itertools.product((1, 5), repeat=axes))


@pytest.mark.parametrize("kind", [SSMCTB, SSPCAB])
@pytest.mark.parametrize("loss", ["mse", "huber"])
@pytest.mark.parametrize(("axes", "channels"), [(2, 3), (3, 1), (1, 5)])
def test_gradients_by_finite_differences(kind, loss, axes, channels):
    block = kind(channels, axes, loss=loss, **({"width": 4, "heads": 3, "head_width": 2} if kind is SSMCTB else {}))
    block = block.double()
    x = 2 * torch.randn(2, channels, *[n - 2 for n in SIZES[axes]], dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def total(x, *weights):
        output = torch.func.functional_call(block, dict(zip(names, weights, strict=True)), (x,))
        return block.take_loss() + output.square().sum()

    assert torch.autograd.gradcheck(total, (x, *block.parameters()))


def test_the_loss_that_is_kept_is_that_of_output_and_input():
    for loss, distance in (("mse", F.mse_loss), ("huber", F.huber_loss)):
        block, x = SSPCAB(4, loss=loss), 3 * torch.randn(2, 4, 5, 5)
        output = block(x)
        torch.testing.assert_close(block.take_loss(), distance(output, x))
        assert block.take_loss() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"kernel": 0}, "kernel"),
        ({"dilation": -1}, "dilation"),
        ({"axes": 4}, "1, 2 or 3 axes"),
        ({"loss": "l1"}, "mse, huber"),
        ({"heads": 0}, "heads"),
    ],
)
def test_options_that_make_no_block(options, words):
    with pytest.raises(ValueError, match=words):
        SSMCTB(**{"channels": 4, **options})


def test_inputs_that_do_not_fit():
    for x in (torch.zeros(2, 3, 5, 5), torch.zeros(2, 4, 5), torch.zeros(2, 4, 5, 5, 5)):
        with pytest.raises(ValueError, match=r"takes \[B, 4, 2 axes\]"):
            SSMCTB(4)(x)


# ---- behind a module of somebody else's network ----------------------------------------------------------------------


class Detector(nn.Module):
    """A stranger's: two stages of convolutions, and a number for each picture."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
        self.layer2 = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(("name", "channels"), [("layer1", 6), ("layer2", 4), ("layer1.0", 6)])
def test_two_lines(name, channels):
    detector = Detector()
    before = dict(detector.state_dict())
    model = with_block(detector, name, loss="huber", kernel=2)
    found = model(torch.randn(3, 1, 12, 12))
    loss = found.square().mean() + block_loss(model)
    loss.backward()
    assert model is detector
    blocks = [part for part in model.modules() if isinstance(part, SSMCTB)]
    assert [block.channels for block in blocks] == [channels]
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert before.keys() < model.state_dict().keys()


def test_the_network_goes_on_with_what_the_block_gives():
    model = with_block(Detector(), "layer2").eval()
    x = torch.randn(3, 1, 12, 12)
    block = next(part for part in model.modules() if isinstance(part, SSMCTB))
    inner = Detector.forward(copy.deepcopy(model), x)
    layer2 = F.conv2d(model.layer1(x), model.layer2.weight, model.layer2.bias)
    torch.testing.assert_close(inner, model.head(block(layer2).mean(dim=(2, 3))))


def test_a_resnet_of_timm():
    model = with_block(timm.create_model("resnet10t", num_classes=3), "layer3", block="sspcab", reduction=4)
    loss = model(torch.randn(2, 3, 64, 64)).sum() + block_loss(model)
    loss.backward()
    assert len(model.layer3) == 1  # the stage itself is as it was


def test_losses_are_gathered_and_weighted():
    model = with_block(with_block(Detector(), "layer1", weight=0.5), "layer2", weight=2.0, block="sspcab")
    x = torch.randn(3, 1, 12, 12)
    model(x)
    first = block_loss(model)
    by_hand = torch.zeros(())
    for name, weight in (("layer1", 0.5), ("layer2", 2.0)):
        given = {}
        behind = next(part for part in model.modules() if getattr(part, "where", None) == name)
        handle = behind.block.register_forward_hook(lambda _, x, y, given=given: given.update(x=x[0], y=y))
        model(x)
        handle.remove()
        by_hand = by_hand + weight * F.mse_loss(given["y"], given["x"])
    block_loss(model)
    torch.testing.assert_close(first, by_hand)
    model(x)
    model(x)
    torch.testing.assert_close(block_loss(model), 2 * first)  # two views: the losses of both
    assert float(block_loss(model)) == 0


def test_no_loss_outside_training():
    model = with_block(Detector(), "layer1")
    x = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        model(x)
    model.eval()(x)
    assert float(block_loss(model)) == 0


def test_a_part_that_is_computed_again_counts_once():
    model = with_block(Detector(), "layer1").train()
    x = torch.randn(3, 1, 12, 12)
    model.layer1(x)
    once = block_loss(model)
    checkpoint(model.layer1, x.requires_grad_(True), use_reentrant=False).sum().backward()
    torch.testing.assert_close(block_loss(model), once)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stand_alone(copied):
    model = with_block(Detector(), "layer1")
    x = torch.randn(3, 1, 12, 12)
    model(x)
    other = copied(model)
    assert float(block_loss(other)) == 0
    with torch.no_grad():
        for parameter in other.masked_block.parameters() if hasattr(other, "masked_block") else other.parameters():
            parameter.zero_()
    assert not torch.equal(model(x), other(x))
    other(x)
    block_loss(other).backward()
    assert all(p.grad is None for p in model.parameters())


def test_sequences_and_axes():
    model = with_block(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()), "0")
    assert model(torch.randn(2, 2, 9)).shape == (2, 3, 7)
    inner = nn.Sequential(nn.Conv3d(1, 5, 1), nn.ReLU())
    model = with_block(nn.Sequential(inner, nn.Flatten()), "0")
    assert model(torch.randn(2, 1, 3, 4, 5)).shape == (2, 5 * 60)
    assert float(block_loss(model).detach()) > 0


def test_mistakes_are_said():
    model = Detector()
    with pytest.raises(MimError, match=r"no module 'layer9'.*Did you mean 'layer"):
        with_block(model, "layer9")
    with pytest.raises(MimError, match="unknown block 'ssmctbb'"):
        with_block(model, "layer1", block="ssmctbb")
    with pytest.raises(MimError, match="cannot be read off"):
        with_block(nn.Sequential(nn.ReLU()), "0")
    with pytest.raises(MimError, match="unexpected keyword"):
        with_block(model, "layer1", kernels=3)
    with pytest.raises(MimError, match="weight must be finite"):
        with_block(model, "layer1", weight=-1)
    with pytest.raises(MimError, match="has no masked block"):
        block_loss(model)
    with_block(model, "layer1")
    with pytest.raises(MimError, match="already"):
        with_block(model, "layer1")


def test_what_the_module_gives_does_not_fit():
    model = with_block(Detector(), "layer1", channels=5)
    with pytest.raises(MimError, match=r"behind the module 'layer1'.*channels=6, axes=2"):
        model(torch.randn(1, 1, 9, 9))

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model = with_block(nn.Sequential(Pair()), "0", channels=2)
    with pytest.raises(MimError, match="gives a tuple"):
        model(torch.randn(1, 2, 9, 9))


def test_losses_that_nobody_takes_are_an_error():
    model = with_block(Detector(), "layer1")
    for _ in range(64):
        model(torch.zeros(1, 1, 5, 5))
    with pytest.raises(MimError, match="never taken"):
        model(torch.zeros(1, 1, 5, 5))
