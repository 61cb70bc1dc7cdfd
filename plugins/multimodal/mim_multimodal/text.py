"""Captions: their tokens as units, and the hidden token as the answer (BERT, arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from mim_core import Layout, Lesson, Mask, Patches, Sample, Target, Tokenizer
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

PADDING = 0
"""The id that fills a caption up. CLIP's byte pairs, and open_clip with them, use the id of a bare "!" for it; one at
the end of a word has an id of its own."""


class TextTokenizer(Tokenizer):
    """Every token of a caption is a unit, and every id of the vocabulary has a learned vector.

    Takes ``sample[modality]`` int64 [B, L], 0 for padding; a unit's values are its id, [1]. Padding is not valid: it is
    never asked, and it is seen only where a masker must keep more units than a caption has tokens, which no run of
    several modalities need do; its vector is zero and stays so. A caption of no tokens is all padding.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the text tokenizer."""

        modality: str = "caption"
        """The sample's entry that is split."""
        length: int = 32
        """Tokens that a caption is cut or filled up to."""
        vocabulary: int = 49_408
        """Number of ids, padding among them; open_clip's byte pairs by default."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        if config.length < 1 or config.vocabulary < 2:
            raise ValueError(
                f"length {config.length} must be at least 1, and vocabulary {config.vocabulary} at least 2"
            )
        self.config = config
        self.layout = Layout.on_grid(config.length)
        self.shapes = {config.modality: (config.length,)}
        self.unit_shape = (1,)
        self.ids = {config.modality: config.vocabulary}
        self.token_embed = nn.Embedding(config.vocabulary, width, padding_idx=PADDING)
        trunc_normal_(self.token_embed.weight, std=0.02)
        nn.init.zeros_(self.token_embed.weight[PADDING])

    def split(self, sample: Sample) -> Patches:
        """[B, L] to values int64 [B, L, 1], with the padding marked as not valid.

        Raises:
            KeyError: The sample has no such entry.
            ValueError: Not whole numbers, or not ``length`` of them.
        """
        name, length = self.config.modality, self.config.length
        if name not in sample:
            raise KeyError(f"the sample has no {name!r}; it has {', '.join(sample)}")
        ids = sample[name]
        if ids.ndim != 2 or ids.shape[1] != length or ids.is_floating_point():
            raise ValueError(f"{name} must be token ids, int64 [B, {length}], got {ids.dtype} {tuple(ids.shape)}")
        return Patches(ids[:, :, None], Layout(count=length, grid=(length,), valid=ids != PADDING))

    def embed(self, values: Int[Tensor, "B K 1"]) -> Tensor:
        """Ids [B, K, 1] to tokens [B, K, D]."""
        tokens: Tensor = self.token_embed(values[..., 0])
        return tokens

    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """Values [B, L, 1] back to [B, L]."""
        return values[..., 0]

    def blank(self, values: Tensor, hidden: Tensor) -> Tensor:
        """Minus one, which is no token, in hidden units; padding stays."""
        return values.masked_fill(hidden[:, :, None] & (values != PADDING), -1)


class TextTarget(Target):
    """The id of a hidden token, by cross-entropy over the vocabulary in float32 (BERT, arXiv 1810.04805, section 3.1,
    task 1). Padding costs nothing and is never the answer; pictures take a caption's end from the truth."""

    @dataclass(frozen=True)
    class Config:
        """Options of the text target."""

        label_smoothing: float = 0.0
        """Share of the truth that is spread over the vocabulary."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        vocabulary = getattr(tokenizer.config, "vocabulary", None)
        if not isinstance(vocabulary, int) or tokenizer.unit_shape != (1,):
            raise ValueError("this target is for a tokenizer of text, which says how large its vocabulary is")
        if not 0 <= config.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {config.label_smoothing}")
        self.config, self.size = config, vocabulary

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Int[Tensor, "R Q"]:
        """The queried tokens' ids; 0 where there is none."""
        assert isinstance(patches.values, Tensor)
        return mask.take(patches.values, mask.query_ids)[..., 0]

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Int[Tensor, "R Q"]) -> Float[Tensor, "R Q"]:
        """Minus the logarithm of the true token's probability; zero for padding."""
        return F.cross_entropy(
            prediction.float().flatten(0, 1),
            values.flatten(),
            ignore_index=PADDING,
            reduction="none",
            label_smoothing=self.config.label_smoothing,
        ).reshape(values.shape)

    def to_input_space(self, prediction: Float[Tensor, "R Q size"], patches: Patches, mask: Mask) -> Tensor:
        """The likeliest id of every token, int64 [R, Q, 1]; padding stays what it is."""
        assert isinstance(patches.values, Tensor)
        ids = prediction[..., PADDING + 1 :].argmax(dim=2) + PADDING + 1
        is_token = mask.take(patches.values, mask.query_ids)[..., 0] != PADDING
        return ids.where(is_token, PADDING)[..., None]
