"""A third party's plugin on a modality that mim-core has never heard of, installed for real."""

import ast
import json
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1] / "example_plugin/mim-audio"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def audio(environment, tmp_path_factory):
    """A copy of the project, installed; the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("audio") / "mim-audio"
    for path in PROJECT.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            (folder / path.relative_to(PROJECT)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(PROJECT)).write_bytes(path.read_bytes())
    environment.install(folder)
    return folder


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_method_takes_one_file_of_sixty_lines():
    text = (PROJECT / "mim_audio/method.py").read_text()
    assert text.count("\n") <= 60
    assert "class FeaturePrediction(Method)" in text
    names = [node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith("mim_audio")], "it needs no other file of the plugin"


def test_it_is_seen(audio, environment, tmp_path):
    shown = environment.run("mim-core plugins", tmp_path, MIM_CORE_STRICT="1").stdout
    row = " ".join(next(line for line in shown.splitlines() if line.startswith("audio ")).split())
    assert row == "audio mim-audio 0.4.0 1 tokenizer, 1 masker, 1 method, 2 recipes, 1 data source"


def test_it_passes_its_own_tests(audio, environment):
    assert " passed" in environment.run("pytest -q -p no:cacheprovider", audio, MIM_CORE_STRICT="1").stdout


@pytest.mark.parametrize("recipe", ["mae-tiny", "features-tiny"])
def test_it_trains(audio, environment, tmp_path, recipe):
    environment.run(f"mim-audio pretrain {recipe} --twin --quiet --out run", tmp_path)
    found = losses(tmp_path / "run")
    assert len(found) == 20
    assert sum(found[-3:]) < 0.97 * sum(found[:3])
    about = tomllib.loads((tmp_path / "run/recipe.toml").read_text())
    assert about["plugins"]["mim-audio"] == "0.4.0"
    assert (tmp_path / "run/report.html").stat().st_size > 10_000


def test_other_parts_fit(audio, environment, tmp_path):
    """Core's maskers work on spectrograms, the new masker under the other method, and what cannot fit says why."""
    environment.run("mim-audio pretrain mae-tiny --twin --quiet --use masker=core:block --train.epochs 0.1", tmp_path)
    refused = environment.run("mim-audio pretrain mae-tiny --twin --masker.span 3 --dry-run", tmp_path, code=2)
    assert "masker (audio:time-spans): spans of 3 do not divide 16 units of time" in refused.stderr
    refused = environment.run(
        "mim-core pretrain image:mae-vit-tiny --twin --use data=audio:sounds --dry-run", tmp_path, 2
    )
    assert "data (audio:sounds): sounds are spectrograms; the tokenizer asks for image" in refused.stderr


def test_its_features_are_judged(audio, environment, tmp_path):
    """Twenty steps are too few to expect a good score; every row of the table must be there all the same."""
    environment.run("mim-audio pretrain mae-tiny --twin --quiet --out run", tmp_path)
    table = environment.run("mim-audio evaluate run --evaluate.on knn", tmp_path).stdout
    for row in ("majority class", "raw input", "untrained encoder", "pre-trained encoder"):
        assert row in table
