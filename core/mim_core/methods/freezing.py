"""Which weights of pre-training stay as they are while a head is trained on labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mim_core.methods.layers import layer_of

if TYPE_CHECKING:
    from mim_core.methods.method import Method


def freeze(method: Method, blocks: int) -> None:
    """Takes gradients from the first blocks of the encoder and from all in front of them; from tokenizer and encoder
    altogether with -1. What is frozen stays in training mode, as in MAE's linear probing.

    Raises:
        ValueError: The encoder has not so many blocks.
    """
    depth = method.depth()
    if blocks > 0 and blocks > depth:
        raise ValueError(f"freeze is {blocks}, and the encoder has {depth} blocks to go by; -1 freezes all of it")
    for name, parameter in method.named_parameters():
        if not name.startswith(("tokenizer.", "encoder.")):
            continue
        if blocks == -1 or (blocks > 0 and layer_of(name, depth) <= blocks):
            parameter.requires_grad_(False)
