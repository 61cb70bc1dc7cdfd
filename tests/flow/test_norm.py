"""BatchNorm is torch's own in one process, and the same over two ranks as over their joined batch."""

import pytest
import torch
from mim_core.parts.norm import BatchNorm, _Normalise
from torch import nn

SHAPES = [(6, 5), (4, 5, 7), (3, 5, 2, 4)]


def pair(shape, affine=True):
    torch.manual_seed(0)
    own, theirs = BatchNorm(5, affine=affine), nn.BatchNorm1d(5, affine=affine)
    if affine:
        with torch.no_grad():
            own.weight.uniform_(0.5, 2)
            own.bias.normal_()
    theirs.load_state_dict(own.state_dict())
    return own, theirs, torch.randn(shape) * 3 + 100


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torch(shape, affine):
    own, theirs, x = pair(shape, affine)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(shape)
    a = own(x1)
    b = theirs(x2.reshape(shape[0], 5, -1)).reshape(shape) if len(shape) > 2 else theirs(x2)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    (a * upstream).sum().backward()
    (b * upstream).sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad, rtol=1e-3, atol=1e-4)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.eval()(x), theirs.eval()(x.reshape(shape[0], 5, -1)).reshape(shape))


def test_gradient_by_finite_differences():
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: _Normalise.apply(v, 1e-5)[0], (x,))


def test_wrong_channels():
    with pytest.raises(ValueError, match=r"wants \[n, 5, \.\.\.\]"):
        BatchNorm(5)(torch.zeros(2, 4))


def test_compiles_without_graph_break():
    own, _, x = pair((4, 5, 7))
    expected = BatchNorm(5)
    expected.load_state_dict(own.state_dict())
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected(x))
