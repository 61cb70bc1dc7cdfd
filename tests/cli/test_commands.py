"""Every command answers, and what it says holds what it should."""

import re
import tomllib
from pathlib import Path

import pytest
from mim_core import __version__
from mim_core.cli import COMMANDS, OF_A_PLUGIN
from mim_core.host.kinds import KINDS
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.recipes.toml import from_toml, read_file, to_toml

RECIPES = [entry.full_name for entry in installed().of_kind("recipes")]


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(mim, command, flag):
    said = mim(command, flag)
    assert said.code == 0
    assert f"usage: mim-core {command}" in said.all
    if command in OF_A_PLUGIN:
        assert f"usage: mim-image {command}" in mim(command, flag, plugin="image").all


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_top_level_help_names_every_command(mim, arguments):
    said = mim(*arguments)
    assert said.code == 0
    assert [line.split()[0] for line in said.out.split("commands:")[1].splitlines()[1 : 1 + len(COMMANDS)]] == list(
        COMMANDS
    )
    said = mim(*arguments, plugin="image")
    assert said.out.startswith("usage: mim-image COMMAND")
    assert "describe" not in said.out


def test_version(mim):
    assert mim("--version").out == f"mim-core {__version__}\n"
    assert mim("-V", plugin="image").out == f"mim-image (mim-core {__version__})\n"


def test_help_of_a_recipe_names_the_options_of_its_parts(mim):
    said = mim("pretrain", "mae-vit-tiny", "--help-all", plugin="image")
    assert said.code == 0
    for option in ("--masker.ratio", "--data.root", "--train.epochs", "--encoder.depth", "--out", "--use", "--dry-run"):
        assert option in said.out
    assert "Share of units that is hidden. (default: 0.75)" in said.all
    said = mim("pretrain", "mae-vit-tiny", "--use", "masker=block", "--help-all")
    assert "--masker.aspect" in said.out
    assert "--masker.masks" not in said.out


@pytest.mark.parametrize("kind", KINDS)
def test_list_every_kind(mim, kind):
    names = [entry.full_name for entry in installed().of_kind(kind)]
    assert names
    for asked in (kind, KINDS[kind]):
        said = mim("list", asked)
        assert said.code == 0
        assert [line.split()[0] for line in said.out.splitlines()[1:] if line[0] != " "] == names


def test_recipes_of_a_plugin(mim):
    for plugin in ("image", "video", "pointcloud", "multimodal"):
        said = mim("recipes", plugin=plugin)
        own = [name for name in RECIPES if name.startswith(f"{plugin}:")]
        assert own
        *listed, last = [line for line in said.out.splitlines()[1:] if line[0] != " "]
        assert last.startswith("Recipes that train on labels, ")
        assert last.endswith("mim-core list finetunings")
        assert [line.split()[0] for line in listed] == own


@pytest.mark.parametrize("entry", installed().entries, ids=lambda entry: f"{entry.kind}-{entry.full_name}")
def test_describe_every_entry(mim, entry):
    said = mim("describe", entry.full_name)
    assert said.code == 0, said
    assert f"{entry.full_name} {KINDS[entry.kind]}, from mim-" in said.all
    assert " ".join(entry.card.summary.split()) in said.all
    if entry.kind == "recipes":
        assert f"pretrain {entry.name} --data.root FOLDER" in said.all


def test_describe_shows_whole_types_and_choices(mim):
    said = mim("describe", "image:images")
    assert "crop tuple[float, float] [0.2, 1.0] Random resized crop" in said.all
    assert "mean tuple[float, ...] | None none" in said.all
    assert "rounding down | nearest | up up" in mim("describe", "core:random").all


def test_describe_a_bare_name_that_several_have(mim):
    said = mim("describe", "patch")
    assert "core:patch tokenizer" in said.all
    assert "image:patch tokenizer" in said.all


def test_plugins(mim):
    said = mim("plugins")
    assert "core mim-core" in said.all
    assert re.search(
        r"image mim-image 0.1.0 .*recipes, \d+ finetunings, 3 data sources, .*\d+ import formats",
        " ".join(said.all.split()),
    )
    assert mim("plugins", "--errors").out == "No plugin failed to load.\n"


