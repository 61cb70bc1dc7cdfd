"""Golden cases of blocks: parts that are tried alone, by what they make of an input."""

from __future__ import annotations

from torch import Tensor

from mim_core.interop.ssmctb import official_names, ssmctb_from
from mim_core.parts.masked_block import SSMCTB
from mim_core.testing.golden import GoldenCase


def ssmctb(case: GoldenCase) -> dict[str, Tensor]:
    """Output, masked convolution, gate, both losses, and gradients of the first."""
    sizes = {"heads": case.config["heads"], "head_width": case.config["dim_head"]}
    block = ssmctb_from(case.weights.get("state", {}), dilation=case.config["dilation"], **sizes).train()
    x = case.inputs["x"].clone().requires_grad_(True)
    output, loss = block(x), block.take_loss()
    assert loss is not None
    loss.backward()
    seen = block.convolution(x).relu()
    found = {
        "loss": loss,
        "output": output,
        "masked": seen,
        "gate": block.gate(seen.flatten(2).mean(dim=2)),
        "grad_x": x.grad,
        "alt_huber": _with_huber(block).loss_of(output, x),
    }
    parameters = dict(block.named_parameters())
    gradients = {f"grad/{theirs}": parameters[ours].grad for ours, theirs in official_names(block).items()}
    return {name: value.detach() for name, value in (found | gradients).items() if value is not None}


def _with_huber(block: SSMCTB) -> SSMCTB:
    """A block of the same sizes whose loss is the paper's."""
    return SSMCTB(block.channels, block.convolution.axes, loss="huber")
