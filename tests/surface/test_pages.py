"""The pages: wrapped at 100 columns, and every link between them leads somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest
from mim_core.host.loading import installed

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("wrap_docs", ROOT / "tools/wrap_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_wrapped(tool, capsys):
    assert len(tool.pages()) > 15
    assert tool.main(["--check"]) == 0, capsys.readouterr().out


def test_wrapping_keeps_code_tables_and_items(tool):
    code = "```sh\n" + "x " * 80 + "\n```\n"
    table = "| a | " + "b " * 80 + "|\n"
    assert tool.page(code + "\n" + table) == code + "\n" + table
    item = "- " + "word " * 40
    assert all(line.startswith(("- word", "  word")) for line in tool.page(item).splitlines())
    assert tool.page(tool.page(item)) == tool.page(item)
    assert "`a b c`" in tool.page("x " * 47 + "`a b c` and more")


def test_every_import_format_is_among_the_published_weights():
    rows = [
        line.split("|")[1] for line in (ROOT / "docs/weights.md").read_text().splitlines() if line.startswith("| `")
    ]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - {"--format"}
    assert named == {entry.name for entry in installed().of_kind("importers")}


def test_links_lead_somewhere(tool):
    for page in tool.pages():
        for target in LINK.findall(page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
