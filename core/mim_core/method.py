"""The idea on one screen: hide part of a sample, predict what was hidden, keep the encoder.

A `Method` has two halves. `prepare` does all random and data-dependent work, eagerly and without gradient. `forward`
is pure with static shapes: what ``torch.compile``, DDP and FSDP2 wrap. `MaskedAutoencoder` carries MAE, SimMIM,
VideoMAE, Point-MAE and MultiMAE by its parts alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mim_core.decoder import Decoder
from mim_core.distributed import batch_mean
from mim_core.encoder import Encoded, Encoder
from mim_core.errors import nearest
from mim_core.layout import Layout, Patches, Sample, take, tensor_tree
from mim_core.mask import Draw, Mask
from mim_core.masker import Masker
from mim_core.samples import check_key, check_sample, check_sizes
from mim_core.target import Target
from mim_core.tokenizer import JoinedTokenizer, Tokenizer

if TYPE_CHECKING:
    from mim_core.build import Parts
    from mim_core.data import DataSource
    from mim_core.recipe import ResolvedPart


@tensor_tree
@dataclass(frozen=True)
class Prepared:
    """All that `forward` needs.

    Attributes:
        inputs: Values of the kept units [R, K, ...]; of all units [B, N, ...] where the tokenizer embeds all.
        layout: Where the units lie.
        mask: What is hidden, kept and asked.
        targets: What each head should answer.
        weights: float32 [R, Q] per head, summing to one over the batch, so that the sum of weighted losses is their
            mean.
    """

    inputs: Any
    layout: Layout
    mask: Mask
    targets: dict[str, Any]
    weights: dict[str, Tensor]


@tensor_tree
@dataclass(frozen=True)
class Outcome:
    """What `forward` returns.

    Attributes:
        loss: The scalar to minimise.
        parts: Each head's own loss, before its weight.
        predictions: [R, Q, size] per head, at its queries.
        latent: [R, P + K, D], the encoder's output: prefix tokens first, then the kept units in their order.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    predictions: dict[str, Tensor]
    latent: Tensor

    @property
    def prediction(self) -> Any:
        """The only head's prediction, or all by name where there are several."""
        return next(iter(self.predictions.values())) if len(self.predictions) == 1 else self.predictions


@dataclass(frozen=True)
class Features:
    """What `encode` returns: tokens [B, N, D] without the prefix, their mean [B, D], and the prefix tokens [B, P,
    D]."""

    tokens: Tensor
    pooled: Tensor
    prefix: Tensor


