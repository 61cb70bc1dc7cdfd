"""docs/hooks.md is what the hookspecs say, and names every hook."""

import importlib.util
from pathlib import Path

import pytest
from mim_core.host import hookspecs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("hooks_page", ROOT / "tools/hooks_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(tool):
    assert tool.PAGE.read_text() == tool.page(), f"run: {tool.COMMAND}"


def test_every_hook_is_on_it_with_its_arguments(tool):
    text = tool.page()
    hooks = [name for name in vars(hookspecs) if name.startswith("mim_")]
    assert len(hooks) >= 16
    for name in hooks:
        assert f"\n### {name}\n" in text
        assert f"def {name}(" in text
    assert "def mim_metrics_read(run: Any, metrics: Any) -> None" in text
    assert text.count("```") % 2 == 0


def test_an_old_page_is_noticed(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "PAGE", tmp_path / "hooks.md")
    assert tool.main(["--check"]) == 1
    assert "Run: python tools/hooks_page.py" in capsys.readouterr().out
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    (tmp_path / "hooks.md").write_text(tool.page().replace("mim_diagnose", "mim_diagnosed"))
    assert tool.main(["--check"]) == 1
