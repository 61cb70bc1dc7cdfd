"""What every teacher and every scorer keeps to."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mim_core.data.source import Sample
from mim_core.parts.layout import Patches
from mim_core.parts.schedule import Progress
from mim_core.parts.scorer import Scorer
from mim_core.parts.teacher import Lesson, Student, Teacher
from mim_core.testing.checks import equal, near, seeded, tensors
from mim_core.testing.student import WithStudent


class TeacherContract(WithStudent):
    """What every teacher keeps to.

    Attributes:
        moves: It follows the student; false for one that stands still.
    """

    kind: ClassVar[str] = "teachers"
    moves: ClassVar[bool] = True

    def make_teacher(self, student: Student) -> Teacher:
        """The teacher under test."""
        teacher: Teacher = self._make("teacher", student)
        return teacher

    def made(self) -> Teacher:
        """The teacher under test, the same weights each time, in training mode as the method is."""
        student = self.student()
        with seeded(1):
            teacher: Any = self.make_teacher(student)
        assert isinstance(teacher, Teacher), f"make_teacher gives a {type(teacher).__name__}, no mim_core.Teacher"
        return teacher.train()

    def lesson(self, teacher: Teacher, sample: Sample) -> tuple[Patches, Lesson]:
        """What it says of a batch."""
        patches = self.student().tokenizer.split(sample)
        mask = self.mask(patches, sample["key"]) if teacher.needs_mask else None
        lesson: Any = teacher(patches, sample, mask)
        assert isinstance(lesson, Lesson), f"the teacher gives a {type(lesson).__name__}, no mim_core.Lesson"
        return patches, lesson

    def batch(self) -> Sample:
        """Four samples."""
        return self.make_sample(self.student().tokenizer, 4)

    def test_lesson(self) -> None:
        """A finite token of ``width`` for every unit of the student, and prefix tokens of that width."""
        teacher = self.made()
        patches, lesson = self.lesson(teacher, self.batch())
        wanted = (4, patches.layout.count, teacher.width)
        assert tuple(lesson.tokens.shape) == wanted, (
            f"tokens are {tuple(lesson.tokens.shape)}, not {wanted}: one per unit of the student, of the teacher's "
            "width"
        )
        assert lesson.prefix.ndim == 3, f"prefix is {tuple(lesson.prefix.shape)}, not [S, P, D]"
        assert (len(lesson.prefix), lesson.prefix.shape[-1]) == (4, teacher.width), "prefix does not fit the tokens"
        assert all(bool(value.isfinite().all()) for value in tensors(lesson) if value.is_floating_point()), (
            "the lesson is not finite"
        )

    def test_no_gradient(self) -> None:
        """It is not trained by gradients, and nothing that it says is tied to weights."""
        teacher = self.made()
        trained = [name for name, p in teacher.named_parameters() if p.requires_grad]
        assert not trained, f"weights that the optimizer would train: {', '.join(trained[:5])}"
        _, lesson = self.lesson(teacher, self.batch())
        assert not any(value.requires_grad for value in tensors(lesson)), "what the teacher says has a gradient"

    def test_lesson_follows_from_the_sample(self) -> None:
        """Said twice it is the same, whatever torch's generator says; a sample alone has the lesson that it has in a
        batch."""
        teacher, sample = self.made(), self.batch()
        with seeded(1):
            _, lesson = self.lesson(teacher, sample)
        with seeded(2):
            _, again = self.lesson(teacher, sample)
        assert equal(lesson, again), "the teacher says something else each time"
        _, alone = self.lesson(teacher, {name: value[2:3] for name, value in sample.items()})
        near(alone.tokens, lesson.tokens[2:3], "of a sample alone the teacher says something else than in a batch")

    def test_levels(self) -> None:
        """Asked for the outputs of its last block, it gives them in the form of its tokens; or refuses."""
        teacher = self.made()
        try:
            teacher.give(levels=1)
        except ValueError:
            return
        _, lesson = self.lesson(teacher, self.batch())
        assert len(lesson.levels) == 1, f"asked for one level, it gives {len(lesson.levels)}"
        assert lesson.levels[0].shape == lesson.tokens.shape, "a level has another shape than the tokens"

    def test_follow(self) -> None:
        """After a step it has moved towards the student, where ``moves``; else no weight has changed."""
        teacher, student = self.made(), self.student()
        method = nn.Module()
        method.tokenizer, method.encoder, method.heads = student.tokenizer, student.encoder, nn.ModuleDict()
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(1.0)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        teacher.follow(method, Progress(0.0, step=1, new_epoch=True))
        moved = any(not torch.equal(before[name], value) for name, value in teacher.state_dict().items())
        if self.moves:
            assert moved, "it stands still; if that is meant, set moves = False"
            return
        assert not moved, "it moved; if that is meant, set moves = True"

    def test_state_dict_round_trip(self) -> None:
        """Another with the same weights says the same."""
        teacher, other = self.made(), self.made()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1)
        state = {name: value.clone() for name, value in teacher.state_dict().items()}
        other.load_state_dict(state, strict=True)
        sample = self.batch()
        one, two = self.lesson(teacher, sample)[1], self.lesson(other, sample)[1]
        assert equal(one, two), "the state dict does not hold everything"


class ScorerContract(WithStudent):
    """What every scorer keeps to."""

    kind: ClassVar[str] = "scorers"

    def make_scorer(self, student: Student) -> Scorer:
        """The scorer under test."""
        scorer: Scorer = self._make("scorer", student)
        return scorer

    def make_teacher(self, student: Student) -> Teacher | None:
        """The teacher that it reads; None where it reads none."""
        return None

    def scores(self, sample: Sample) -> Tensor:
        """What it gives for a batch, everything built anew."""
        student = self.student()
        with seeded(1):
            scorer: Any = self.make_scorer(student)
            teacher = self.make_teacher(student)
        assert isinstance(scorer, Scorer), f"make_scorer gives a {type(scorer).__name__}, no mim_core.Scorer"
        assert teacher is not None or not scorer.needs_teacher, "the scorer reads a teacher: override make_teacher"
        patches = student.tokenizer.split(sample)
        lesson = None
        if teacher is not None:
            scorer.bind(teacher)
            lesson = teacher(patches, sample)
        scores: Any = scorer(sample, patches, lesson)
        assert isinstance(scores, Tensor), f"scores are a {type(scores).__name__}, no tensor"
        return scores

    def batch(self) -> Sample:
        """Four samples."""
        return self.make_sample(self.student().tokenizer, 4)

    def test_scores(self) -> None:
        """A finite number for every unit of every sample, not the same for all units, without gradient where no weight
        is trained."""
        scores, units = self.scores(self.batch()), self.student().tokenizer.layout.count
        assert tuple(scores.shape) == (4, units), f"scores are {tuple(scores.shape)}, not {(4, units)}"
        assert scores.is_floating_point(), f"scores are {scores.dtype}, no floats"
        assert bool(scores.isfinite().all()), "scores are not finite"
        assert bool((scores.amax(dim=1) > scores.amin(dim=1)).all()), "a sample's units all have the same score"

    def test_scores_follow_from_the_sample(self) -> None:
        """The same each time; a sample alone has the scores that it has in a batch, and the batch is left as it was."""
        sample = self.batch()
        given = {name: value.clone() for name, value in sample.items()}
        with seeded(1):
            scores = self.scores(sample)
        with seeded(2):
            again = self.scores(sample)
        assert torch.equal(scores, again), "the scorer gives other scores each time"
        changed = [name for name, value in given.items() if not torch.equal(value, sample[name])]
        assert not changed, f"the scorer changes {', '.join(changed)} of the sample in place"
        alone = self.scores({name: value[2:3] for name, value in sample.items()})
        near(alone, scores[2:3], "a sample alone has other scores than in a batch")
