"""An encoder that names what it sees: each token becomes the nearest of many codes (VQ-VAE, arXiv 1711.00937)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.parts.encoder import Encoded, ViTEncoder
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Mask
from mim_core.ranks.tensors import batch_mean, fill_from_first, gather, whole

CANDIDATES = 4
"""Vectors of each sample that may take the place of a code that is not used."""


class Codebook(nn.Module):
    """Codes [codes, size] that follow the vectors which they name, as running means (VQ-VAE, arXiv 1711.00937, appendix
    A.1) over all ranks, or are trained by the gradient of their distance to them (equation 3). Codes that are hardly
    used are replaced by vectors of the last batch (Jukebox, arXiv 2005.00341, section 3.1).

    In training, `forward` takes note of the batch, and `after_step` follows it.

    Raises:
        ValueError: There are fewer than 2 codes, the size is below 1, or ``decay`` or ``revive`` lies outside [0, 1).
    """

    book: Tensor
    share: Tensor
    sums: Tensor
    updates: Tensor
    batch_share: Tensor
    batch_sums: Tensor

    def __init__(
        self, codes: int, size: int, decay: float, revive: float, normalize: bool, trained: bool = False
    ) -> None:
        super().__init__()
        if codes < 2 or size < 1:
            raise ValueError(f"codes must be 2 or more, and size 1 or more; got {codes} and {size}")
        if not 0 <= decay < 1 or not 0 <= revive < 1:
            raise ValueError(f"decay and revive must lie in [0, 1), got {decay} and {revive}")
        self.decay, self.revive, self.normalize = decay, revive, normalize
        drawn = self.placed(torch.randn(codes, size))
        self.trained = trained
        if trained:
            self.book = nn.Parameter(drawn)
        else:
            self.register_buffer("book", drawn)
        self.register_buffer("share", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("batch_share", torch.zeros(codes), persistent=False)
        self.register_buffer("batch_sums", torch.zeros(codes, size), persistent=False)
        self._candidates: Tensor | None = None

    def placed(self, vectors: Float[Tensor, "*n size"]) -> Float[Tensor, "*n size"]:
        """Vectors where codes lie: on the unit sphere, with ``normalize``."""
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def vectors_of(self, ids: Int[Tensor, "R N"]) -> Float[Tensor, "R N size"]:
        """The codes of ids, where codes lie."""
        return self.placed(F.embedding(ids, self.book)) if self.trained else F.embedding(ids, self.book)

    def nearest(self, vectors: Float[Tensor, "R N size"]) -> Int[Tensor, "R N"]:
        """The id of each vector's nearest code."""
        book = self.placed(self.book.detach()) if self.trained else self.book
        far = book.square().sum(dim=1) - 2 * vectors @ book.T  # without the vector's own length
        ids: Tensor = far.argmin(dim=-1)
        return ids

    def forward(
        self, vectors: Float[Tensor, "R N size"]
    ) -> tuple[Float[Tensor, "R N size"], Int[Tensor, "R N"], Float[Tensor, "R N"]]:
        """(codes, ids, distances): the nearest codes, with the vectors' gradient; and the squared distance to them,
        which draws the vectors there, and codes that are trained to the vectors, a mean over their values."""
        exact = nullcontext() if vectors.is_meta else torch.autocast(vectors.device.type, enabled=False)
        with exact:  # which code is nearest hangs on small differences
            placed = self.placed(vectors.float())
            ids = self.nearest(placed.detach())
        codes = self.vectors_of(ids)
        if self.training:
            self._note(placed.detach(), ids)
        apart = (placed - codes).square().mean(dim=-1)
        return placed + (codes - placed).detach(), ids, apart

    def _note(self, vectors: Float[Tensor, "R N size"], ids: Int[Tensor, "R N"]) -> None:
        """Adds a batch to what `after_step` follows."""
        flat = ids.flatten()
        self.batch_share.add_(torch.zeros_like(self.share).index_add(0, flat, torch.ones_like(flat, dtype=torch.float)))
        self.batch_sums.add_(torch.zeros_like(self.sums).index_add(0, flat, vectors.flatten(0, 1)))
        count = vectors.shape[1]
        some = min(CANDIDATES, count)
        at = (self.updates * 7919 + torch.arange(some, device=ids.device) * (count // some)) % count
        self._candidates = vectors[:, at].flatten(0, 1)

    @torch.no_grad()
    def after_step(self) -> None:
        """The codes follow what was noted since the last step, of all ranks; nothing where that is nothing."""
        if self._candidates is None:
            return
        candidates, self._candidates = gather(self._candidates)[0], None
        count = self.batch_share.sum().clamp(min=1.0)
        share, sums = batch_mean(self.batch_share / count), batch_mean(self.batch_sums / count)
        self.batch_share.zero_()
        self.batch_sums.zero_()
        self.share.lerp_(share, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        known = self.share > 0
        means = self.sums / self.share.clamp(min=1e-12)[:, None]
        now = whole(self.book)
        book = now if self.trained else torch.where(known[:, None], self.placed(means), now)
        even = self.share.sum() / len(self.share)
        dead = self.share <= self.revive * even
        number = dead.cumsum(0) - 1
        replaced = dead & (number < len(candidates))
        fresh = candidates[number.clamp(0, len(candidates) - 1)]
        book = torch.where(replaced[:, None], fresh, book)
        if self.trained:  # it may be sharded
            fill_from_first(self.book, book)
        else:
            self.book.copy_(book)
        self.share.copy_(torch.where(replaced, even, self.share))
        self.sums.copy_(torch.where(replaced[:, None], fresh * even, self.sums))
        self.updates += 1

    def measures(self) -> dict[str, Tensor]:
        """How the codes are used, of late: ``usage``, the part of them that names a tenth of an even share or more, and
        ``perplexity``, as how many codes that are used alike they are."""
        even = self.share / self.share.sum().clamp(min=1e-12)
        entropy = -(even * even.clamp(min=1e-12).log()).sum()
        return {"usage": (even * len(even) >= 0.1).float().mean(), "perplexity": entropy.exp()}


class CodebookEncoder(ViTEncoder):
    """A vision transformer whose tokens are named by a codebook: what comes out is the code's vector, and
    ``Encoded.ids`` has its id. With the straight-through gradient (arXiv 1711.00937, section 3.2).

    A frozen run of it is a teacher that gives ids (`core:ids`), and a tokenizer whose units are ids (`core:codes`).
    """

    @dataclass(frozen=True)
    class Config(ViTEncoder.Config):
        """Options of the codebook encoder: those of the vision transformer, and of its codes."""

        class_token: bool = False
        """Put one learned token in front."""
        codes: int = 1024
        """Ids."""
        size: int = 32
        """Width of a code."""
        decay: float = 0.99
        """How much of a code's running mean stays at each step."""
        revive: float = 0.05
        """Codes that are used less than this part of an even share are replaced by vectors of the batch."""
        normalize: bool = True
        """Codes and vectors have the length 1 (4M's tokenizers)."""
        follow: Literal["means", "gradient"] = "means"
        """How codes learn: as running means of what they name, or by the gradient of their distance to it."""

    def __init__(self, config: Config, layout: Layout) -> None:
        super().__init__(config, layout)
        self.codes = config.codes
        self.to_code = nn.Linear(self.width, config.size)
        self.from_code = nn.Linear(config.size, self.width)
        self.codebook = Codebook(
            config.codes, config.size, config.decay, config.revive, config.normalize, config.follow == "gradient"
        )

    def forward(self, tokens: Float[Tensor, "R K D"], layout: Layout, mask: Mask) -> Encoded:
        """The vectors of the codes that name the tokens, with their ids and how far the tokens were from them."""
        encoded = super().forward(tokens, layout, mask)
        codes, ids, apart = self.codebook(self.to_code(encoded.tokens))
        return replace(encoded, tokens=self.from_code(codes), ids=ids, apart=apart)

    def of_ids(self, ids: Int[Tensor, "R N"]) -> Float[Tensor, "R N D"]:
        """The tokens that these ids give."""
        tokens: Tensor = self.from_code(self.codebook.vectors_of(ids))
        return tokens

    def after_step(self) -> None:
        """The codes follow the batch."""
        self.codebook.after_step()

    def measures(self) -> dict[str, Tensor]:
        """How the codes are used."""
        return self.codebook.measures()
