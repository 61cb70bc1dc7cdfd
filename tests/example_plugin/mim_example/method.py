"""Two masked views of a sample should look more alike than those of two samples (InfoNCE on mean tokens).

Not a masked autoencoder: nothing is decoded. It shares core's tokenizers, maskers, encoders and loop all the same.
"""

from dataclasses import dataclass

import torch
from mim_core import Draw, Features, Mask, Method, Outcome, bits
from torch.nn import functional as F


class Pull(Method):
    """Tokenizer, masker and encoder; the masker draws twice."""

    couples_batch = True  # every sample is compared with all others of the batch

    @dataclass(frozen=True)
    class Config:
        """Options of the method."""

        temperature: float = 0.2
        """Similarities are divided by this."""

    @classmethod
    def build(cls, config, parts):
        """Needs no decoder and no target; a recipe's are left aside."""
        tokenizer = parts.tokenizer()
        return cls(config, tokenizer, parts.masker(tokenizer), parts.encoder(tokenizer))

    def __init__(self, config, tokenizer, masker, encoder):
        super().__init__()
        self.config, self.tokenizer, self.masker, self.encoder = config, tokenizer, masker, encoder

    @torch.no_grad()
    def prepare(self, sample, mask=None, *, step=0, progress=0.0):
        """Layout, and (mask, values of the kept units) of both views."""
        patches = self.tokenizer.split(sample)
        keys = bits(sample["key"], "pull", 2).unbind(dim=1)
        masks = [self.masker(patches.layout, Draw(key, step, progress)) for key in keys]
        return patches.layout, [(m, m.take(patches.values, m.kept_ids)) for m in masks]

    def forward(self, prepared):
        """InfoNCE between the views."""
        layout, views = prepared
        latent = [self.encoder(self.tokenizer.embed(values), layout, mask).tokens for mask, values in views]
        a, b = (F.normalize(tokens.mean(dim=1).float(), dim=1) for tokens in latent)
        loss = F.cross_entropy(a @ b.T / self.config.temperature, torch.arange(len(a), device=a.device))
        return Outcome(loss, {"pull": loss}, {}, latent[0])

    def encode(self, sample):
        """Features with nothing hidden."""
        patches = self.tokenizer.split(sample)
        mask = Mask.nothing_hidden(len(patches.values), patches.layout, patches.values.device)
        encoded = self.encoder(self.tokenizer.embed(patches.values), patches.layout, mask)
        return Features(encoded.tokens, encoded.tokens.mean(dim=1), encoded.prefix)
