"""Every recipe's small twin: 20 steps against its committed loss curve.

After a change that is meant to move a curve: MIM_WRITE_CURVES=1 pytest tests/flow/test_curves.py, and say why in the
commit.
"""

import json
import os
from pathlib import Path

import pytest
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.recipes.toml import from_toml
from mim_core.training.loop import start, train

PLUGINS = ("image", "video", "pointcloud", "multimodal")
"""Those of this repository that have recipes; one that is not installed has none here."""
CURVES = Path(__file__).parent / "curves"
RECIPES = [entry.full_name for plugin in PLUGINS for entry in installed().of_kind("recipes", plugin)]


def curve_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RECIPES)
def test_twin_follows_its_curve(name, tmp_path):
    run = start(load_recipe(name, installed(), twin=True), tmp_path, installed())
    assert train(run, quiet=True)
    losses = curve_of(tmp_path)
    path = CURVES / f"{name.replace(':', '.')}.json"
    if os.environ.get("MIM_WRITE_CURVES"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([round(loss, 6) for loss in losses]) + "\n")
    expected = json.loads(path.read_text())
    assert len(losses) == len(expected) == 20
    # versions of torch sum in other orders; what a change of the code moves is larger
    assert losses == pytest.approx(expected, rel=2e-3)
    text, made = (tmp_path / "recipe.toml").read_text(), run.config
    again = from_toml(text, installed())
    assert (again.parts, again.train, again.evaluate, again.recipe) == (
        made.parts,
        made.train,
        made.evaluate,
        made.recipe,
    )
    assert f"mim-{name.partition(':')[0]}" in text
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5]), "the twin does not learn"


def test_every_curve_has_its_recipe():
    plugins = {name.partition(":")[0] for name in RECIPES}
    written = {path.stem for path in CURVES.glob("*.json") if path.stem.partition(".")[0] in plugins}
    assert written == {name.replace(":", ".") for name in RECIPES}
