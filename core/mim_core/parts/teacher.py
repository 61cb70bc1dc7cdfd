"""Teachers: encoders that say what a student should answer, and are not trained by gradients.

An `EmaTeacher` follows its student (BYOL, arXiv 2006.07733, section 3.1; data2vec, arXiv 2202.03555); a frozen one
stays as it was loaded (`mim_core.interop.frozen.FrozenTeacher`). A teacher is part of the method, so checkpoints hold
it and FSDP2 shards it. What it says of a batch is a `Lesson`, made once in `prepare`, and read by targets and scorers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mim_core import randomness
from mim_core.data.source import Sample
from mim_core.data.views import View
from mim_core.parts.decoder import Decoder
from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Layout, Patches, take, tensor_tree
from mim_core.parts.mask import Mask
from mim_core.parts.schedule import Progress, Schedule, Shape
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer
from mim_core.ranks.tensors import follow

T = TypeVar("T", bound="Teacher")


@tensor_tree
@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch. S is the number of samples, or of masks where it looks at what they hide.

    Attributes:
        tokens: [S, N, D], one per unit of the student's, after the encoder's final norm; zero where it saw none.
        prefix: [S, P, D], class and register tokens.
        levels: [S, N, D] each, outputs of the last blocks without the final norm, the last one last; as many as targets
            asked for with `Teacher.give`.
        attention: [S, heads, P + N, P + N] of the last block, where a scorer asked for it.
        answers: What the teacher's copies of decoders say, by head: [S, n, size].
        folds: int64 [S, folds, n], the units that were seen together; None where all were. Others it did not see.
        ids: int64 [S, N], the name that it gives each unit, of a teacher that says ``codes``.
        segment: Of several joined modalities the one that all of this is of; empty: of all.
        progress: When it was said: the share of the run that is done, for targets with temperatures that change.
    """

    tokens: Float[Tensor, "S N D"]
    prefix: Float[Tensor, "S P D"]
    levels: tuple[Tensor, ...] = ()
    attention: Tensor | None = None
    answers: Mapping[str, Tensor] = field(default_factory=dict)
    folds: Int[Tensor, "S F n"] | None = None
    ids: Int[Tensor, "S N"] | None = None
    segment: str = field(default="", metadata={"static": True})
    progress: float = field(default=0.0, metadata={"static": True})

    def of(self, layout: Layout, name: str) -> Lesson:
        """The same of one segment of a joined layout, as a target of that segment reads it."""
        if self.segment == name:
            return self
        start, part = layout.span(name)
        tokens, *levels = (each[:, start : start + part.count] for each in (self.tokens, *self.levels))
        ids = None if self.ids is None else self.ids[:, start : start + part.count]
        return replace(self, tokens=tokens, levels=tuple(levels), ids=ids, segment=name)


@dataclass(frozen=True)
class Student:
    """What a teacher and a scorer are built from.

    Attributes:
        tokenizer: The student's.
        encoder: The student's.
        fresh: Draws another pair of the same options, for a teacher that starts on its own.
        segment: Of several joined modalities the one that the teacher's head asks for; empty where it serves all.
    """

    tokenizer: Tokenizer
    encoder: Encoder
    fresh: Callable[[], tuple[Tokenizer, Encoder]] | None = None
    segment: str = ""

    @property
    def own(self) -> Tokenizer:
        """The tokenizer of that modality; the student's whole one where it serves all."""
        if isinstance(self.tokenizer, JoinedTokenizer) and self.segment:
            return self.tokenizer.part(self.segment)
        return self.tokenizer


