"""The idea on one screen: hide units, encode the rest, predict the hidden ones, compare with the target."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mim_core.data.source import DataSource, Sample
from mim_core.data.views import View
from mim_core.errors import did_you_mean
from mim_core.methods.generation import Generation, generated
from mim_core.methods.method import Features, Method, Outcome, Record, encode_all
from mim_core.methods.modalities import from_given
from mim_core.parts.decoder import Decoder
from mim_core.parts.decoder_joint import JointAnswer, JointDecoder
from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Layout, Patches, tensor_tree
from mim_core.parts.mask import Draw, Mask
from mim_core.parts.masker import Masker
from mim_core.parts.samples import check_key, check_sizes
from mim_core.parts.scorer import Scorer
from mim_core.parts.target import Losses, Target
from mim_core.parts.teacher import Lesson, Teacher
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer
from mim_core.ranks.tensors import batch_mean

if TYPE_CHECKING:
    from mim_core.methods.assembly import Parts

Total = Literal["sum", "mean", "answers"]


@tensor_tree
@dataclass(frozen=True)
class Seen:
    """What the encoder is given of one view: values of the kept units, where all units lie, and what is hidden."""

    inputs: Any
    layout: Layout
    mask: Mask


@tensor_tree
@dataclass(frozen=True)
class Prepared:
    """All that `forward` needs.

    Attributes:
        inputs: Values of the kept units [R, K, ...]; of all units [B, N, ...] where the tokenizer embeds all.
        layout: Where the units lie.
        mask: What is hidden, kept and asked.
        targets: What each head should answer; none where it is held against another head's losses.
        weights: float32 [R, Q] per head, summing to one over the batch, so that the sum of weighted losses is their
            mean.
        views: Other views that the student sees, nothing hidden in them, by name.
        told: int64 [R, Q], the ids at the queries of sequences; None where no decoder is told any.
        factors: Of the total, by head, a scalar each; empty where a head's own weight is all.
    """

    inputs: Any
    layout: Layout
    mask: Mask
    targets: dict[str, Any]
    weights: dict[str, Tensor]
    views: dict[str, Seen] = field(default_factory=dict)
    told: Tensor | None = None
    factors: dict[str, Tensor] = field(default_factory=dict)


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
        teacher: Name of the teacher that the target reads; None where it reads none.
        view: Another view of the sample that is asked, with nothing hidden: "target" or "local"; empty: the masked one.
        every: All units are asked and count, in place of those that the mask asks (MST).

    Raises:
        ValueError: It reads another view, and its decoder does not ask about whole samples.
    """

    def __init__(
        self,
        decoder: Decoder,
        target: Target,
        weight: float = 1.0,
        segment: str | None = None,
        average: Literal["batch", "sample"] = "batch",
        teacher: str | None = None,
        view: str = "",
        every: bool = False,
    ) -> None:
        super().__init__()
        if view and decoder.asks != "sample":
            raise ValueError(f"nothing is hidden in the view {view!r}, so only a head that asks about samples reads it")
        self.decoder, self.target = decoder, target
        self.weight, self.segment, self.average, self.teacher = weight, segment, average, teacher
        self.view, self.every = view, every

    @property
    def answers_in_kind(self) -> bool:
        """Whether it answers units in a way that needs no truth to be shown."""
        return self.decoder.asks == "units" and not self.view and not self.target.needs_truth

    def asked(self, layout: Layout, mask: Mask) -> Mask:
        """The mask with this head's queries."""
        if isinstance(self.decoder, JointAnswer):
            return mask.ask_own(layout, self.segment or "")
        if self.segment is not None:
            return mask.ask_segment(layout, self.segment)
        return mask.ask_all(layout) if self.every else mask

    def local(self, patches: Patches, mask: Mask) -> tuple[Patches, Mask]:
        """The patches and the mask as the target sees them: of its own segment alone."""
        if self.segment is None:
            return patches, self.asked(patches.layout, mask)
        ask = mask.ask_own if isinstance(self.decoder, JointAnswer) else mask.ask_segment
        return patches.segment(self.segment), ask(patches.layout, self.segment, local=True)

    def weight_of(self, layout: Layout, mask: Mask) -> Tensor:
        """How much each answer counts, [R, Q]; of one that asks about samples or regions, [R, 1]."""
        return self.asked(layout, mask if self.decoder.asks == "units" else mask.ask_sample()).weight

    def lesson(self, lessons: Mapping[str, Lesson], layout: Layout) -> Lesson | None:
        """What the target's teacher says, of the head's own segment."""
        if not self.target.needs_teacher or self.teacher is None:
            return None
        lesson = lessons[self.teacher]
        return lesson if self.segment is None else lesson.of(layout, self.segment)

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
        scorer: Gives a guided masker its scores [B, N].
        teachers: What they say of a batch is handed to targets and scorer, in `prepare`; by the name that heads use,
            "main" for the one that all others use.
        decoder: One that answers for all heads in one pass (4M); each head then has its part of it.
        total: How the heads' losses make the whole, see the option.

    Raises:
        ValueError: The masker would keep no unit, or hide none.
    """

    rebuilds = "hidden"

    @dataclass(frozen=True)
    class Config:
        """Options of the masked autoencoder."""

        average: Literal["batch", "sample"] = "batch"
        """Divide by all answers of the batch together (MAE), or average per sample first (MultiMAE)."""
        total: Total = "sum"
        """The sum of the heads' losses, their mean, also over heads without an answer in the batch (4M's "mod"), or
        their mean by answers times the size of an answer (4M's "token")."""
        weights: dict[str, float] = field(default_factory=dict)
        """Factor of a head's loss, by head, such as: depth 0.5; 1 where not named."""
        segments: dict[str, str] = field(default_factory=dict)
        """Which modality a head asks for, such as: normals depth, where that is not the head's own name."""
        carries: Literal["student", "teacher"] = "student"
        """Whose encoder a finished run gives to evaluate, export, finetune and --init: I-JEPA's is the teacher's."""
        every_unit: tuple[str, ...] = ()
        """Heads that answer every unit, hidden or not, and whose loss counts all (MST restores whole images)."""
        views: dict[str, Literal["target", "local"]] = field(default_factory=dict)
        """Which other view of the sample a head asks, by head; the masked one where not named."""
        local_views: int = 4
        """Where a head asks local views: how many of each sample."""
        local_size: tuple[int, ...] = (96, 96)
        """Their size along the last axes."""

    @classmethod
    def build(cls, config: Any, parts: Parts) -> MaskedAutoencoder:
        """Roles: tokenizer, masker, encoder, and a target and decoder per head; ``depth.tokenizer`` and the like where
        there are several. A teacher and a scorer where they are named.

        Raises:
            ValueError: An option names no head, a weight is negative or not finite or none is positive, or ``carries``
                asks for a teacher that all heads share and that is an encoder, and there is none.
        """
        tokenizer = parts.tokenizer()
        encoder = parts.encoder(tokenizer)
        teachers = parts.teachers(tokenizer, encoder, config.segments)
        scorer = parts.scorer(tokenizer, encoder, teachers)
        joint = parts.joint_decoder(tokenizer, encoder)
        heads = {
            name: Head(decoder, target, config.weights.get(name, 1.0), segment, config.average,
                       name if name in teachers else "main", config.views.get(name, ""), name in config.every_unit)
            for name, segment, decoder, target in parts.heads(tokenizer, encoder, config.segments, teachers, joint)
        }  # fmt: skip
        for option in ("weights", "segments", "views", "every_unit"):
            strange = [name for name in getattr(config, option) if name not in heads]
            if strange:
                guess = did_you_mean(strange[0], heads, "; did you mean ")
                raise ValueError(f"{option} names {', '.join(strange)}; the heads are {', '.join(heads)}{guess}")
        factors = [head.weight for head in heads.values()]
        if not all(0 <= factor < math.inf for factor in factors) or not any(factors):
            raise ValueError(f"weights must be finite and not negative, and one positive; got {dict(config.weights)}")
        named = {scope or "main": teacher for scope, teacher in teachers.items()}
        if config.carries == "teacher" and "main" not in named:
            raise ValueError('carries is "teacher", and this run has no teacher that all heads share')
        if config.carries == "teacher" and not hasattr(named["main"], "encoder"):
            raise ValueError('carries is "teacher", and this run\'s teacher is no encoder')
        made = cls(tokenizer, parts.masker(tokenizer), encoder, heads, scorer, named, joint, config.total)
        made.carries = config.carries
        asked = dict.fromkeys(config.views.values())
        made.needs_views = tuple(
            View(kind, config.local_views, config.local_size) if kind == "local" else View(kind) for kind in asked
        )
        return made

    carries: Literal["student", "teacher"] = "student"
    generation: Generation = Generation()
    needs_views: tuple[View, ...] = ()

    def __init__(
        self,
        tokenizer: Tokenizer,
        masker: Masker,
        encoder: Encoder,
        heads: Mapping[str, Head],
        scorer: Scorer | None = None,
        teachers: Mapping[str, Teacher] | None = None,
        decoder: JointDecoder | None = None,
        total: Total = "sum",
    ) -> None:
        super().__init__()
        self.tokenizer, self.masker, self.encoder = tokenizer, masker, encoder
        self.decoder, self.total = decoder, total
        self.heads, self.scorer = nn.ModuleDict(_in_order(heads)), scorer
        self.teachers = nn.ModuleDict(teachers or {})
        self.couples_batch = any(head.target.couples_samples for head in heads.values())
        self._join(heads)
        kept = tokenizer.layout.count - masker.count(tokenizer.layout)
        if not 0 < kept < tokenizer.layout.count:
            raise ValueError(
                f"the masker would keep {kept} of {tokenizer.layout.count} units; it must keep some and hide some"
            )

    def _join(self, heads: Mapping[str, Head]) -> None:
        """Whether all that is read is there, and what is there is read; heads and teachers get to know each other."""
        if self.masker.needs_scores and self.scorer is None:
            raise ValueError("the masker hides by scores of the units, and this method has no scorer that gives them")
        if self.scorer is not None and not self.masker.reads_scores:
            raise ValueError(
                "the scorer is of no use, for this masker reads no scores; name one that does, or leave it out"
            )
        if any(part.sequence for _, part in self.tokenizer.layout.parts()) and not self.masker.sequences:
            raise ValueError(
                f"a {type(self.masker).__name__} does not know which places of a sequence hold a unit; others do: "
                "mim-core list maskers"
            )
        read = {head.teacher for head in heads.values() if head.target.needs_teacher}
        read |= {"main"} if self.scorer is not None and self.scorer.needs_teacher else set()
        for name in {*read, *self.teachers}:
            if name not in self.teachers:
                raise ValueError("a target or the scorer reads what a teacher says, and this method has none")
            if name not in read:
                raise ValueError(f"no target and no scorer reads what the teacher {name!r} says; leave it out")
        self._join_joint(heads)
        for name, head in heads.items():
            other = getattr(head.decoder.config, "input_of", None) if hasattr(head.decoder, "config") else None
            for wanted in filter(None, (other, head.target.of_head)):
                if wanted not in heads or wanted == name:
                    raise ValueError(f"the head {name!r} goes with the head {wanted!r}; there are {', '.join(heads)}")
            if head.target.of_head:
                self._join_losses(name, head, heads[head.target.of_head])
            if other:
                head.decoder.share(heads[other].decoder)
        for teacher in self.teachers.values():
            teacher.begin({name: head.decoder for name, head in heads.items()})  # type: ignore[operator]

    def _join_joint(self, heads: Mapping[str, Head]) -> None:
        """Whether those heads that share one decoder ask for different segments."""
        joint = {name: head for name, head in heads.items() if isinstance(head.decoder, JointAnswer)}
        if joint and self.decoder is None:
            raise ValueError("some heads are parts of one decoder, and this method has none")
        if self.decoder is not None and not joint:
            raise ValueError("the decoder is one for all heads, and every head has its own; leave it out")
        asked: dict[str | None, str] = {}
        for name, head in joint.items():
            other = asked.setdefault(head.segment, name)
            if other != name:
                raise ValueError(f"the heads {other!r} and {name!r} ask for one segment, and a query has one answer")

    def _join_losses(self, name: str, head: Head, other: Head) -> None:
        """Whether a head can be held against what another one loses."""
        of, order = head.target.of_head, list(self.heads)
        if order.index(of) > order.index(name):
            raise ValueError(f"the heads {name!r} and {of!r} are held against each other's losses")
        if (head.segment, head.decoder.asks) != (other.segment, other.decoder.asks):
            raise ValueError(f"the head {name!r} is held against the losses of {of!r}, and asks for something else")

    def _heads(self) -> Iterable[tuple[str, Head]]:
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            yield name, head

    def _teachers(self) -> Iterable[tuple[str, Teacher]]:
        for name, teacher in self.teachers.items():
            assert isinstance(teacher, Teacher)
            yield name, teacher

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
        early = {name: each for name, each in self._teachers() if not each.needs_mask}
        lessons = {name: each(each.asked(patches), sample) for name, each in early.items()}
        if mask is None:
            check_key(sample, _rows(patches))
            scores = None if self.scorer is None else self.scorer(sample, patches, lessons.get("main"))
            mask = self.masker(patches.layout, Draw(sample["key"], step, progress), scores)
        mask = self._fit(mask, patches.layout, _rows(patches))
        lessons |= {name: each(patches, sample, mask) for name, each in self._teachers() if name not in early}
        segments = {name: teacher.segment for name, teacher in self._teachers()}
        lessons = {name: replace(x, progress=progress, segment=segments[name]) for name, x in lessons.items()}
        if mask.spans:
            patches = replace(patches, values=self.tokenizer.arrange(patches.values, mask))
        inputs = patches.values
        if self.tokenizer.embeds == "kept":
            assert isinstance(inputs, Tensor)
            inputs = mask.take(inputs, mask.kept_ids)
        views = {head.view: self._view(sample, head.view) for _, head in self._heads() if head.view}
        targets, counts = self._targets(sample, {"": (patches, mask), **views}, lessons)
        weights = {name: head.shares(counts[name]) for name, head in self._heads()}
        others = {name: Seen(units.values, units.layout, seen) for name, (units, seen) in views.items()}
        ids = None if self.decoder is None else self.decoder.told(patches, mask)
        return Prepared(inputs, patches.layout, mask, targets, weights, others, ids, self._factors(counts))

    def _targets(
        self, sample: Sample, views: Mapping[str, tuple[Patches, Mask]], lessons: Mapping[str, Lesson]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What each head should answer, and how much each answer counts, [R, Q]."""
        targets, counts = {}, {}
        for name, head in self._heads():
            lesson = head.lesson(lessons, views[""][0].layout)
            units, seen = views[head.view]
            weight, known = head.weight_of(units.layout, seen), None
            if not head.target.of_head:
                targets[name] = head.target.make(sample, *head.local(units, seen), lesson)
                known = head.target.told(targets[name])
            counts[name] = weight if known is None else weight * known
        return targets, counts

    def _factors(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each head's loss is of the total, from the weights of its answers."""
        if self.total == "sum":
            return {}
        sizes = {name: float(head.target.size) for name, head in self._heads()}
        if self.total == "mean":
            return {name: torch.full_like(value[0, 0], 1 / len(counts)) for name, value in counts.items()}
        each = {name: value.sum() * sizes[name] for name, value in counts.items()}
        whole = torch.stack(list(each.values())).sum()
        whole = batch_mean(whole) if self.training else whole
        mine = {name: batch_mean(value) if self.training else value for name, value in each.items()}
        return {name: value / whole.clamp(min=1e-12) for name, value in mine.items()}

    def _view(self, sample: Sample, view: str) -> tuple[Patches, Mask]:
        """Another view of the batch, nothing hidden; of several for each sample one after the other."""
        whole = self.tokenizer.shapes
        other = {name: sample[f"{name}_{view}"] for name in whole}
        other = {name: x.flatten(0, 1) if x.ndim > 1 + len(whole[name]) else x for name, x in other.items()}
        patches = self.tokenizer.split(other)
        device = next(iter(other.values())).device
        return patches, Mask.nothing_hidden(_rows(patches), patches.layout, device)

    def forward(self, prepared: Prepared) -> Outcome:
        """Embeds the kept units, encodes, and asks every head."""
        seen = {"": Seen(prepared.inputs, prepared.layout, prepared.mask), **prepared.views}
        encodings = {name: self._encoded(view.inputs, view.layout, view.mask) for name, view in seen.items()}
        encoded = encodings[""]
        parts, predictions = {}, self._together(encoded, prepared)
        each: dict[str, Tensor] = {}
        loss = encoded.tokens.new_zeros((), dtype=torch.float32)
        for name, head in self._heads():
            layout, mask = seen[head.view].layout, seen[head.view].mask
            if name not in predictions:
                predictions[name] = head.decoder(encodings[head.view], layout, head.asked(layout, mask))
            other = head.target.of_head
            values = Losses(each[other].detach(), prepared.weights[other]) if other else prepared.targets[name]
            each[name] = head.target.loss(predictions[name], values)
            parts[name] = (each[name] * prepared.weights[name]).sum()
            factor = head.weight * prepared.factors[name] if prepared.factors else head.weight
            loss = loss + factor * parts[name]
        latent = torch.cat([encoded.prefix, encoded.tokens], dim=1)
        return Outcome(loss, parts, predictions, latent, self.encoder.measures())

    def _together(self, encoded: Encoded, prepared: Prepared) -> dict[str, Tensor]:
        """Answers of the heads that share one decoder."""
        if self.decoder is None or prepared.told is None:
            return {}
        joint = {name: head.decoder for name, head in self._heads() if isinstance(head.decoder, JointAnswer)}
        predictions: dict[str, Tensor] = self.decoder(encoded, prepared.layout, prepared.mask, prepared.told, joint)
        return predictions

    def _encoded(self, inputs: Any, layout: Layout, mask: Mask) -> Encoded:
        """The kept units through tokenizer and encoder; an encoder that takes values embeds them itself."""
        tokens = self.tokenizer.embed(inputs)
        if self.tokenizer.embeds == "all":
            tokens = mask.take(tokens, mask.kept_ids)
        encoded: Encoded = self.encoder(tokens, layout, mask)
        return encoded

    def encode(self, sample: Sample) -> Features:
        """Encodes every unit that is there; of several modalities any subset. Units that are not valid are seen by
        nobody: their tokens are zero, and the mean is over the others."""
        return encode_all(self.tokenizer, self.encoder, sample)

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """Of several modalities those that the sample lacks, see `mim_core.methods.modalities.from_given`; with one
        decoder for all heads generated in steps, see `mim_core.methods.generation`."""
        if self.generates:
            return generated(self, sample, self.generation)
        return from_given(self, sample)

    @property
    def generates(self) -> bool:
        """Whether it answers in steps, one modality after another."""
        return self.decoder is not None and isinstance(self.tokenizer, JoinedTokenizer)

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """A file for each modality, as the data write it; of features an array of numpy."""
        files = {}
        for name, values in answers.items():
            part = self._asked_part(name)
            ending, content = (
                (".npy", _array_file(values)) if part.gives_features else source.file(next(iter(part.shapes)), values)
            )
            files[f"-{name}{ending}"] = content
        return Record(files=files)

    def _asked_part(self, head: str) -> Tokenizer:
        """The tokenizer of what a head predicts."""
        assert isinstance(self.tokenizer, JoinedTokenizer)
        return self.tokenizer.part(str(self.heads[head].segment))

    def carry(self) -> None:
        """The teacher's encoder in the place of the student's, where the recipe says so."""
        if self.carries == "teacher":
            teacher = self.teachers["main"].requires_grad_(True)
            assert isinstance(teacher, Teacher)
            self.tokenizer, self.encoder = teacher.tokenizer, teacher.encoder

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
        if mask.kept_valid is not None and not self.encoder.pads:
            raise ValueError(f"the masker fills rows of unequal length, and a {type(self.encoder).__name__} takes none")
        if mask.kept_ids.shape[1] == 0:
            raise ValueError("the mask leaves nothing visible")
        if mask.kept_ids.shape[1] == layout.count:
            raise ValueError("an encoder that drops hidden units needs visible units, as many in every row")
        return mask


def _array_file(values: Tensor) -> bytes:
    """A tensor as an npy file, float32."""
    content = io.BytesIO()
    np.save(content, values.detach().float().cpu().numpy())
    return content.getvalue()


def _in_order(heads: Mapping[str, Head]) -> dict[str, Head]:
    """The heads, those that are held against another's losses after it; otherwise as they were."""
    ordered: dict[str, Head] = {}
    while len(ordered) < len(heads):
        ready = [n for n, head in heads.items() if n not in ordered and head.target.of_head in ("", *ordered)]
        ordered |= {name: heads[name] for name in ready or (n for n in heads if n not in ordered)}
    return ordered


def _rows(patches: Patches) -> int:
    """Samples in the batch."""
    values = patches.values if isinstance(patches.values, Tensor) else next(iter(patches.values.values()))
    return values.shape[0]