# ---- recipes as files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("twin", [False, True], ids=["whole", "twin"])
def test_recipe_toml_round_trip(name, twin, tmp_path):
    text = to_toml(load_recipe(name, installed(), twin=twin), installed())
    assert to_toml(from_toml(text, installed()), installed()) == text
    path = tmp_path / "recipe.toml"  # and as a file that starts from the whole recipe
    path.write_text(text)
    assert to_toml(read_file(path, installed()), installed()) == text
    tables = tomllib.loads(text)
    used = {part["use"].partition(":")[0] for part in parts_of(tables)}
    assert tables["plugins"].keys() == {f"mim-{plugin}" for plugin in {*used, name.partition(":")[0]}}


def parts_of(tables):
    """Every table that names a part, however deep."""
    for value in tables.values():
        if isinstance(value, dict):
            if "use" in value:
                yield value
            yield from parts_of(value)


MINE = """
recipe = "mae-vit-tiny"
[masker]
use = "block"
ratio = 0.5
[tokenizer]
patch = [7, 7]
[train]
epochs = 0.0256
batch-size = 16
clip_grad = "none"
[target]
normalize = true
"""


def test_toml_file_with_overrides_and_another_part(mim, tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    said = mim("pretrain", "mine.toml", "--dry-run", "--masker.smallest", "2")
    assert said.code == 0, said
    assert "masker core:block" in said.all
    assert "16 on a grid of 4 x 4; 8 hidden, 8 into the encoder" in said.all
    assert "16 steps, each of 16 samples" in said.all
    assert "output runs/mine" in said.all
    run = read_file(tmp_path / "mine.toml", installed())
    assert run.parts["target"].options.normalize
    assert run.parts["masker"].name == "core:block"
    assert run.parts["masker"].options.smallest == 16  # the part's own default
    assert run.train.warmup_epochs == load_recipe("mae-vit-tiny", installed()).train.warmup_epochs


def test_the_runs_own_recipe_repeats_it(mim, tmp_path):
    assert mim("pretrain", "mae-vit-tiny", "--twin", "--out", "runs/first", "--quiet").code == 0
    again = ("pretrain", "runs/first/recipe.toml", "--out", "second", "--quiet")
    assert mim(*again).code == 0
    first, second = (Path(folder) for folder in ("runs/first", "second"))
    assert (first / "recipe.toml").read_text() == (second / "recipe.toml").read_text()
    weights = [f / "checkpoints/step-00000020/weights.safetensors" for f in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_runs_recipe_goes_on_in_its_own_folder(mim, tmp_path, monkeypatch):
    assert mim("pretrain", "mae-vit-tiny", "--twin", "--out", "runs/first", "--quiet").code == 0
    said = mim("pretrain", "runs/first/recipe.toml")
    assert said.code == 0
    assert "runs/first is complete: 20 steps" in said.err
    monkeypatch.chdir(tmp_path / "runs/first")
    assert "output runs/first" in mim("pretrain", "recipe.toml", "--dry-run").all


# ---- the plan --------------------------------------------------------------------------------------------------------


def kinds():
    """A recipe for each method with each kind of data; `contracts/test_methods.py` plans every kind of recipe."""
    parts = {recipe: load_recipe(recipe, installed(), twin=True).parts for recipe in reversed(RECIPES)}
    return list({(of["method"].name, of["data"].name): recipe for recipe, of in parts.items()}.values())


@pytest.mark.parametrize("recipe", kinds())
def test_dry_run_of_a_twin_writes_nothing(mim, tmp_path, recipe):
    said = mim("pretrain", recipe, "--twin", "--dry-run", "--out", "some[where]")
    assert said.code == 0
    assert list(tmp_path.iterdir()) == []
    for label in ("units", "parameters", "learning rate", "memory", "output some[where]"):
        assert label in said.all
    assert re.search(r"steps, each of [\d,]+ samples", said.all)


def test_dry_run_tells_the_sizes_of_mae(mim, tmp_path):
    whole = ("--data.root", "sample", "--train.batch-size", "4096")
    said = mim("pretrain", "mae-vit-base", *whole, "--dry-run", plugin="image")
    assert said.code == 0
    assert "196 on a grid of 14 x 14; 147 hidden, 49 into the encoder, 147 predicted" in said.all
    assert "encoder with tokenizer 85.6 M" in said.all  # ViT-B/16: 86.6 M with a classifier of 768 x 1000, less it
    assert "1 rank x 32 micro-batches of 128" in said.all
    assert "up to 0.0024" in said.all  # 1.5e-4 * 4096 / 256
    assert "3,906 steps, each of 4,096 samples; 1,600 epochs" in said.all
    assert list(tmp_path.iterdir()) == []


def test_use_swaps_a_part(mim):
    said = mim("pretrain", "mae-vit-tiny", "--twin", "--use=masker=core:block", "--masker.ratio", "0.5", "--dry-run")
    assert "masker core:block" in said.all
    assert "8 hidden" in said.all


# ---- a run, judged, shown and exported -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from mim_core.cli import main

    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["pretrain", "mae-vit-tiny", "--twin", "--quiet", "--out", str(folder)], plugin="image") == 0
    return folder


def test_pretrain_leaves_what_it_says(trained):
    judged = {"features", "scores.json", "encoder-timm.safetensors"}  # by other tests of this run
    assert {path.name for path in trained.iterdir()} - judged == {
        "checkpoints",
        "metrics.jsonl",
        "files.jsonl.gz",
        "recipe.toml",
        "report.html",
        ".lock",
    }
    report = (trained / "report.html").read_text()
    pictures = report.count("data:image/png;base64,")  # another test of this run may have asked for fewer
    assert pictures > 0
    assert pictures % 3 == 0
    assert "<svg" in report


def test_evaluate_show_export(mim, trained, few):
    said = mim("evaluate", trained, "--data-root", few, "--evaluate.draws", "2", "--evaluate.few-labels", "100")
    assert said.code == 0, said
    for row in ("majority class", "raw input", "untrained encoder", "pre-trained encoder"):
        assert row in said.out
    assert "score k-NN linear linear, 100 labels" in said.all
    assert "300 labelled training samples, 100 test samples, 10 classes" in said.all
    assert not (trained / "scores.json").exists(), "scores on other data are not the run's own"
    (trained / f"scores-{few.name}.json").rename(trained / "scores.json")
    said = mim("show", trained, "--samples", "2")
    assert said.out.strip() == str(trained / "report.html")
    assert "pre-trained encoder" in (trained / "report.html").read_text()
    said = mim("export", trained, "--out", "encoder.safetensors")
    assert said.code == 0
    assert Path("encoder.safetensors").stat().st_size > 10_000
    assert "timm" in said.out


def test_mistakes_in_evaluate(mim, trained):
    for arguments, said in {
        ("--on", "knnn"): "Unknown evaluation 'knnn'. Did you mean 'knn'?",
        ("--evaluate.pol", "mean"): "--evaluate.pool",
        ("--evaluate.draws", "0"): "'draws' must be at least 1",
        ("--data-root", "nowhere"): "nowhere does not exist",
    }.items():
        answer = mim("evaluate", trained, *arguments)
        assert answer.code == 2, answer
        assert said in answer.all
        assert "Traceback" not in answer.all


def test_init_starts_from_a_run(mim, trained):
    said = mim("pretrain", "mae-vit-tiny", "--twin", "--init", trained, "--out", "next", "--quiet")
    assert said.code == 0, said
    wide = mim("pretrain", "mae-vit-base", "--twin", "--init", trained, "--out", "wide", "--quiet")
    assert wide.code == 2
    assert "its encoder does not fit this recipe's" in wide.err
    assert not Path("wide").exists()


def test_list_without_a_kind_counts_all(mim):
    said = mim("list").out.splitlines()
    assert [line.split()[0] for line in said[1 : 1 + len(KINDS)]] == list(KINDS)
    for kind, line in zip(KINDS, said[1:], strict=False):
        assert int(line.split()[1]) == len(installed().of_kind(kind))


def test_what_is_listed_fits_80_columns(mim):
    for command in (["list"], ["plugins"], ["recipes"], ["list", "recipes"], ["describe", "core:block"]):
        assert max(map(len, mim(*command).out.splitlines())) <= 80, command