class Teacher(nn.Module):
    """Base class: a tokenizer and an encoder of its own, without gradient, in evaluation mode at all times.

    Built from its options and a `Student`; here both parts are copies of the student's. A subclass says how it moves,
    in `follow`, and may look at something else, in `forward`.

    Attributes:
        needs_mask: It looks at what a mask hides, or a head does that it follows, so no scorer can read it: the mask is
            not drawn yet.
        heads: Names of the heads whose decoders it has copies of; their answers are `Lesson.answers`.
        codes: How many names it gives units, in `Lesson.ids`; 0: none.
        view: "target" where it sees another view of the sample than the student, image_target.
        segment: Of several joined modalities the one whose units alone it is given; empty: all.
    """

    Config: ClassVar[type[Any]]
    needs_mask: bool = False
    heads: tuple[str, ...] = ()
    codes: int = 0
    view: str = ""
    segment: str = ""

    def __init__(self, config: Any, student: Student) -> None:
        super().__init__()
        self.config = config
        self.tokenizer, self.encoder = copy.deepcopy(student.tokenizer), copy.deepcopy(student.encoder)
        self.decoders = nn.ModuleDict()
        self.blocks_given, self.gives_attention = 0, False
        self.codes = self.codes or self.encoder.codes
        self.requires_grad_(False)
        super().train(False)

    def asked(self, patches: Patches) -> Patches:
        """Of a batch of the student's units those that it is given."""
        return patches.segment(self.segment) if self.segment else patches

    @classmethod
    def of(cls: type[T], tokenizer: Tokenizer, encoder: Encoder, **options: Any) -> T:
        """A teacher of these two, made in Python."""
        return cls(cls.Config(**options), Student(tokenizer, encoder))

    @property
    def needs_views(self) -> tuple[View, ...]:
        """Other views of every sample that it reads: its own."""
        return (View("target"),) if self.view else ()

    @property
    def width(self) -> int:
        """D of what it says."""
        return self.encoder.width

    def train(self: T, mode: bool = True) -> T:
        """Stays in evaluation mode: a teacher's dropout and batch statistics would be noise in the targets."""
        return self

    def give(self, levels: int = 0, attention: bool = False) -> None:
        """Asks for the outputs of its last blocks, or for the attention of the last one; called while a method is
        built. What several ask for, it gives to all.

        Raises:
            ValueError: Its encoder gives none.
        """
        if levels > self.blocks_given:
            self.encoder.give_last_levels(levels)
            self.blocks_given = levels
        if attention and not self.gives_attention:
            self.encoder.give_attention()
            self.gives_attention = True

    def check_follows(self, head: str) -> None:
        """Called while a method is built, by a target or scorer that reads its copy of a head.

        Raises:
            ValueError: It has none; says how it gets one.
        """
        if head not in self.heads:
            raise ValueError(
                f"it reads the teacher's copy of the head {head!r}, and the teacher follows "
                f"{', '.join(self.heads) or 'none'}: set --teacher.heads {head}"
            )

    def check_filled(self) -> None:
        """Called before the first step of a run.

        Raises:
            ValueError: Its weights should be somebody's, and are only drawn.
        """
        return

    def copy_again(self, student: nn.Module) -> bool:
        """Called once the student has other weights than it was built with, and it has none of them: those that begin
        as a copy of the student are one again; says whether it is."""
        return False

    def begin(self, decoders: Mapping[str, Decoder]) -> None:
        """Called once when the method is built, with the decoders of all heads: copies those that it follows.

        Raises:
            ValueError: A head that it should follow is not there.
        """
        for name in self.heads:
            if name not in decoders:
                raise ValueError(f"the teacher follows the head {name!r}; there are: {', '.join(decoders)}")
            part = decoders[name].for_teacher()
            self.needs_mask = self.needs_mask or getattr(part, "needs_mask", False)
            if getattr(part, "needs_levels", 0):
                self.give(levels=part.needs_levels)  # type: ignore[arg-type]
            self.decoders[name] = copy.deepcopy(part).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, patches: Patches, sample: Sample | None = None, mask: Mask | None = None) -> Lesson:
        """What it says of a batch; here of every unit.

        Args:
            patches: The student's units.
            sample: The batch, for teachers that look at another entry of it.
            mask: What is hidden, for those that say ``needs_mask``.
        """
        tokens = self.tokenizer.embed(patches.values)
        nothing = Mask.nothing_hidden(len(tokens), patches.layout, tokens.device)
        encoded: Encoded = self.encoder(tokens, patches.layout, nothing)
        return self._lesson(encoded, patches.layout, sample, mask)

    def _lesson(self, encoded: Encoded, layout: Layout, sample: Sample | None, mask: Mask | None) -> Lesson:
        """What was encoded, with the answers of its decoders."""
        answers = {}
        for name, part in self.decoders.items():
            asked = (encoded, layout, sample, mask) if getattr(part, "needs_mask", False) else (encoded, layout)
            answers[name] = part.teach(*asked)  # type: ignore[operator]
        return Lesson(encoded.tokens, encoded.prefix, encoded.levels, encoded.attention, answers, ids=encoded.ids)

    def follow(self, student: nn.Module, progress: float) -> None:
        """Moves on after a step of the optimizer. The student is the method: its ``tokenizer``, ``encoder`` and
        ``heads``. A teacher that stands still does nothing."""
        return


