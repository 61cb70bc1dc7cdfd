"""A head that is held against another head's losses, and decoders that share their input."""

from dataclasses import replace

import pytest
import torch
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.methods.masked_autoencoder import Head, MaskedAutoencoder
from mim_core.parts.schedule import Progress
from mim_core.parts.teacher import EmaTeacher
from mim_core.recipes.config import Part
from mim_core.recipes.resolve import load_recipe, override, resolve_part
from mim_core.runs import checkpoint
from mim_core.runs.load import load_run
from mim_core.testing import noise
from mim_core.training.loop import start, train
from mim_core.training.optimizer import make_optimizer
from safetensors.torch import load_file

SHARED = ("embed.weight", "embed.bias", "mask_token")


def recipe():
    return load_recipe("image:hpm-vit-tiny", installed(), twin=True)


def changed(**parts):
    """The recipe with other parts; roles are written with a double underscore for the dot."""
    named = {role.replace("__", "."): part for role, part in parts.items()}
    run = recipe()
    return replace(run, parts={**run.parts, **{r: resolve_part(r, p, installed()) for r, p in named.items()}})


def test_the_losses_are_those_of_the_other_head_without_gradient():
    """The second head's loss alone moves no weight of the first decoder that they do not share."""
    method = build_method(recipe()).train()
    prepared = method.prepare(noise(method.tokenizer.shapes, 4))
    assert set(prepared.targets) == {"main"}
    assert prepared.weights["losses"].sum() == pytest.approx(1.0)
    outcome = method(prepared)
    assert outcome.loss.item() == pytest.approx(outcome.parts["main"].item() + outcome.parts["losses"].item())
    outcome.parts["losses"].backward()
    touched = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert not [name for name in touched if name.startswith(("heads.main.decoder.blocks", "heads.main.decoder.pred"))]
    assert {f"heads.main.decoder.{name}" for name in SHARED} <= touched
    assert any(name.startswith("encoder.") for name in touched)


def test_heads_in_any_order_give_the_same():
    one = build_method(recipe()).train()
    other = MaskedAutoencoder.__new__(MaskedAutoencoder)
    heads = {name: one.heads[name] for name in ("losses", "main")}
    MaskedAutoencoder.__init__(
        other, one.tokenizer, one.masker, one.encoder, heads, one.scorer, dict(one.teachers.items())
    )
    assert list(other.heads) == ["main", "losses"]
    sample = noise(one.tokenizer.shapes, 4)
    assert torch.equal(one(one.prepare(sample)).loss, other.train()(other.prepare(sample)).loss)


def test_what_two_decoders_share_is_one_weight_for_the_optimizer():
    method = build_method(recipe())
    main, losses = (method.heads[name].decoder for name in ("main", "losses"))
    for name in SHARED:
        assert main.get_parameter(name) is losses.get_parameter(name)
    assert main.position is losses.position
    assert main.pred.weight is not losses.pred.weight
    decayed, plain = method.parameter_groups()
    ids = [id(parameter) for parameter in (*decayed, *plain)]
    assert len(ids) == len(set(ids))
    assert sum(id(p) == id(main.embed.weight) for p in decayed) == 1
    make_optimizer(method, recipe().train, torch.device("cpu"))


def test_checkpoints_hold_shared_weights_under_both_names(tmp_path):
    config = override(recipe(), {"train": {"ema": 0.9, "epochs": 0.0064}}, "test", installed())
    run = start(config, tmp_path / "run", installed())
    assert train(run, quiet=True)
    newest = checkpoint.newest(tmp_path / "run")
    weights, average = (load_file(newest / f"{name}.safetensors") for name in ("weights", "average"))
    for name in SHARED:
        assert torch.equal(weights[f"heads.main.decoder.{name}"], weights[f"heads.losses.decoder.{name}"])
    assert "heads.losses.decoder.embed.weight" not in average
    _, judged, _ = load_run(tmp_path / "run", installed())
    assert judged.heads["losses"].decoder.embed is judged.heads["main"].decoder.embed
    assert torch.equal(judged.heads["losses"].decoder.embed.weight, average["heads.main.decoder.embed.weight"])


def test_a_teacher_has_its_own_copy_and_follows_what_is_shared():
    method = build_method(changed(teacher=Part.of("core:ema", start=0.5, end=0.5, heads=("losses",))))
    copied, own = method.teachers["main"].decoders["losses"], method.heads["main"].decoder
    assert not [p for p in copied.parameters() if p.requires_grad]
    before = copied.embed.weight.clone()
    with torch.no_grad():
        own.embed.weight.add_(1.0)
    assert torch.equal(copied.embed.weight, before)
    method.after_step(Progress(0.0))
    torch.testing.assert_close(copied.embed.weight, before + 0.5)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"losses__target": Part.of("core:ranks", head="mian")}, "what the head 'mian' loses, and the other heads"),
        ({"losses__target": Part.of("core:ranks", head="losses")}, "what the head 'losses' loses"),
        ({"target": Part.of("core:ranks", head="losses")}, "are held against each other's losses"),
        ({"losses__decoder": Part.of("core:transformer", width=16, depth=1, heads=2, input_of="no")}, "the head 'no'"),
        ({"losses__decoder": Part.of("core:transformer", width=32, depth=1, heads=2, input_of="main")}, "same width"),
        ({"teacher": Part.of("core:ema")}, "set --teacher.heads losses"),
        ({"teacher": Part.of("core:ema", heads=("losses", "none"))}, "follows the head 'none'"),
    ],
)
def test_what_does_not_fit_is_refused(parts, words):
    with pytest.raises(MimError, match=words):
        build_method(changed(**parts))


def test_a_head_that_asks_for_something_else_is_refused():
    method = build_method(recipe())
    other = Head(method.heads["losses"].decoder, method.heads["losses"].target, segment="elsewhere")
    with pytest.raises(ValueError, match="asks for something else"):
        MaskedAutoencoder(
            method.tokenizer, method.masker, method.encoder, {"main": method.heads["main"], "losses": other},
            method.scorer, dict(method.teachers.items()),
        )  # fmt: skip


def test_momentum_may_arrive_before_the_run_ends():
    method = build_method(recipe())
    options = {"start": 0.999, "end": 0.9999, "schedule": "linear"}
    teacher = EmaTeacher.of(method.tokenizer, method.encoder, **options, epochs=100)
    found = [teacher.momentum.at(Progress(epoch / 800, epoch=epoch, epochs=800)) for epoch in (0, 50, 100, 800)]
    assert found == pytest.approx([0.999, 0.99945, 0.9999, 0.9999], abs=1e-12)
    with pytest.raises(ValueError, match="must be 0 or more"):
        EmaTeacher.of(method.tokenizer, method.encoder, **options, epochs=-1)
