"""House rules that a machine can check: small functions, names that hide nothing, no modality in the core."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("plugins/*/mim_*/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_stay_small(path):
    text = path.read_text()
    long = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 50
    ]
    assert not long, f"over 50 lines: {long}"


def test_no_file_hides_what_is_in_it():
    assert not [path for path in SOURCES if path.stem.rstrip("s") in ("util", "misc", "helper", "common")]


def test_the_core_names_no_modality():
    """Docstrings may give examples; code may not know."""
    words = {"image", "video", "points", "rgb", "depth_map", "semseg"}
    for path in ROOT.glob("core/mim_core/*.py"):
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert not names & words, f"{path.name}: {names & words}"


def test_no_lock_file_with_addresses():
    assert not [p for p in ROOT.glob("*") if p.name in ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock")]
