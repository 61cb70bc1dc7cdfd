"""Every Python block of README.md, docs/python.md and docs/new-files.md runs, in order, beside a small run; what a
comment behind ``print`` says is what is printed, where it starts like a value."""

import re
from pathlib import Path

import pytest
import torch
from mim_core.cli import main
from PIL import Image

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^print\((.*)\)  # ([^:;]+?)(?:[:;].*)?$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, unchecked):
    """A folder with a run of twenty steps in it."""
    folder = tmp_path_factory.mktemp("pages")
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", "--quiet", "--out", str(folder / "runs/x")]) == 0
    return folder


@pytest.fixture(scope="module")
def asked(folder):
    """What docs/new-files.md has made before its first block of Python."""
    short = ["--quiet", "--train.epochs", "0.02", "--train.warmup-epochs", "0"]
    assert main(["finetune", str(folder / "runs/x"), *short]) == 0
    (folder / "photos").mkdir()
    for number in range(2):
        Image.new("L", (30, 30), 40 * number).save(folder / "photos" / f"{number}.png")
    assert main(["export", str(folder / "runs/x"), "--to", "torch"]) == 0
    assert main(["embed", str(folder / "runs/x"), str(folder / "photos"), "--out", str(folder / "features.npz")]) == 0


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/new-files.md"])
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