class Method(nn.Module):
    """Base class of all methods. Subclasses give `prepare`, `forward` and `encode`; the loop needs no more.

    Attributes:
        couples_batch: The loss compares samples with each other (InfoNCE), so a batch cannot be split for accumulation.
        built_from: The parts by role, with their options; empty where `mim_core.build.build_method` did not build it.
    """

    Config: ClassVar[type[Any]]
    couples_batch: bool = False
    built_from: Mapping[str, ResolvedPart] = {}

    @classmethod
    def build(cls, config: Any, parts: Parts) -> Method:
        """Builds the method from a run's parts, see `mim_core.build.Parts`."""
        raise NotImplementedError

    def prepare(
        self,
        sample: Sample,
        mask: Mask | Tensor | Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> Any:
        """Random and data-dependent work, eager and without gradient."""
        raise NotImplementedError

    def forward(self, prepared: Any) -> Outcome:
        """The loss. Pure, with static shapes."""
        raise NotImplementedError

    def encode(self, sample: Sample) -> Features:
        """Features with nothing hidden, for evaluation and export."""
        raise NotImplementedError

    def training_source(self, source: DataSource) -> DataSource:
        """What the loop trains on: the source itself, or one made of it, such as its labelled training split.

        Raises:
            MimError: The method cannot be trained on it.
        """
        return source

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step: teachers, schedules."""

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, which are sharded, recomputed and, when sharded, compiled one by one: by default the
        children of every list named ``blocks``, of teachers too."""
        lists = (module for name, module in self.named_modules() if name.rpartition(".")[2] == "blocks")
        return [block for found in lists if isinstance(found, nn.Sequential | nn.ModuleList) for block in found]

    def parameter_groups(self, decay_tokens: bool = True) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters with and without weight decay: none on biases and 1-D parameters, and on learned tokens only with
        ``decay_tokens``.

        Learned tokens and scales are recognised by shape: every axis but the last has length 1.
        """
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in self.parameters():
            if not parameter.requires_grad:
                continue
            is_token = parameter.ndim > 1 and parameter.numel() == parameter.shape[-1]
            exempt = parameter.ndim < 2 or (is_token and not decay_tokens)
            (plain if exempt else decayed).append(parameter)
        return decayed, plain


class Head(nn.Module):
    """One question asked of the encoder: a decoder, the target that it is held against, and the weight of its loss.

    Args:
        decoder: Answers at the queried units.
        target: Makes the values and the loss.
        weight: Factor of this head's loss in the sum.
        segment: Of a joined layout, the segment that is asked, all its units weighted by hidden; None asks what the
            mask says.
        average: "batch" divides by all answers of the batch together (MAE); "sample" averages per sample, then over
            the samples that have any (MultiMAE).
    """

    def __init__(
        self,
        decoder: Decoder,
        target: Target,
        weight: float = 1.0,
        segment: str | None = None,
        average: Literal["batch", "sample"] = "batch",
    ) -> None:
        super().__init__()
        self.decoder, self.target = decoder, target
        self.weight, self.segment, self.average = weight, segment, average

    def asked(self, layout: Layout, mask: Mask) -> Mask:
        """The mask with this head's queries."""
        return mask if self.segment is None else mask.ask_segment(layout, self.segment)

    def local(self, patches: Patches, mask: Mask) -> tuple[Patches, Mask]:
        """The patches and the mask as the target sees them: of its own segment alone."""
        if self.segment is None:
            return patches, mask
        return patches.segment(self.segment), mask.ask_segment(patches.layout, self.segment, local=True)

    def shares(self, weight: Tensor) -> Tensor:
        """Weights [R, Q] that sum to one over the batch; all zero where nothing counts. Ranks that share a batch divide
        by the mean of their sums, so that the mean over the ranks sums to one."""
        if self.average == "batch":
            return weight / self._mean(weight.sum()).clamp(min=1e-12)
        rows = weight.sum(dim=1, keepdim=True)
        some = self._mean((rows > 0).sum().float())
        return weight / rows.clamp(min=1e-12) / some.where(some > 0, 1.0)

    def _mean(self, denominator: Tensor) -> Tensor:
        """The mean over the ranks that share the batch: the mean of their losses is then that of the whole batch."""
        return batch_mean(denominator) if self.training else denominator


class MaskedAutoencoder(Method):
    """Encode what is kept, decode what is asked, compare with the target.

    Args:
        tokenizer: Splits samples into units and embeds them.
        masker: Decides what is hidden.
        encoder: Sees the kept units.
        heads: What is predicted, by name. One for MAE, two for MVD, four for MultiMAE.
        scorer: Called as ``scorer(sample, patches)``; gives a guided masker its scores [B, N].
        teacher: Handed to the targets, in `prepare`.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the masked autoencoder."""

        average: Literal["batch", "sample"] = "batch"
        """Divide by all answers of the batch together (MAE), or average per sample first (MultiMAE)."""
        weights: dict[str, float] = field(default_factory=dict)
        """Factor of a head's loss, by head; 1 where not named."""
        segments: dict[str, str] = field(default_factory=dict)
        """Which modality a head asks for, where that is not the head's own name."""

    @classmethod
    def build(cls, config: Any, parts: Parts) -> MaskedAutoencoder:
        """Roles: tokenizer, masker, encoder, and a target and decoder per head; ``depth.tokenizer`` and the like where
        there are several."""
        tokenizer = parts.tokenizer()
        encoder = parts.encoder(tokenizer)
        heads = {
            name: Head(decoder, target, config.weights.get(name, 1.0), segment, config.average)
            for name, segment, decoder, target in parts.heads(tokenizer, encoder, config.segments)
        }
        for option in ("weights", "segments"):
            strange = [name for name in getattr(config, option) if name not in heads]
            if strange:
                near = nearest(strange[0], heads)
                guess = f"; did you mean {near!r}?" if near else ""
                raise ValueError(f"{option} names {', '.join(strange)}; the heads are {', '.join(heads)}{guess}")
        factors = [head.weight for head in heads.values()]
        if not all(0 <= factor < math.inf for factor in factors) or not any(factors):
            raise ValueError(f"weights must be finite and not negative, and one positive; got {dict(config.weights)}")
        return cls(tokenizer, parts.masker(tokenizer), encoder, heads)

    def __init__(
        self,
        tokenizer: Tokenizer,
        masker: Masker,
        encoder: Encoder,
        heads: Mapping[str, Head],
        scorer: nn.Module | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.masker, self.encoder = tokenizer, masker, encoder
        self.heads = nn.ModuleDict(heads)
        self.scorer, self.teacher = scorer, teacher
        if masker.needs_scores and scorer is None:
            raise ValueError("the masker hides by scores of the units, and this method has no scorer that gives them")
        kept = tokenizer.layout.count - masker.count(tokenizer.layout)
        if not 0 < kept < tokenizer.layout.count:
            raise ValueError(
                f"the masker would keep {kept} of {tokenizer.layout.count} units; it must keep some and hide some"
            )

    def _heads(self) -> Iterable[tuple[str, Head]]:
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            yield name, head

    @torch.no_grad()
    def prepare(
        self,
        sample: Sample,
        mask: Mask | Tensor | Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> Prepared:
        """Splits, masks and makes the targets.

        Args:
            sample: The batch; its ``key`` int64 [B] drives the mask and may be absent when one is given.
            mask: bool [B, N] with True = hidden, or a dict of such by segment, or a `Mask`; drawn by the masker when
                None.
            step: Optimizer step, for draws that a batch shares.
            progress: Share of the run that is done, for curricula.

        Raises:
            ValueError: The mask does not fit the units or the encoder.
        """
        if isinstance(self.tokenizer, JoinedTokenizer) and (lacking := self.tokenizer.lacking(sample)):
            raise ValueError(f"training needs every modality; the sample has no {', '.join(lacking)}")
        check_sizes(self.tokenizer, sample)
        patches = self.tokenizer.split(sample)
        if mask is None:
            check_key(sample, _rows(patches))
            scores = None if self.scorer is None else self.scorer(sample, patches)
            mask = self.masker(patches.layout, Draw(sample["key"], step, progress), scores)
        mask = self._fit(mask, patches.layout, _rows(patches))
        inputs = patches.values
        if self.tokenizer.embeds == "kept":
            assert isinstance(inputs, Tensor)
            inputs = mask.take(inputs, mask.kept_ids)
        targets, weights = {}, {}
        for name, head in self._heads():
            targets[name] = head.target.make(sample, *head.local(patches, mask), self.teacher)
            weights[name] = head.shares(head.asked(patches.layout, mask).weight)
        return Prepared(inputs, patches.layout, mask, targets, weights)

    def forward(self, prepared: Prepared) -> Outcome:
        """Embeds the kept units, encodes, and asks every head."""
        layout, mask = prepared.layout, prepared.mask
        tokens = self.tokenizer.embed(prepared.inputs)
        if self.tokenizer.embeds == "all":
            tokens = mask.take(tokens, mask.kept_ids)
        encoded: Encoded = self.encoder(tokens, layout, mask)
        parts, predictions, loss = {}, {}, tokens.new_zeros((), dtype=torch.float32)
        for name, head in self._heads():
            predictions[name] = head.decoder(encoded, layout, head.asked(layout, mask))
            each = head.target.loss(predictions[name], prepared.targets[name])
            parts[name] = (each * prepared.weights[name]).sum()
            loss = loss + head.weight * parts[name]
        return Outcome(loss, parts, predictions, torch.cat([encoded.prefix, encoded.tokens], dim=1))

    def encode(self, sample: Sample) -> Features:
        """Encodes every unit that is there; of several modalities any subset. Units that are not valid are seen by
        nobody: their tokens are zero, and the mean is over the others."""
        return encode_all(self.tokenizer, self.encoder, sample)

    def _fit(self, mask: Mask | Tensor | Mapping[str, Tensor], layout: Layout, samples: int) -> Mask:
        """The mask in the form that the encoder needs."""
        if isinstance(mask, Mapping):
            wanted = [name for name, _ in layout.segments]
            if sorted(mask) != sorted(wanted):
                raise ValueError(f"the mask has {', '.join(mask)}; the units have {', '.join(wanted) or 'no segments'}")
            mask = torch.cat([mask[name] for name in wanted], dim=1)
        if isinstance(mask, Tensor):
            mask = Mask.from_bool(mask)
        if mask.hidden.shape[1] != layout.count:
            raise ValueError(
                f"the mask has {mask.hidden.shape[1]} units; the sample has {layout.count} (grid {layout.grid})"
            )
        if mask.hidden.shape[0] != samples * mask.per_sample:
            raise ValueError(
                f"the mask has {mask.hidden.shape[0]} rows; {samples} samples with {mask.per_sample} masks each need "
                f"{samples * mask.per_sample}"
            )
        if self.encoder.sees == "all":
            return mask.keep_all()
        if mask.kept_ids.shape[1] == 0:
            raise ValueError("the mask leaves nothing visible")
        if mask.kept_ids.shape[1] == layout.count:
            raise ValueError("an encoder that drops hidden units needs visible units, as many in every row")
        return mask


def _rows(patches: Patches) -> int:
    """Samples in the batch."""
    values = patches.values if isinstance(patches.values, Tensor) else next(iter(patches.values.values()))
    return values.shape[0]


def encode_all(tokenizer: Tokenizer, encoder: Encoder, sample: Sample) -> Features:
    """Encodes every unit that is there, see `MaskedAutoencoder.encode`.

    Raises:
        ValueError: A sample has none of its units, or the batch is not what was meant, see `samples.check_sample`.
    """
    check_sample(tokenizer, sample)
    patches = tokenizer.split(sample)
    tokens = tokenizer.embed(patches.values)
    mask = Mask.nothing_hidden(tokens.shape[0], patches.layout, tokens.device)
    if patches.layout.valid is not None:
        return _encode_valid(encoder, tokens, patches.layout, mask, patches.layout.valid)
    encoded = encoder(tokens, patches.layout, mask)
    return Features(encoded.tokens, encoded.tokens.mean(dim=1), encoded.prefix)


def _encode_valid(encoder: Encoder, tokens: Tensor, layout: Layout, mask: Mask, valid: Tensor) -> Features:
    """Samples that have the same units are encoded together, from those units alone."""
    if not bool(valid.any(dim=1).all()):
        raise ValueError("a sample has none of its units")
    out, prefix = torch.zeros_like(tokens), None
    patterns, which = valid.unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows = (which == number).nonzero()[:, 0]
        ids = pattern.nonzero()[:, 0].expand(len(rows), -1)
        part = Mask(mask.hidden[rows], ids, mask.query_ids[rows], mask.weight[rows])
        encoded = encoder(take(tokens[rows], ids), layout.rows(rows), part)
        out = out.to(encoded.tokens.dtype)
        out[rows] = out[rows].scatter(1, ids[:, :, None].expand_as(encoded.tokens), encoded.tokens)
        if prefix is None:
            prefix = encoded.prefix.new_zeros(len(tokens), *encoded.prefix.shape[1:])
        prefix[rows] = encoded.prefix
    assert prefix is not None
    return Features(out, out.sum(dim=1) / valid.sum(dim=1, keepdim=True), prefix)
