"""HPM against its golden case, and imported in other sizes than those."""

import json
from pathlib import Path

import pytest
import torch
from mim_core import Part, RunConfig, build_method
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.weights import import_checkpoint
from mim_core.recipes.resolve import resolve
from mim_core.testing import noise, seeded
from mim_core.testing.golden import try_case
from mim_image.interop_hpm import TEACHER, _hpm_name
from safetensors import safe_open
from safetensors.torch import save_file

CASE = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "hpm.safetensors"
needs_case = pytest.mark.skipif(not CASE.exists(), reason=f"no {CASE}")


@needs_case
def test_every_entry_holds():
    lines = try_case(CASE)
    assert [line.name for line in lines if not line.fits] == []
    assert [line.name for line in lines if line.apart is None] == []
    assert len(lines) >= 18


@needs_case
@pytest.mark.parametrize(
    ("spoiled", "off"),
    [
        ("teacher/decoder_pred_losspred.weight", {"teacher_loss_pred", "mask"}),
        ("in/noise", {"mask"}),
        ("state/decoder_blocks_losspred.0.attn.qkv.weight", {"loss", "loss_rank", "loss_pred", "alt_loss_absolute"}),
        ("out/patch_loss", {"patch_loss"}),
    ],
)
def test_a_spoiled_case_fails(spoiled, off, tmp_path):
    with safe_open(CASE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        about = file.metadata()
    tensors[spoiled] = tensors[spoiled].roll(1, -1)
    save_file(tensors, tmp_path / "spoiled.safetensors", metadata=about)
    assert off <= {line.name for line in try_case(tmp_path / "spoiled.safetensors") if not line.fits}


@needs_case
def test_early_epochs_hide_at_random(tmp_path):
    """The mask of epoch 0 follows from the noise alone, so the case's, of epoch 149, is another."""
    with safe_open(CASE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        config = json.loads(file.metadata()["config"])
    noise_rank = tensors["in/noise"].argsort(dim=1).argsort(dim=1)
    tensors["out/mask"] = noise_rank >= noise_rank.shape[1] // 4
    save_file(tensors, tmp_path / "early.safetensors", metadata={"config": json.dumps({**config, "epoch": 0})})
    assert "mask" not in {line.name for line in try_case(tmp_path / "early.safetensors") if not line.fits}


SIZES = {"num_heads": 3, "decoder_num_heads": 2, "img_size": (12, 30), "norm_pix_loss": False, "mask_ratio": 0.6}


def other():
    """A method of other sizes, in random weights: not square, one channel, decoders of other depths."""
    decoder = {"width": 16, "heads": 2, "mlp_ratio": 3.0}
    parts = {
        "tokenizer": Part.of("image:patch", size=(12, 30), patch=(4, 6), channels=1),
        "masker": Part.of("core:guided", ratio=0.6),
        "encoder": Part.of("core:vit", width=24, depth=3, heads=3, mlp_ratio=2.0),
        "decoder": Part.of("core:transformer", **decoder, depth=1),
        "losses.decoder": Part.of("core:transformer", **decoder, depth=2, input_of="main"),
        "target": Part.of("core:values", normalize=False),
        "losses.target": Part.of("core:ranks"),
        "teacher": Part.of("core:ema", heads=("losses",)),
        "scorer": Part.of("core:answers"),
    }
    method = build_method(resolve(RunConfig(parts), installed()))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return method


def official(method):
    """Its weights under HPM's names, with the class token's slots and the teacher's first decoder."""
    found = {_hpm_name(name): value.detach().clone() for name, value in method.state_dict().items()}
    for name in [name for name in found if name.endswith("pos_embed")]:
        found[name] = torch.nn.functional.pad(found[name].reshape(1, -1, found[name].shape[-1]), (0, 0, 1, 0))
    first = {name: value for name, value in found.items() if name.startswith("decoder_") and "_losspred" not in name}
    return {**{f"teacher.{name}": value for name, value in first.items()}, **found}


def test_other_sizes_are_read_off_the_weights():
    with seeded(3):
        method = other().train()
    state = official(method)
    found = import_checkpoint(state, format="hpm", **SIZES).train()
    sample = {**noise(method.tokenizer.shapes, 4)}
    for mask in (None, torch.arange(15).expand(4, 15) % 3 > 0):
        wanted, prepared = method.prepare(sample, mask=mask), found.prepare(sample, mask=mask)
        assert torch.equal(wanted.mask.hidden, prepared.mask.hidden)
        one, two = method(wanted), found(prepared)
        assert torch.equal(one.loss, two.loss)
        assert torch.equal(one.predictions["losses"], two.predictions["losses"])
    assert found.heads["losses"].decoder.embed is found.heads["main"].decoder.embed


def test_without_a_teacher_it_starts_as_a_copy(capsys):
    with seeded(3):
        state = {name: value for name, value in official(other()).items() if not name.startswith("teacher.")}
    method = import_checkpoint(state, format="hpm", **SIZES)
    assert "it starts as a copy of the student" in capsys.readouterr().err
    own = method.state_dict()
    for name, value in own.items():
        if name.startswith(f"{TEACHER}encoder."):
            assert torch.equal(value, own[name.removeprefix(TEACHER)])
    embed = method.teachers["main"].decoders["losses"].embed.weight
    assert torch.equal(embed, method.heads["main"].decoder.embed.weight)
    assert embed is not method.heads["main"].decoder.embed.weight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 4}, "depth is given as 4, and the weights have 3"),
        ({"img_size": None}, "15 patches, which is no square"),
        ({"num_heads": None}, "heads cannot be inferred"),
    ],
)
def test_sizes_that_contradict_the_weights(change, words):
    with seeded(3):
        state = official(other())
    with pytest.raises(MimError, match=words):
        import_checkpoint(state, format="hpm", **{**SIZES, **change})


def test_mae_weights_are_refused():
    with seeded(3):
        state = {name: value for name, value in official(other()).items() if "losspred" not in name}
    with pytest.raises(MimError, match="not those of HPM with its decoder of losses"):
        import_checkpoint(state, format="hpm", **SIZES)
