"""export --to plain: a state_dict and a file of Python that needs torch alone give what the run gives."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from mim_core.cli import main
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop import plain
from mim_core.methods.build import build_method
from mim_core.methods.classifier import Classifier
from mim_core.parts.encoder import ViTEncoder
from mim_core.recipes.resolve import load_recipe
from mim_core.runs.load import load_run
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("unchecked")

ALONE = """
import importlib.util, json, sys
from safetensors.torch import load_file, save_file
for folder in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("model", folder + "/model.py")
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    model = module.Model().eval()
    model.load_state_dict(load_file(folder + "/model.safetensors"))
    found = model(**load_file(folder + "/inputs.safetensors")).detach()
    save_file({"found": found}, folder + "/found.safetensors")
print([name for name in sys.modules if name.split(".")[0] in ("mim_core", "timm") or name.startswith("mim_")])
"""


def method_of(recipe, **options):
    """A twin with weights that no two layers share, as trained ones are."""
    method = build_method(load_recipe(recipe, installed(), twin=True)).eval()
    return stirred(method)


def stirred(method):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in [*method.named_parameters(), *method.named_buffers()]:
            if value.is_floating_point() and not name.endswith("running_var"):
                value += 0.05 * torch.randn(value.shape, generator=generator)
    return method


def inputs_of(method, *given):
    tokenizer = method.tokenizer
    found = {}
    for name, shape in tokenizer.shapes.items():
        count = tokenizer.ids.get(name)
        values = torch.randn(3, *shape) if count is None else torch.randint(count, (3, *shape))
        if not given or name in given:
            found[name] = values
    return found


KINDS = [  # which modalities are given, or all; lines of the model and of what it needs beside
    ("image:mae-vit-tiny", (), 18, 0),
    ("video:videomae-vit-tiny", (), 16, 0),
    ("video:mae-st-vit-base", (), 18, 0),
    ("pointcloud:point-mae-vit-tiny", (), 20, 22),
    ("multimodal:multimae-vit-tiny", (), 24, 12),
    ("multimodal:multimae-vit-tiny", ("rgb",), 24, 12),
    ("multimodal:multimae-vit-tiny", ("depth", "semseg"), 24, 12),
    ("multimodal:points-depth-vit-tiny", (), 30, 22),
]


def lines_of(text):
    """Lines with something in them: of the model, and of classes before it."""
    model = text.index("class Model")
    first = text.find("class ")
    return tuple(sum(bool(line.strip()) for line in part.splitlines()) for part in (text[model:], text[first:model]))


def test_the_answers_are_the_runs_where_mim_core_is_not_imported(tmp_path):
    wanted = {}
    for number, (recipe, given, *lines) in enumerate(KINDS):
        method, folder = method_of(recipe), tmp_path / str(number)
        plain.export_plain(method, folder, {})
        assert lines_of((folder / "model.py").read_text()) <= tuple(lines), recipe
        inputs = inputs_of(method, *given)
        save_file(inputs, folder / "inputs.safetensors")
        with torch.no_grad():
            wanted[folder] = method.encode(inputs).pooled
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, wanted)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]", done.stderr
    for folder, value in wanted.items():
        found = load_file(folder / "found.safetensors")["found"]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)


def test_a_classifier_by_the_command(small_classifiers, capsys):
    run = small_classifiers / "finetune"
    assert main(["export", str(run), "--to", "plain"]) == 0
    printed = capsys.readouterr().out
    assert "model.load_state_dict" in printed
    folder = run / "plain"
    about = json.loads((folder / "about.json").read_text())
    assert about["classes"] == ["round", "square"]
    assert about["inputs"] == {"image": [1, 28, 28]}
    assert {"mean", "std", "recipe", "checkpoint"} <= about.keys()
    assert "model.load_state_dict" in (folder / "README.md").read_text()
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        wanted = load_run(run).method.eval().predict({"image": images})["class"]
    torch.testing.assert_close(opened(folder)(image=images), wanted, rtol=0, atol=1e-5)


def opened(folder):
    room = {"__name__": "model"}
    text = (folder / "model.py").read_text()
    assert {
        line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
    } == {"torch"}
    exec(text, room)
    model = room["Model"]().eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return torch.no_grad()(model)


def classifier(options, **encoder):
    """On patches of images."""
    tokenizer = method_of("image:mae-vit-tiny").tokenizer
    config = ViTEncoder.Config(width=32, depth=2, heads=2, **encoder)
    return stirred(Classifier(tokenizer, ViTEncoder(config, tokenizer.layout), Classifier.Config(classes=3, **options)))


@pytest.mark.parametrize(
    ("options", "encoder"),
    [
        ({"pool": "mean"}, {"class_token": False, "position": "learned"}),
        ({"pool": "prefix-max", "head": "mlp", "hidden": (16, 8)}, {"position_at": "blocks"}),
        ({"pool": "max", "head": "probe"}, {"layer_scale": 0.1, "qkv_bias": False}),
        ({"pool": "mean", "norm": "pooled"}, {"class_position": True}),
        ({"pool": "first"}, {"bias": False, "final_norm": False, "position": "none"}),
        ({"pool": "mean-max"}, {"position": "separable", "sees": "all"}),
    ],
)
def test_all_heads_and_positions(options, encoder, tmp_path):
    method = classifier(options, **encoder).eval()
    plain.export_plain(method, tmp_path, {})
    inputs = inputs_of(method)
    with torch.no_grad():
        wanted = method.predict(inputs)["class"]
    torch.testing.assert_close(opened(tmp_path)(**inputs), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("image:mcmae-tiny", "written for core:vit, and this encoder is a McmaeEncoder"),
        ("multimodal:4m-vit-tiny", "a BinTokenizer has no form in torch alone"),
        ("multimodal:vq-rgb-tiny", "this one gives codes"),
    ],
)
def test_what_has_no_such_form_is_named(recipe, words, tmp_path):
    with pytest.raises(MimError, match=rf"{words}.*--to torch holds any method"):
        plain.export_plain(method_of(recipe), tmp_path / "x", {})
    assert not (tmp_path / "x").exists()


def test_gated_blocks_are_named(tmp_path):
    with pytest.raises(MimError, match="other parts than attention and an MLP with GELU"):
        plain.export_plain(classifier({}, mlp="swiglu").eval(), tmp_path / "x", {})


def test_a_file_of_other_answers_is_not_written(tmp_path, monkeypatch):
    real = plain.plain_model

    def spoiled(method):
        text, weights = real(method)
        return text, {**weights, "norm.weight": 2 * weights["norm.weight"]}

    monkeypatch.setattr(plain, "plain_model", spoiled)
    with pytest.raises(MimError, match=r"gives other answers than the run, .* apart, and was not written"):
        plain.export_plain(method_of("image:mae-vit-tiny"), tmp_path / "x", {})
    assert not (tmp_path / "x").exists()


def test_units_of_the_users_own_are_named():
    method = method_of("image:mae-vit-tiny")
    method.tokenizer.plain = lambda: replace(type(method.tokenizer).plain(method.tokenizer), module="Unknown()")
    text, _ = plain.plain_model(method)
    assert "self.embed = Unknown()" in text
