"""Every Python block of README.md and docs/python.md runs, in order, beside a small run called runs/x; what a comment
behind ``print`` says is what is printed, where it starts like a value."""

import re
from pathlib import Path

import pytest
import torch
from mim_core.cli import main

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^print\((.*)\)  # ([^:;]+?)(?:[:;].*)?$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run of twenty steps in it."""
    folder = tmp_path_factory.mktemp("pages")
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", "--quiet", "--out", str(folder / "runs/x")]) == 0
    return folder


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_every_block_runs(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    found = BLOCK.findall((ROOT / page).read_text())
    assert found
    names = {"__name__": "page"}
    with torch.random.fork_rng():
        for text in found:
            exec(compile(text, page, "exec"), names)
            for expression, said in PRINTED.findall(text):
                if re.match(r"\[|image:|runs/", said):
                    value = eval(expression, names)
                    shown = str(list(value)) if isinstance(value, torch.Size) else str(value)
                    assert shown == said, f"{page}: {expression}"
    capsys.readouterr()
