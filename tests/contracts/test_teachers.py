"""Every registered teacher and scorer of core keeps its contract, and a wrong part breaks each rule."""

from dataclasses import dataclass, replace

import pytest
import torch
from mim_core.methods.build import build_method
from mim_core.parts.decoder import TransformerDecoder
from mim_core.parts.encoder import ViTEncoder
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Mask
from mim_core.parts.schedule import Progress, Schedule
from mim_core.parts.scorer import AttentionScorer, Scorer
from mim_core.parts.teacher import EmaTeacher, Teacher
from mim_core.testing import ScorerContract, TeacherContract, seeded, uncovered


class TestEma(TeacherContract):
    part = "core:ema"


class TestEmaInFolds(TeacherContract):
    part = "core:ema"
    options = {"sees": "hidden", "folds": 3, "begins": "own", "every": "epoch", "buffers": "follow"}


class TestEmaOfAView(TeacherContract):
    part = "core:ema"
    options = {"view": "target"}

    def make_sample(self, tokenizer, rows):
        sample = super().make_sample(tokenizer, rows)
        return {**sample, "image_target": sample["image"].flip(3)}


class TestRandomCodes(TeacherContract):
    part = "core:random-codes"
    options = {"codes": 32, "size": 4}
    moves = False


class TestOverlap(ScorerContract):
    part = "core:overlap"

    def make_sample(self, tokenizer, rows):
        place = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).expand(rows, -1, -1)
        other = torch.tensor([[0.0, 1.0], [1.0, 0.4]]).expand(rows, -1, -1)
        return {**super().make_sample(tokenizer, rows), "image.place": place, "image_target.place": other}


class TestAttention(ScorerContract):
    part = "core:attention"

    def make_teacher(self, student):
        return EmaTeacher(EmaTeacher.Config(), student)


class _Followed:
    """A teacher that follows a decoder of losses."""

    def make_teacher(self, student):
        teacher = EmaTeacher(EmaTeacher.Config(heads=("losses",)), student)
        options = TransformerDecoder.Config(width=16, depth=1, heads=2)
        with seeded(4):
            decoder = TransformerDecoder(options, student.encoder, student.tokenizer.layout, 5)
        teacher.begin({"losses": decoder})
        return teacher


class TestAnswers(_Followed, ScorerContract):
    part = "core:answers"


class TestFrozen(TeacherContract):
    part = "core:frozen"
    moves = False

    @pytest.fixture(autouse=True, scope="class")
    def _run(self, request, tmp_path_factory):
        from mim_core.cli import main

        folder = tmp_path_factory.mktemp("frozen") / "run"
        assert main(["pretrain", "image:mae-vit-tiny", "--twin", "--quiet", "--out", str(folder)]) == 0
        request.cls.options = {"run": folder}
        yield
        request.cls.options = {}

    def make_tokenizer(self):
        return build_method("image:mae-vit-tiny").tokenizer

    def make_encoder(self, tokenizer):
        return build_method("image:mae-vit-tiny").encoder


def test_every_teacher_of_core_is_covered():
    assert not uncovered("teachers", globals().values(), "core")


def test_every_scorer_of_core_is_covered():
    assert not uncovered("scorers", globals().values(), "core")


# ---- each rule, and a part that breaks it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class None_:
    """No options."""


class Narrow(Teacher):
    def forward(self, patches, sample=None, mask=None):
        lesson = super().forward(patches)
        return replace(lesson, tokens=lesson.tokens[:, 1:])


class Trained(Teacher):
    def __init__(self, config, student):
        super().__init__(config, student)
        self.requires_grad_(True)


class Moody(Teacher):
    def forward(self, patches, sample=None, mask=None):
        lesson = super().forward(patches)
        return replace(lesson, tokens=lesson.tokens + torch.randn(()))


class Crowd(Teacher):
    def forward(self, patches, sample=None, mask=None):
        lesson = super().forward(patches)
        return replace(lesson, tokens=lesson.tokens - lesson.tokens.mean(dim=0))


class Levelless(Teacher):
    def give(self, levels=0, attention=False):
        return


class Still(Teacher):
    pass


class Forgets(Teacher):
    def __init__(self, config, student):
        super().__init__(config, student)
        self.factor = torch.rand(()) if not Forgets.made else torch.rand(()) + 5
        Forgets.made = True

    made = False

    def forward(self, patches, sample=None, mask=None):
        lesson = super().forward(patches)
        return replace(lesson, tokens=lesson.tokens * self.factor)


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Narrow, "test_lesson", "one per unit of the student"),
        (Trained, "test_no_gradient", "weights that the optimizer would train"),
        (Moody, "test_lesson_follows_from_the_sample", "something else each time"),
        (Crowd, "test_lesson_follows_from_the_sample", "of a sample alone"),
        (Levelless, "test_levels", "asked for one level, it gives 0"),
        (Still, "test_follow", "it stands still"),
        (Forgets, "test_state_dict_round_trip", "does not hold everything"),
    ],
)
def test_a_wrong_teacher_is_found(cls, check, words):
    contract = type("Contract", (TeacherContract,), {"make_teacher": lambda self, student: cls(None_(), student)})
    with pytest.raises(AssertionError, match=words):
        getattr(contract(), check)()


