"""Maps of other classes than those of the recipe: their number follows from the data."""

import shutil
from pathlib import Path

import mim_multimodal
import pytest
from mim_core import main

SAMPLE = Path(mim_multimodal.__file__).parent / "sample"
QUICK = ("--train.steps", "2", "--train.workers", "0", "--train.device", "cpu", "--quiet")


@pytest.fixture
def scenes(tmp_path):
    """Eight of the bundled frames, under a list of 20 classes."""
    root = tmp_path / "scenes"
    for name in ("rgb", "depth", "semseg"):
        source = SAMPLE / "train" / name
        for file in sorted(path for path in source.rglob("*") if path.is_file())[:8]:
            target = root / name / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    (root / "classes.txt").write_text("\n".join(f"class {i}" for i in range(20)))
    return root


@pytest.mark.slow
def test_the_number_of_classes_follows_from_the_data(scenes, tmp_path, capsys):
    command = ["pretrain", "multimodal:multimae-vit-tiny", "--data.root", str(scenes), *QUICK, "--dry-run"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "has 20 classes of maps: semseg.tokenizer.classes 20 in place of 14" in plan
    assert main([*command, "--semseg.tokenizer.classes", "14", "--out", str(tmp_path / "run")]) == 2
    assert "the data has 20 classes, and the tokenizer 14: --semseg.tokenizer.classes 20" in capsys.readouterr().err
