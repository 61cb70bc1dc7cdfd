"""An autoencoder whose encoder names units by codes, and which hides nothing: it makes the tokenizers whose ids other
methods predict (VQ-VAE, arXiv 1711.00937; 4M, arXiv 2312.06647, section 2.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mim_core.data.source import Sample
from mim_core.errors import MimError
from mim_core.methods.masked_autoencoder import Head, Prepared
from mim_core.methods.method import Features, Method, Outcome, encode_all
from mim_core.parts.decoder import Decoder
from mim_core.parts.encoder import Encoded
from mim_core.parts.encoder_codebook import CodebookEncoder
from mim_core.parts.layout import Patches
from mim_core.parts.mask import Mask
from mim_core.parts.samples import check_sizes
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer

if TYPE_CHECKING:
    from mim_core.methods.assembly import Parts


class QuantisedAutoencoder(Method):
    """Encodes every unit, replaces each token by the nearest code, and rebuilds the units from the codes alone.

    Args:
        tokenizer: Splits samples into units and embeds them.
        encoder: Names the units.
        head: Rebuilds them: a decoder that needs no queries, and the target.
        commitment: Factor of the distance between tokens and their codes.

    Raises:
        ValueError: The factor is negative or not finite, or 0 with codes that follow a gradient.
    """

    rebuilds = "all"

    @dataclass(frozen=True)
    class Config:
        """Options of the quantised autoencoder."""

        commitment: float = 1.0
        """Factor of the distance between tokens and their codes, which keeps the encoder near them."""

    @classmethod
    def build(cls, config: Any, parts: Parts) -> QuantisedAutoencoder:
        """Roles: tokenizer, encoder (core:codebook), decoder, target.

        Raises:
            MimError: Several modalities or heads, an encoder without codes, or a target that needs more than the units.
        """
        tokenizer = parts.tokenizer()
        if isinstance(tokenizer, JoinedTokenizer):
            raise MimError("A tokenizer is trained on one modality; this run has several.")
        encoder = parts.encoder(tokenizer)
        if not isinstance(encoder, CodebookEncoder):
            raise MimError(
                f"This method needs an encoder that names units by codes, and a {type(encoder).__name__} does not: "
                "--use encoder=core:codebook"
            )
        heads = list(parts.heads(tokenizer, encoder, {}))
        if len(heads) != 1:
            raise MimError("A tokenizer has one head, which rebuilds its units: name one target.")
        _, _, decoder, target = heads[0]
        if target.needs_teacher or target.of_head:
            raise MimError(
                f"{target.role}: a tokenizer rebuilds its own units, and this target asks for something else."
            )
        return cls(tokenizer, encoder, Head(decoder, target), config.commitment)

    def __init__(self, tokenizer: Tokenizer, encoder: CodebookEncoder, head: Head, commitment: float = 1.0) -> None:
        super().__init__()
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment must be finite and not negative, got {commitment}")
        if encoder.codebook.trained and commitment == 0:
            raise ValueError("codes that follow a gradient learn by the commitment, so it must not be 0")
        self.tokenizer, self.encoder, self.commitment = tokenizer, encoder, commitment
        self.heads = nn.ModuleDict({"main": head})

    @property
    def head(self) -> Head:
        """The only one."""
        head = self.heads["main"]
        assert isinstance(head, Head)
        return head

    @torch.no_grad()
    def prepare(
        self,
        sample: Sample,
        mask: Mask | Tensor | Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> Prepared:
        """Splits the units; all are seen, and all are asked.

        Raises:
            ValueError: A mask is given: nothing is hidden here.
        """
        if mask is not None:
            raise ValueError("this method hides nothing, so it takes no mask")
        check_sizes(self.tokenizer, sample)
        patches = self.tokenizer.split(sample)
        assert isinstance(patches.values, Tensor)
        every = self._every(patches)
        target = self.head.target.make(sample, patches, every)
        known = self.head.target.told(target)
        weight = self.head.shares(every.weight if known is None else every.weight * known)
        return Prepared(patches.values, patches.layout, every, {"main": target}, {"main": weight})

    def _every(self, patches: Patches) -> Mask:
        """All units seen and asked. Those of the answer count as hidden, as targets and pictures know them."""
        values = patches.values
        assert isinstance(values, Tensor)
        seen = Mask.nothing_hidden(len(values), patches.layout, values.device)
        every = seen.ask_all(patches.layout)
        return Mask(torch.ones_like(seen.hidden), seen.kept_ids, every.query_ids, every.weight)

    def forward(self, prepared: Prepared) -> Outcome:
        """Encodes, names, rebuilds."""
        encoded = self.encoder(self.tokenizer.embed(prepared.inputs), prepared.layout, prepared.mask)
        prediction = self.head.decoder(encoded, prepared.layout, prepared.mask)
        rebuilt = (self.head.target.loss(prediction, prepared.targets["main"]) * prepared.weights["main"]).sum()
        committed = encoded.apart.mean()
        latent = torch.cat([encoded.prefix, encoded.tokens], dim=1)
        loss, parts = rebuilt + self.commitment * committed, {"rebuilt": rebuilt, "commitment": committed}
        return Outcome(loss, parts, {"main": prediction}, latent, self.encoder.measures())

    def comes_next(self, program: str, folder: Path) -> str:
        """It is named in a run that predicts its ids."""
        return (
            f"a run that predicts its ids, with --use X.tokenizer=core:codes --X.tokenizer.run {folder}, or with "
            f"--use teacher=core:frozen --teacher.run {folder} --use target=core:ids"
        )

    def encode(self, sample: Sample) -> Features:
        """The codes' vectors of every unit."""
        return encode_all(self.tokenizer, self.encoder, sample)

    @torch.no_grad()
    def name(self, sample: Sample) -> Int[Tensor, "B N"]:
        """The id of every unit. In evaluation mode."""
        patches = self.tokenizer.split(sample)
        values = patches.values
        assert isinstance(values, Tensor)
        tokens = self.tokenizer.embed(values.float() if values.is_floating_point() else values)
        encoded: Encoded = self.encoder(tokens, patches.layout, self._every(patches))
        assert encoded.ids is not None, "a codebook names tokens"
        return encoded.ids

    @torch.no_grad()
    def rebuild(self, ids: Int[Tensor, "B N"]) -> Tensor:
        """What the ids of all units stand for, in the modality's own shape. In evaluation mode.

        Raises:
            MimError: The target has no way back from its answers alone.
        """
        layout, rows = self.tokenizer.layout, len(ids)
        tokens = self.encoder.of_ids(ids)
        encoded = Encoded(tokens, tokens[:, :0])
        every = Mask.nothing_hidden(rows, layout, ids.device).ask_all(layout)
        decoder = self.head.decoder
        assert isinstance(decoder, Decoder)
        shape = (rows, layout.count, *self.tokenizer.unit_shape)
        nothing = Patches(tokens.new_zeros(shape), layout)
        values = self.head.target.to_input_space(decoder(encoded, layout, every), nothing, every)
        if values is None or self.head.target.needs_truth:
            raise MimError("This tokenizer's target has no way back from its answers alone: --target.no-normalize")
        return self.tokenizer.join(values.reshape(shape), layout)
