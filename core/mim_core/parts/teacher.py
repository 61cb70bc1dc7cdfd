"""Teachers: encoders that make targets for a student, and are not trained by gradients.

An `EmaTeacher` follows its student (BYOL, arXiv 2006.07733, section 3.1; data2vec, arXiv 2202.03555); a frozen one
stays as it was loaded. Both are part of the method, so checkpoints hold them and FSDP2 shards them.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn

from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Patches
from mim_core.parts.mask import Mask
from mim_core.parts.tokenizer import Tokenizer
from mim_core.ranks.tensors import follow


class Teacher(nn.Module):
    """A tokenizer and an encoder without gradient, in evaluation mode at all times.

    Args:
        tokenizer: Copied.
        encoder: Copied.
    """

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder) -> None:
        super().__init__()
        self.tokenizer, self.encoder = copy.deepcopy(tokenizer), copy.deepcopy(encoder)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode: a teacher's dropout and batch statistics would be noise in the targets."""
        return self

    @torch.no_grad()
    def forward(self, patches: Patches) -> Encoded:
        """Encodes every unit of the patches."""
        tokens = self.tokenizer.embed(patches.values)
        return self.encoder(tokens, patches.layout, Mask.nothing_hidden(len(tokens), patches.layout, tokens.device))


class EmaTeacher(Teacher):
    """A teacher that follows a student's tokenizer and encoder.

    teacher <- m * teacher + (1 - m) * student after each step; m goes from ``start`` to ``end`` along half a cosine
    (BYOL) or a straight line (data2vec).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        encoder: Encoder,
        start: float = 0.996,
        end: float = 1.0,
        schedule: Literal["cosine", "linear"] = "cosine",
    ) -> None:
        super().__init__(tokenizer, encoder)
        if not 0 <= start <= end <= 1:
            raise ValueError(f"a teacher's momentum must rise within [0, 1], got {start} to {end}")
        self.start, self.end, self.schedule = start, end, schedule

    def momentum(self, progress: float) -> float:
        """m at a share of the run in [0, 1]."""
        done = (1 - math.cos(math.pi * progress)) / 2 if self.schedule == "cosine" else progress
        return self.start + (self.end - self.start) * done

    @torch.no_grad()
    def update(self, tokenizer: Tokenizer, encoder: Encoder, progress: float) -> None:
        """Follows the student; buffers, such as running statistics, are taken over."""
        mine, theirs = (self.tokenizer, self.encoder), (tokenizer, encoder)
        follow(_tensors(mine, "parameters"), _tensors(theirs, "parameters"), self.momentum(progress))
        for own, other in zip(_tensors(mine, "buffers"), _tensors(theirs, "buffers"), strict=True):
            own.copy_(other)


def _tensors(modules: tuple[nn.Module, ...], kind: str) -> list[Tensor]:
    return [tensor for module in modules for tensor in getattr(module, kind)()]
