"""docs/parts.md is what the docstrings say, and names what parts inherit, get and give."""

import importlib.util
from pathlib import Path

import mim_core
import pytest
from mim_core.host.kinds import KINDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("parts_page", ROOT / "tools/parts_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(tool):
    assert tool.PAGE.read_text() == tool.page(), f"run: {tool.COMMAND}"


def test_every_kind_of_part_is_on_it(tool):
    text = tool.page()
    for kind in set(KINDS) - {"data", "recipes", "finetunings", "evaluations", "importers", "exporters"}:
        assert f"\n### {kind.removesuffix('s').capitalize()}\n" in text
    assert "\n### DataSource\n" in text
    assert "make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Any" in text
    assert "- `needs_scores`: " in text
    assert text.count("```") % 2 == 0


def test_all_of_it_is_at_the_front_door(tool):
    names = [name for names in tool.SECTIONS.values() for name in names]
    assert set(names) <= set(mim_core.__all__)
    assert len(names) == len(set(names))


def test_an_old_page_is_noticed(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "PAGE", tmp_path / "parts.md")
    assert tool.main(["--check"]) == 1
    assert "Run: python tools/parts_page.py" in capsys.readouterr().out
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    (tmp_path / "parts.md").write_text(tool.page().replace("needs_teacher", "wants_teacher"))
    assert tool.main(["--check"]) == 1
