"""Predict what a slow teacher, who hears everything, makes of the hidden units (data2vec, arXiv 2202.03555, section 3).

Differs from the paper: the encoder sees visible units alone, a decoder answers, and the target is the last block."""

from dataclasses import dataclass

import torch
from mim_core import Draw, EmaTeacher, Method, Outcome, encode_all
from torch.nn import functional as F


class FeaturePrediction(Method):
    """The teacher is a moving average of tokenizer and encoder."""

    @dataclass(frozen=True)
    class Config:
        """Options of the method."""

        momentum: float = 0.99
        """Of the teacher at the start; it rises to 1."""

    @classmethod
    def build(cls, config, parts):
        """Needs no target; a recipe's is left aside."""
        tokenizer = parts.tokenizer()
        encoder = parts.encoder(tokenizer)
        decoder = parts.make("decoder", encoder, tokenizer.layout, encoder.width)
        return cls(config, tokenizer, parts.masker(tokenizer), encoder, decoder)

    def __init__(self, config, tokenizer, masker, encoder, decoder):
        super().__init__()
        self.tokenizer, self.masker, self.encoder, self.decoder = tokenizer, masker, encoder, decoder
        self.teacher = EmaTeacher.of(tokenizer, encoder, start=config.momentum)

    @torch.no_grad()
    def prepare(self, sample, mask=None, *, step=0, progress=0.0):
        """Layout, mask, values of the kept units, and the teacher's features at the hidden ones."""
        patches = self.tokenizer.split(sample)
        mask = self.masker(patches.layout, Draw(sample["key"], step, progress)) if mask is None else mask
        features = mask.take(self.teacher(patches).tokens.float(), mask.query_ids)
        values = mask.take(patches.values, mask.kept_ids)
        return patches.layout, mask, values, F.layer_norm(features, features.shape[-1:])

    def forward(self, prepared):
        """Smooth L1 between answers and features."""
        layout, mask, values, features = prepared
        encoded = self.encoder(self.tokenizer.embed(values), layout, mask)
        answers = self.decoder(encoded, layout, mask)
        loss = F.smooth_l1_loss(answers.float(), features)
        return Outcome(loss, {"features": loss}, {"features": answers}, encoded.tokens)

    def encode(self, sample):
        """Features with nothing hidden."""
        return encode_all(self.tokenizer, self.encoder, sample)
