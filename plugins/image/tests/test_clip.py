"""CLIP's features as a target: those of open_clip itself, from a teacher that nothing changes."""

import zipfile

import pytest
import torch
from mim_core import build_method
from mim_core.cli import main
from mim_core.data.source import DataSource
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.assembly import Parts
from mim_core.methods.build import make_source
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Mask
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.recipes.resolve import load_recipe, override
from mim_core.runs import checkpoint
from mim_core.runs.load import load_run
from mim_core.testing import TargetContract, seeded, uncovered
from mim_core.training.optimizer import make_optimizer
from safetensors.torch import save_file

open_clip = pytest.importorskip("open_clip", reason="CLIP features need open_clip")
from mim_image.clip import ClipTarget  # noqa: E402
from mim_image.clip_encoder import CLIP_MEAN, CLIP_STD, ImageEncoder, normalisation  # noqa: E402
from mim_image.tokenizer import ImagePatchTokenizer  # noqa: E402

SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8, "head_width": 64},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1},
}
"""A CLIP of 4 x 4 patches that is quick on a CPU."""

TIMM = {"timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
OTHERS = {
    "tiny-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "tiny-pooled": {**SMALL["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "tiny-mean": {**SMALL["vision_cfg"], "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
    "tiny-timm": {**TIMM, "timm_model_name": "vit_tiny_patch16_224", "image_size": 224},
    "tiny-eva": {**TIMM, "timm_model_name": "eva02_tiny_patch14_224", "image_size": 224},
    "tiny-convnext": {**TIMM, "timm_model_name": "convnext_atto"},
}
"""One of each other kind that open_clip has: vision_cfg by name."""


@pytest.fixture(scope="module", autouse=True)
def small():
    """The small model under a name of its own; names are looked up wherever a target is built."""
    with pytest.MonkeyPatch.context() as patch:
        config, models = open_clip.get_model_config, open_clip.list_models
        known = {"tiny": SMALL, **{name: {**SMALL, "vision_cfg": vision} for name, vision in OTHERS.items()}}
        patch.setattr(open_clip, "list_models", lambda: [*models(), *known])
        patch.setattr(open_clip, "get_model_config", lambda name: known.get(name) or config(name))
        yield


def tokenizer(size=(32, 32), patch=(8, 8), channels=3, modality="image"):
    return PatchTokenizer(PatchTokenizer.Config(modality, size, patch, channels), 8)


def target(own=None, **options):
    with seeded():
        return ClipTarget(ClipTarget.Config(**{"model": "tiny", "weights": "random", **options}), own or tokenizer())


def pixels(rows, size=(32, 32), channels=3):
    return torch.rand(rows, channels, *size, generator=torch.Generator().manual_seed(1))


def normalised(x):
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x - mean) / std


def everything(rows, own):
    return Mask.from_bool(torch.ones(rows, own.layout.count, dtype=torch.bool))


class ClipContract(TargetContract):
    part = "image:clip"
    inverse = False

    def make_tokenizer(self):
        return tokenizer(size=(24, 40))

    def make_target(self, tokenizer):
        return target(tokenizer, **self.options)


class TestClip(ClipContract):
    options = {}
    lowest = 0.0


class TestClipOfEva(ClipContract):
    options = {"loss": "negative-cosine", "projected": False, "layer": 1}
    lowest = -1.0


# ---- the features ----------------------------------------------------------------------------------------------------


def direct(teacher, x):
    """Tokens as open_clip's own model gives them, after its last norm and before the projection."""
    with torch.no_grad():
        model = open_clip.CLIP(**SMALL, output_dict=True).eval()
        model.visual.load_state_dict(teacher.clip.visual.state_dict())
        model.visual.output_tokens = True
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        return model.visual((x - mean) / std)[1], model.visual.proj


def test_values_are_open_clips_own_tokens():
    x, own = pixels(3), tokenizer()
    teacher = target(own)
    sample = {"image": normalised(x)}
    patches, mask = own.split(sample), everything(3, own)
    tokens, projection = direct(teacher, x)
    found = teacher.make(sample, patches, mask)
    torch.testing.assert_close(found, torch.nn.functional.normalize(tokens @ projection, dim=-1))
    assert found.dtype == torch.float32
    assert teacher.size == 24
    plain = target(own, projected=False)
    plain.clip.visual.load_state_dict({k: v for k, v in teacher.clip.visual.state_dict().items() if k != "proj"})
    torch.testing.assert_close(plain.make(sample, patches, mask), torch.nn.functional.normalize(tokens, dim=-1))
    assert plain.size == 128


def test_an_earlier_layer():
    x, own = pixels(2), tokenizer()
    whole = target(own)
    early = target(own, layer=1)
    assert (len(whole.clip.visual.transformer.resblocks), len(early.clip.visual.transformer.resblocks)) == (3, 2)
    visual = whole.clip.visual
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    inner = []
    hook = visual.transformer.resblocks[1].register_forward_hook(lambda module, given, out: inner.append(out))
    with torch.no_grad():
        visual((x - mean) / std)
    hook.remove()
    wanted = visual.ln_post(inner[0])[:, 1:] @ visual.proj
    sample = {"image": normalised(x)}
    found = early.make(sample, own.split(sample), everything(2, own))
    torch.testing.assert_close(found, torch.nn.functional.normalize(wanted, dim=-1))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("layer", [-1, 1])
def test_other_architectures(name, layer, tmp_path):
    """Features are what a block of open_clip's whole model gives of the picture, from a file of its weights."""
    with seeded():
        whole = open_clip.CLIP(**open_clip.get_model_config(name)).visual.eval()
    torch.save(whole.state_dict(), tmp_path / "clip.pt")
    encoder = ImageEncoder(name, layer, projected=False)
    assert encoder.fill(tmp_path / "clip.pt") is None
    before = sum(p.numel() for p in encoder.parameters())
    encoder.finish()
    if layer == 1:
        assert sum(p.numel() for p in encoder.parameters()) < before  # later blocks are gone
    size = (encoder.visual.image_size,) * 2 if isinstance(encoder.visual.image_size, int) else encoder.visual.image_size
    x = pixels(2, size)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    shown = []
    with torch.no_grad():
        found = encoder(x)
        inner = blocks(whole)[layer]
        hook = inner.register_forward_hook(lambda module, given, out: shown.append(out))
        whole((x - mean) / std)
        hook.remove()
    assert found.shape[:2] == (2, encoder.size)
    torch.testing.assert_close(found, as_picture(whole, name, shown[0]), rtol=1e-4, atol=1e-5)


def blocks(visual):
    """The blocks or stages of an image encoder."""
    if hasattr(visual, "trunk"):
        return getattr(visual.trunk, "blocks", None) or visual.trunk.stages
    if hasattr(visual, "layer4"):
        return [visual.act3, visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    return visual.transformer.resblocks


def as_picture(visual, name, out):
    """What a block gives, with the norm that features have, as [B, C, h, w]."""
    if name in ("tiny-convnext", "tiny-resnet"):
        return out
    # the norms of tiny-pooled and tiny-mean stand behind their pooling
    out = visual.trunk.norm(out)[:, visual.trunk.num_prefix_tokens :] if hasattr(visual, "trunk") else out[:, 1:]
    side = round(out.shape[1] ** 0.5)
    return out.transpose(1, 2).unflatten(2, (side, side))


def test_another_architecture_trains(tmp_path):
    given = ["--target.model", "tiny-timm", "--target.no-projected", "--target.weights", "random"]
    assert main(["pretrain", "image:mvp-vit-base", "--twin", "--out", str(tmp_path / "run"), *given]) == 0
    assert (tmp_path / "run/checkpoints").is_dir()


def test_a_projection_for_patches_is_not_made_up():
    for name in OTHERS:
        with pytest.raises(ValueError, match=f"{name} has no projection that serves its patches; .*no-projected"):
            target(model=name)


def test_each_model_is_normalised_as_its_weights_are():
    assert normalisation("ViT-B-16-SigLIP") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation("MobileCLIP2-B") == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert normalisation("ViT-B-16") == (CLIP_MEAN, CLIP_STD)
    assert target().clip.mean.flatten().tolist() == pytest.approx(CLIP_MEAN)  # one that open_clip has no weights for
    given = target(clip_mean=(0.1, 0.2, 0.3), clip_std=(0.4, 0.5, 0.6)).clip
    assert given.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert given.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_another_size_and_another_grid():
    """The image is resized to CLIP's; features are interpolated to the units' grid, row by row, column by column."""
    own = tokenizer(size=(48, 80), patch=(8, 8))
    teacher = target(own)
    x = pixels(2, (48, 80))
    sample = {"image": normalised(x)}
    found = teacher.make(sample, own.split(sample), everything(2, own))
    resized = torch.nn.functional.interpolate(x, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    tokens, projection = direct(teacher, resized)
    grid = (tokens @ projection).transpose(1, 2).unflatten(2, (4, 4))
    spread = torch.nn.functional.interpolate(grid, size=(6, 10), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, torch.nn.functional.normalize(spread, dim=-1), rtol=1e-4, atol=1e-5)


def test_only_the_queries_of_each_mask_are_given():
    own = tokenizer()
    teacher, sample = target(own), {"image": normalised(pixels(2))}
    patches = own.split(sample)
    every = teacher.make(sample, patches, everything(2, own))
    hidden = torch.zeros(4, 16, dtype=torch.bool)
    for row in range(4):
        hidden[row, row : row + 3] = True
    found = teacher.make(sample, patches, Mask.from_bool(hidden, per_sample=2))
    assert found.shape == (4, 3, 24)
    for row in range(4):
        torch.testing.assert_close(found[row], every[row // 2, row : row + 3])


def test_grey_images_count_as_colour():
    own = tokenizer(channels=1)
    teacher, x = target(own, mean=(0.3,), std=(0.4,)), pixels(2, channels=1)
    sample = {"image": (x - 0.3) / 0.4}
    found = teacher.make(sample, own.split(sample), everything(2, own))
    tokens, projection = direct(teacher, x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, torch.nn.functional.normalize(tokens @ projection, dim=-1))


def test_the_losses():
    teacher, eva = target(), target(loss="negative-cosine")
    values = torch.nn.functional.normalize(torch.randn(1, 3, 24), dim=-1)
    guess = torch.stack([3 * values[0, 0], -values[0, 1], torch.zeros(24)])[None]
    torch.testing.assert_close(teacher.loss(guess, values), torch.tensor([[0.0, 2.0, 1.0]]))
    torch.testing.assert_close(eva.loss(guess, values), torch.tensor([[-1.0, 1.0, 0.0]]))


# ---- the teacher -----------------------------------------------------------------------------------------------------


def twin(**options):
    run = load_recipe("image:mvp-vit-base", installed(), twin=True)
    values = {"target": {"model": "tiny", "layer": -1, **options}}
    return override(run, values, "test", installed())


def test_the_teacher_is_not_trained():
    run = twin()
    method = build_method(run)
    method.train()
    teacher = method.heads["main"].target.clip
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    inside = {id(parameter) for parameter in teacher.parameters()}
    assert not inside & {
        id(p) for group in make_optimizer(method, run.train, torch.device("cpu")).param_groups for p in group["params"]
    }
    assert not inside & {id(p) for block in method.blocks() for p in block.parameters()}
    assert not [name for name, _ in teacher.named_buffers() if name in teacher.state_dict()]


def weights(path, seed=3, whole=True, prefix=""):
    with seeded(seed):
        model = open_clip.CLIP(**SMALL)
    state = {prefix + k: v.clone() for k, v in (model if whole else model.visual).state_dict().items()}
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if prefix else state, path)
    return model.visual.state_dict()


@pytest.mark.parametrize(("name", "whole", "prefix"), [("a.pt", True, "module."), ("a.safetensors", False, "")])
def test_weights_from_a_file(tmp_path, name, whole, prefix):
    wanted = weights(tmp_path / name, whole=whole, prefix=prefix)
    found = target(weights=tmp_path / name).clip.visual.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def message(**options):
    """What the first batch says."""
    own = tokenizer()
    sample = {"image": normalised(pixels(1))}
    with pytest.raises(MimError) as caught:
        target(own, **options).make(sample, own.split(sample), everything(1, own))
    return str(caught.value)


def test_files_that_are_no_weights(tmp_path):
    said = message(weights=tmp_path / "none.pt")
    assert f"{tmp_path / 'none.pt'} does not exist" in said
    assert "--target.weights" in said
    (tmp_path / "text.pt").write_text("I am a text.")
    (tmp_path / "hello.pt").write_text("hello world")  # the unpickler looks an entry up that is not there
    (tmp_path / "text.safetensors").write_text("I am a text.")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    weights(tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("program/constants.pkl", b"")
    for name in ("text.pt", "hello.pt", "text.safetensors", "empty.pt", "list.pt", "other.pt", "cut.pt", "program.pt"):
        said = message(weights=tmp_path / name)
        assert f"{tmp_path / name} cannot be used for tiny: " in said, name
        assert "--target.weights" in said
    assert "TorchScript" in message(weights=tmp_path / "program.pt")
    assert "cannot be used" in message(weights=tmp_path)


def test_a_missing_file_is_told_once_and_by_the_name_of_its_option(tmp_path, capsys):
    """The role of the target in its run says what the option is called."""
    part = twin(weights=str(tmp_path / "none.pt"), mean="none", std="none").parts["target"]
    own = tokenizer()
    made = Parts({"rgb.target": part}).make("rgb.target", own)
    made.check(DataSource(None, own.shapes))
    warned = capsys.readouterr().err
    assert warned.count("none.pt does not exist") == 1
    sample = {"image": normalised(pixels(1))}
    with pytest.raises(MimError) as caught:
        made.make(sample, own.split(sample), everything(1, own))
    assert "does not exist" not in str(caught.value), "that was said"
    assert "--rgb.target.weights clip.pt" in str(caught.value)
    assert "--target" not in str(caught.value)


def test_a_run_without_weights_is_refused_before_it_starts(tmp_path):
    run = override(twin(), {"target": {"weights": "none", "model": "ViT-B-16"}}, "test", installed())
    method = build_method(run)
    with pytest.raises(MimError, match=r"Which weights should CLIP's ViT-B-16 have\?") as caught:
        make_source(run, method)
    assert "open_clip.create_model('ViT-B-16', pretrained=" in str(caught.value)
    assert "--target.weights random" in str(caught.value)


def test_wrong_models_are_named():
    with pytest.raises(MimError, match="Did you mean 'ViT-B-16'"):
        target(model="ViT-B16")
    with pytest.raises(MimError, match="Unknown CLIP model 'hf-hub:someone/something'"):
        target(model="hf-hub:someone/something")
    with pytest.raises(ValueError, match="layer is 3, and tiny has 3 blocks"):
        target(layer=3)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        target(tokenizer(channels=4))
    with pytest.raises(ValueError, match="std needs 3 values"):
        target(std=(0.5,))


def test_open_clip_may_be_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MimError, match=r'pip install "mim-image\[clip\]"'):
        target()


def test_data_with_another_mean_are_refused():
    run = twin(mean=(0.5,))
    with pytest.raises(
        MimError, match=r"the mean of the target is 0.5, that of the data 0.286; .* --target.mean 0.286"
    ):
        make_source(run, build_method(run))


def test_a_mean_of_another_modality_is_no_advice():
    """Aligned data normalise their colours; a target of depth cannot undo that."""
    own = tokenizer(channels=1, modality="depth")
    source = DataSource(None, own.shapes)
    source.mean, source.std = torch.zeros(3), torch.ones(3)
    own = target(own)
    with pytest.raises(ValueError, match=r"has 3 values and depth 1 channel, so it is another modality's"):
        own.check(source)


# ---- runs ------------------------------------------------------------------------------------------------------------


def pretrain(folder, *more, steps=4):
    given = ["--target.model", "tiny", "--target.layer", "-1", "--train.epochs", str(steps * 16 / 10_000)]
    return main(
        ["pretrain", "mvp-vit-base", "--twin", "--out", str(folder), "--quiet", *given, *map(str, more)], plugin="image"
    )


def test_a_checkpoint_holds_the_teacher(tmp_path, capsys):
    """A run is stopped, its weight file is gone, and it goes on and is read all the same."""
    file = tmp_path / "clip.pt"
    wanted = weights(file)
    folder, other = tmp_path / "run", tmp_path / "other"
    more = ("--target.weights", file, "--train.checkpoint-every", 2)
    assert pretrain(other, *more) == 0, capsys.readouterr().err
    assert pretrain(folder, *more) == 0, capsys.readouterr().err
    file.unlink()
    checkpoint.newest(folder).joinpath("state.json").unlink()  # the last is torn: the run stands at step 2
    assert pretrain(folder, *more) == 0, capsys.readouterr().err
    one, two = (checkpoint.load(checkpoint.newest(f)) for f in (folder, other))
    assert one.step == two.step == 4
    assert all(torch.equal(one.weights[name], value) for name, value in two.weights.items())
    _, method, _ = load_run(folder, installed())
    own = method.heads["main"].target
    found = own.clip.visual.state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    method.prepare({"image": torch.zeros(2, 1, 28, 28), "key": torch.arange(2)})
    capsys.readouterr()
    assert pretrain(tmp_path / "new", *more) == 2
    assert f"{file} does not exist" in capsys.readouterr().err


def test_sharded_and_whole_runs_agree(tmp_path, capsys):
    for name, strategy in (("whole", "auto"), ("sharded", "fsdp2")):
        assert pretrain(tmp_path / name, "--train.strategy", strategy) == 0, capsys.readouterr().err
    one, two = (checkpoint.load(checkpoint.newest(tmp_path / n)).weights for n in ("whole", "sharded"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_another_recipe_takes_it(tmp_path, capsys):
    """--use target=image:clip on MAE: visible units only, another grid, another decoder."""
    given = ["--use", "target=image:clip", "--target.model", "tiny", "--target.weights", "random"]
    given += ["--target.mean", "0.286", "--target.std", "0.353", "--train.epochs", "0.005"]
    code = main(["pretrain", "mae-vit-tiny", "--twin", "--out", str(tmp_path), "--quiet", *given], plugin="image")
    assert code == 0, capsys.readouterr().err


def test_the_recipe_has_the_papers_numbers():
    run = load_recipe("image:mvp-vit-base", installed())
    options = {role: part.options for role, part in run.parts.items()}
    assert run.parts["masker"].cls(options["masker"]).count(Layout.on_grid(14, 14)) == 75
    assert (options["target"].model, options["target"].loss, options["target"].projected) == (
        "ViT-B-16",
        "cosine",
        True,
    )
    assert run.parts["encoder"].name == "core:beit"
    assert run.train.epochs == 300
    method = build_method(run)
    assert method.heads["main"].target.size == 512
    assert isinstance(method.tokenizer, ImagePatchTokenizer)


def test_pixels_that_are_named_otherwise():
    """The picture is the tokenizer's modality, as in a run of several."""
    own = tokenizer(modality="rgb")
    teacher, x = target(own), normalised(pixels(2))
    found = teacher.make({"rgb": x}, own.split({"rgb": x}), everything(2, own))
    same = tokenizer()
    assert torch.equal(found, target(same).make({"image": x}, same.split({"image": x}), everything(2, same)))


def test_every_target_has_a_contract():
    regions = "image:region-contrast"  # reads places of views: its rules are tested one by one in test_maskco.py
    assert uncovered("targets", globals().values(), "image") == [regions]
