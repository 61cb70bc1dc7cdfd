"""What contracts of parts that look at a student have in common."""

from __future__ import annotations

from torch import Tensor

from mim_core.data.source import Sample
from mim_core.parts.encoder import Encoder, ViTEncoder
from mim_core.parts.layout import Patches
from mim_core.parts.mask import Draw, Mask
from mim_core.parts.masker import RandomMasker
from mim_core.parts.teacher import Student
from mim_core.parts.tokenizer import PatchTokenizer, Tokenizer
from mim_core.testing.checks import Contract, noise, seeded


class WithStudent(Contract):
    """A small student, and batches of it."""

    def make_tokenizer(self) -> Tokenizer:
        """The student's tokenizer; by default 4 x 4 patches of a grid of 8 x 12."""
        return PatchTokenizer(PatchTokenizer.Config(modality="image", size=(8, 12), patch=(2, 2), channels=3), 16)

    def make_encoder(self, tokenizer: Tokenizer) -> Encoder:
        """The student's encoder."""
        return ViTEncoder(ViTEncoder.Config(width=16, depth=2, heads=2), tokenizer.layout)

    def make_sample(self, tokenizer: Tokenizer, rows: int) -> Sample:
        """A batch that the tokenizer takes."""
        return noise(tokenizer.shapes, rows, ids=tokenizer.ids)

    def student(self) -> Student:
        """Tokenizer and encoder, the same weights each time."""
        with seeded():
            return self._drawn(1)

    def _drawn(self, depth: int) -> Student:
        tokenizer = self.make_tokenizer()

        def fresh() -> tuple[Tokenizer, Encoder]:
            other = self._drawn(0)
            return other.tokenizer, other.encoder

        return Student(tokenizer, self.make_encoder(tokenizer), fresh)

    def mask(self, patches: Patches, key: Tensor) -> Mask:
        """Three quarters of the units hidden."""
        masker = RandomMasker(RandomMasker.Config(ratio=0.75))
        mask: Mask = masker(patches.layout, Draw(key))
        return mask