class EmaTeacher(Teacher):
    """A teacher that follows a student: m * teacher + (1 - m) * student after each step, or each epoch. HPM (arXiv
    2304.05919) has the momentum rise in the first 100 epochs.

    It sees every unit (data2vec, I-JEPA), hidden units alone in folds (SdAE, arXiv 2208.00449), or another view of the
    sample (CMAE, arXiv 2207.13532).
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the teacher that follows."""

        start: float = 0.996
        """Momentum m at the start of the run."""
        end: float = 1.0
        """Momentum at its end."""
        schedule: Shape = "cosine"
        """Along half a cosine (BYOL) or a straight line (data2vec)."""
        epochs: float | None = None
        """Epochs after which the momentum stays at its end; none: it arrives there with the run."""
        every: Literal["step", "epoch"] = "step"
        """How often it moves."""
        begins: Literal["copy", "own"] = "copy"
        """It starts as a copy of the student, or with weights of its own draw (SdAE)."""
        buffers: Literal["copy", "follow", "own"] = "copy"
        """Tables and running statistics: copied from the student, averaged as the weights are, or its own."""
        sees: Literal["all", "hidden"] = "all"
        """Every unit, or those that the mask hides."""
        folds: int = 1
        """Hidden units are dealt into so many folds, in a random order; units of one fold see each other alone."""
        hidden: int | None = None
        """How many hidden units it sees; none: all. What does not fill the folds evenly is left out."""
        view: Literal["", "target"] = ""
        """Which view of the sample it sees: "target" reads image_target where the student reads image."""
        heads: tuple[str, ...] = ()
        """Heads whose decoders it follows too, such as a projector."""
        statistics: Literal["evaluation", "training"] = "evaluation"
        """Whether normalisation layers of those decoders use running statistics, or the batch's (CMAE)."""

    def __init__(self, config: Config, student: Student) -> None:
        if not 0 <= config.start <= config.end <= 1:
            raise ValueError(f"a teacher's momentum must rise within [0, 1], got {config.start} to {config.end}")
        if config.epochs is not None and config.epochs < 0:
            raise ValueError(f"the epochs of a teacher's momentum must be 0 or more, got {config.epochs}")
        if config.folds < 1 or (config.hidden is not None and config.hidden < config.folds):
            raise ValueError(f"folds must be 1 or more, and hidden no less; got {config.folds} and {config.hidden}")
        if config.sees == "all" and (config.folds != 1 or config.hidden is not None):
            raise ValueError("folds and hidden are of hidden units: set sees to hidden")
        if config.sees == "hidden" and student.encoder.takes == "values":
            raise ValueError("an encoder that takes values cannot see hidden units alone: set sees to all")
        if config.begins == "own" and student.fresh is not None:
            student = Student(*student.fresh())
        super().__init__(config, student)
        self.momentum = Schedule(config.start, config.end, config.schedule, config.epochs)
        self.needs_mask, self.heads, self.view = config.sees == "hidden", tuple(config.heads), config.view

    def train(self, mode: bool = True) -> EmaTeacher:
        """Stays in evaluation mode, save the followed decoders where ``statistics`` is "training"."""
        if self.config.statistics == "training":
            self.decoders.train(mode)
        return self

    @torch.no_grad()
    def forward(self, patches: Patches, sample: Sample | None = None, mask: Mask | None = None) -> Lesson:
        """What it says of every unit, or of hidden ones in folds."""
        if self.config.view:
            patches = self.tokenizer.split(self._view(sample or {}))
        if self.config.sees == "all":
            return super().forward(patches, sample, mask)
        assert mask is not None, "a teacher of hidden units needs the mask"
        return self._in_folds(patches, self._folds(sample or {}, mask), mask.per_sample)

    def _view(self, sample: Sample) -> Sample:
        """The batch with the teacher's view in the place of the student's."""
        view = dict(sample)
        for name in self.tokenizer.shapes:
            other = f"{name}_{self.config.view}"
            if other not in sample:
                raise ValueError(
                    f"the teacher sees {other!r}, and the sample has {', '.join(sample)}; the data must give that view"
                )
            view[name] = sample[other]
        return view

    def _folds(self, sample: Sample, mask: Mask) -> Int[Tensor, "R F n"]:
        """The hidden units of each row, dealt into folds. ``sample["ids_unkeep"]``, int64 [R, hidden], gives their
        order; without it the keys do."""
        rows, count = mask.query_ids.shape
        order = sample.get("ids_unkeep")
        if order is None:
            places = [randomness.permutation(sample["key"], f"folds {m}", count) for m in range(mask.per_sample)]
            units = mask.query_ids.sort(dim=1).values  # so that the order of queries does not count
            order = units.gather(1, torch.stack(places, dim=1).reshape(rows, count))
        each = min(count, self.config.hidden or count) // self.config.folds
        if each < 1:
            raise ValueError(f"{count} hidden units are too few for {self.config.folds} folds")
        return order[:, : each * self.config.folds].reshape(rows, self.config.folds, each)

    def _in_folds(self, patches: Patches, folds: Int[Tensor, "R F n"], masks: int) -> Lesson:
        """Each fold encoded by itself, and its tokens put back where the units lie."""
        rows, number, each = folds.shape
        ids = folds.reshape(rows * number, each)
        tokens = take(self.tokenizer.embed(patches.values), ids)
        hidden = torch.zeros(len(ids), patches.layout.count, dtype=torch.bool, device=ids.device)
        none = ids[:, :0]
        encoded: Encoded = self.encoder(tokens, patches.layout, Mask(hidden, ids, none, none.float(), number * masks))

        def back(values: Tensor) -> Tensor:
            places = folds.reshape(rows, number * each)[:, :, None].expand(-1, -1, values.shape[-1])
            whole = values.new_zeros(rows, patches.layout.count, values.shape[-1])
            return whole.scatter(1, places, values.reshape(rows, number * each, -1))

        prefix = encoded.prefix.reshape(rows, -1, encoded.prefix.shape[-1])
        return Lesson(back(encoded.tokens), prefix, tuple(map(back, encoded.levels)), folds=folds)

    @torch.no_grad()
    def copy_again(self, student: nn.Module) -> bool:
        """A copy of the student again, where it begins as one."""
        if self.config.begins != "copy":
            return False
        for mine, theirs in self._pairs(student):
            mine.load_state_dict(theirs.state_dict())
        return True

    @torch.no_grad()
    def follow(self, student: nn.Module, progress: float) -> None:
        """Moves towards the student."""
        now = Progress.of(progress)
        if self.config.every == "epoch" and not now.new_epoch:
            return
        momentum = self.momentum.at(progress)
        for mine, theirs in self._pairs(student):
            follow(mine.parameters(), theirs.parameters(), momentum)
            own, other = ([t for t in part.buffers() if t.is_floating_point()] for part in (mine, theirs))
            if self.config.buffers == "follow":
                follow(own, other, momentum)
            elif self.config.buffers == "copy":
                for buffer, value in zip(mine.buffers(), theirs.buffers(), strict=True):
                    buffer.copy_(value)

    def _pairs(self, student: Any) -> list[tuple[nn.Module, nn.Module]]:
        """What it has, and what that follows."""
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (self.tokenizer, student.tokenizer),
            (self.encoder, student.encoder),
        ]
        pairs += [(part, student.heads[name].decoder.for_teacher()) for name, part in self.decoders.items()]
        return pairs
