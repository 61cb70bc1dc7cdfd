"""DINO's head and target: by hand, against a plain loop, and what a step changes."""

import pytest
import torch
from mim_core.data.views import entries
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.parts.decoder_prototypes import PrototypeDecoder
from mim_core.parts.encoder import Encoded, ViTEncoder
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Mask
from mim_core.parts.schedule import Progress
from mim_core.parts.target_distillation import SelfDistillationTarget
from mim_core.parts.teacher import Lesson
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import noise


def target(**options):
    cut = PatchTokenizer(PatchTokenizer.Config(size=(4,), patch=(1,), channels=1), 4)
    return SelfDistillationTarget(SelfDistillationTarget.Config(size=3, **options), cut)


def lesson(scores, progress=0.0):
    rows = len(scores)
    tokens, prefix = torch.zeros(rows, 4, 2), torch.zeros(rows, 0, 2)
    return Lesson(tokens, prefix, answers={"views": scores[:, None]}, progress=progress)


def made(target, scores, rows=None, progress=0.0):
    rows = len(scores) if rows is None else rows
    mask = Mask.nothing_hidden(rows, Layout.on_grid(4), torch.device("cpu"))
    return target.make({}, Patches(torch.zeros(rows, 4, 1, 1), Layout.on_grid(4)), mask, lesson(scores, progress))


SCORES = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1], [0.2, 0.2, 0.2], [-0.3, 0.1, 0.5]])


def test_each_sample_is_held_against_the_other_of_its_item():
    values = made(target(teacher_start=0.5, teacher_end=0.5), SCORES)
    torch.testing.assert_close(values, (SCORES[[1, 0, 3, 2]] / 0.5).softmax(dim=-1))


def test_local_views_are_held_against_both():
    values = made(target(teacher_start=0.5, teacher_end=0.5, against="both"), SCORES, rows=8)
    told = (SCORES / 0.5).softmax(dim=-1)
    first, second = (told[0] + told[1]) / 2, (told[2] + told[3]) / 2
    torch.testing.assert_close(values, torch.stack([first] * 4 + [second] * 4))


def test_the_sum_over_all_pairs_is_dinos():
    """With the recipe's weights: the mean of the cross-entropy over all pairs of a student's view and another view that
    the teacher saw (DINO's loop)."""
    torch.manual_seed(0)
    teacher, masked, local = torch.randn(4, 3), torch.randn(4, 3), torch.randn(8, 3)
    count = 2
    both, other = target(against="both"), target()
    views = other.loss(masked[:, None], made(other, teacher)).mean()
    locals_ = both.loss(local[:, None], made(both, teacher, rows=8)).mean()
    pairs = 2 + 4 * count
    found = views * 2 / pairs + locals_ * 4 * count / pairs
    losses = []
    told = (teacher / 0.04).softmax(dim=-1)
    for item in range(2):
        students = [masked[2 * item], masked[2 * item + 1], *local[4 * item : 4 * item + 4]]
        for number, student in enumerate(students):
            places = [place for place in range(2) if number != place]
            losses += [-(told[2 * item + place] * (student / 0.1).log_softmax(dim=-1)).sum() for place in places]
    assert len(losses) == 2 * pairs
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_the_centre_follows_after_a_step_alone():
    one = target(center_momentum=0.9)
    first = made(one, SCORES)
    assert torch.equal(made(one, SCORES), first), "making targets twice changes nothing"
    one.after_step()
    torch.testing.assert_close(one.center, 0.1 * SCORES.mean(dim=0))
    values = made(one, SCORES)
    torch.testing.assert_close(values, ((SCORES[[1, 0, 3, 2]] - 0.1 * SCORES.mean(dim=0)) / 0.04).softmax(dim=-1))
    one.after_step()
    torch.testing.assert_close(one.center, 0.19 * SCORES.mean(dim=0))
    one.after_step()
    torch.testing.assert_close(one.center, 0.19 * SCORES.mean(dim=0)), "without a batch it stays"
    one.eval()
    made(one, SCORES)
    one.after_step()
    torch.testing.assert_close(one.center, 0.19 * SCORES.mean(dim=0)), "nothing is learned in evaluation"


def test_the_teachers_temperature_rises_over_its_epochs():
    one = target(teacher_start=0.1, teacher_end=0.3, teacher_epochs=10)
    for epoch, wanted in ((0, 0.1), (5, 0.2), (10, 0.3), (40, 0.3)):
        progress = Progress(epoch / 100, epoch=float(epoch), epochs=100.0)
        torch.testing.assert_close(made(one, SCORES, progress=progress), (SCORES[[1, 0, 3, 2]] / wanted).softmax(-1))


def test_odd_samples_are_no_pairs():
    with pytest.raises(ValueError, match="pairs"):
        made(target(), SCORES[:3])


@pytest.mark.parametrize("options", [{"temperature": 0}, {"center_momentum": 1.5}, {"teacher_epochs": -1}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="must"):
        target(**options)


# ---- the head --------------------------------------------------------------------------------------------------------


def method():
    return build_method(load_recipe("image:mst-vit-tiny", installed(), twin=True))


def test_prototypes_are_cosines():
    head = method().heads["views"].decoder
    assert isinstance(head, PrototypeDecoder)
    encoded = Encoded(torch.randn(5, 16, 32), torch.randn(5, 1, 32))
    out = head(encoded, Layout.on_grid(4, 4), Mask.nothing_hidden(5, Layout.on_grid(4, 4), torch.device("cpu")))
    assert out.shape == (5, 1, 64)
    assert float(out.detach().abs().max()) <= 1 + 1e-6
    x = encoded.prefix[:, 0]
    for number, layer in enumerate(head.mlp):
        x = layer(torch.nn.functional.gelu(x) if number else x)
    wanted = torch.nn.functional.cosine_similarity(x[:, None], head.prototypes[None], dim=-1)
    torch.testing.assert_close(out[:, 0], wanted, atol=1e-5, rtol=1e-5)


def test_a_class_token_that_is_not_there_is_refused_when_the_head_is_built():
    layout = Layout.on_grid(4, 4)
    bare = ViTEncoder(ViTEncoder.Config(width=32, depth=1, heads=2, class_token=False), layout)
    with pytest.raises(ValueError, match="set pool to mean"):
        PrototypeDecoder(PrototypeDecoder.Config(), bare, layout, 64)
    PrototypeDecoder(PrototypeDecoder.Config(pool="mean"), bare, layout, 64)


def test_local_views_have_the_same_head_and_are_of_their_own_size():
    one = method().train()
    assert one.heads["local"].decoder.prototypes is one.heads["views"].decoder.prototypes
    sample = noise(entries(one.tokenizer.shapes, one.views()), 8, 0, {})
    prepared = one.prepare(sample)
    assert prepared.views["local"].layout.grid == (2, 2)
    assert len(prepared.views["local"].mask.hidden) == 16
    outcome = one(prepared)
    assert outcome.predictions["local"].shape == (16, 1, 64)
    assert outcome.predictions["pixels"].shape == (8, 16, 49), "every unit is restored"


def test_nothing_is_hidden_from_the_teacher():
    """Its answers do not depend on what is hidden from the student."""
    one = method().train()
    sample = noise(entries(one.tokenizer.shapes, one.views()), 4, 0, {})
    first = one.prepare(sample)
    other = one.prepare({**sample, "key": sample["key"] + 1})
    assert not torch.equal(first.mask.hidden, other.mask.hidden)
    assert torch.equal(first.targets["views"], other.targets["views"])