class Flat(Scorer):
    def forward(self, sample, patches, lesson=None):
        return torch.ones(len(sample["key"]), patches.layout.count)


class Short(Scorer):
    def forward(self, sample, patches, lesson=None):
        return torch.rand(len(sample["key"]), 3)


class Dice(Scorer):
    def forward(self, sample, patches, lesson=None):
        return torch.rand(len(sample["key"]), patches.layout.count)


class Gossip(Scorer):
    def forward(self, sample, patches, lesson=None):
        spread = patches.values.flatten(2).var(dim=2)
        return spread - spread.mean(dim=0)


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Flat, "test_scores", "all have the same score"),
        (Short, "test_scores", r"scores are \(4, 3\)"),
        (Dice, "test_scores_follow_from_the_sample", "other scores each time"),
        (Gossip, "test_scores_follow_from_the_sample", "a sample alone"),
    ],
)
def test_a_wrong_scorer_is_found(cls, check, words):
    contract = type("Contract", (ScorerContract,), {"make_scorer": lambda self, student: cls(None_(), student)})
    with pytest.raises(AssertionError, match=words):
        getattr(contract(), check)()


# ---- values worked out by hand ---------------------------------------------------------------------------------------


def test_progress_knows_step_and_epoch():
    now = Progress.at(10, 20, 4.0)
    assert (float(now), now.step, now.epoch, now.epochs) == (0.5, 10, 2.5, 5.0)
    assert [Progress.at(step, 20, 4.0).new_epoch for step in range(9)] == [False] * 4 + [True] + [False] * 3 + [True]
    assert [Progress.at(step, 5, 2.5).new_epoch for step in range(6)] == [False, False, False, True, False, True]


def test_schedules():
    assert [Schedule(0.9, 1.0).at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])
    assert Schedule(0.0, 1.0, "linear").at(0.25) == pytest.approx(0.25)
    rises = Schedule(0.04, 0.07, "linear", epochs=2)
    assert [rises.at(Progress.at(s, 20, 4.0)) for s in (0, 4, 8, 20)] == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_attention_is_that_of_the_last_block():
    """Read off the block's own weights: softmax(q k / sqrt(d)) of the class token, the mean over the heads."""
    contract = TestAttention()
    student, sample = contract.student(), contract.batch()
    teacher = EmaTeacher(EmaTeacher.Config(), student)
    scorer = AttentionScorer(AttentionScorer.Config(), student)
    scorer.bind(teacher)
    patches = student.tokenizer.split(sample)
    with torch.no_grad():
        scores = scorer(sample, patches, teacher(patches, sample))
        encoder = student.encoder.eval()
        x = student.tokenizer.embed(patches.values) + encoder.position(patches.layout)
        x = encoder.blocks[0](torch.cat([encoder.cls_token.expand(4, -1, -1), x], dim=1))
        part = encoder.blocks[1].attn
        qkv = part.qkv(encoder.blocks[1].norm1(x)).reshape(4, -1, 3, 2, 8)
        for head in range(2):
            query, key = qkv[:, 0, 0, head], qkv[:, :, 1, head]
            weights = ((key @ query[:, :, None])[:, :, 0] * 8**-0.5).softmax(dim=1)
            scores = scores - weights[:, 1:] / 2
    torch.testing.assert_close(scores, torch.zeros_like(scores), atol=1e-6, rtol=0)


def test_a_teacher_that_nobody_reads_is_refused():
    from mim_core.errors import MimError
    from mim_core.host.loading import installed
    from mim_core.recipes.resolve import load_recipe, swap

    mae = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    with pytest.raises(MimError, match="no target and no scorer reads what the teacher 'main' says"):
        build_method(swap(mae, "teacher", "core:ema", installed()))
    with pytest.raises(MimError, match=r"this run has none\. Name one: --use teacher=core:ema"):
        build_method(swap(mae, "target", "core:features", installed()))
    both = swap(swap(mae, "scorer", "core:attention", installed()), "teacher", "core:ema", installed())
    with pytest.raises(MimError, match="this masker reads no scores"):
        build_method(both)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_attention_is_given_beside_levels(levels):
    """The encoder's answer stays the same, and the weights are those of timm's unfused attention."""
    layout = Layout.on_grid(3, 3)
    torch.manual_seed(0)
    encoder = ViTEncoder(ViTEncoder.Config(width=16, depth=2, heads=2), layout).eval()
    tokens, mask = torch.randn(2, 9, 16), Mask.nothing_hidden(2, layout, torch.device("cpu"))
    plain = encoder(tokens, layout, mask)
    found = []
    block = encoder.blocks[-1]
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda module, given, out: found.append(given[0]))
    encoder.give_attention()
    if levels:
        encoder.give_last_levels(levels)
    seen = encoder(tokens, layout, mask)
    torch.testing.assert_close(seen.tokens, plain.tokens)
    torch.testing.assert_close(seen.attention, found[-1])
    assert len(seen.levels) == levels
    if levels:
        torch.testing.assert_close(encoder.norm(seen.levels[-1]), plain.tokens)
