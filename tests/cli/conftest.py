"""The command line inside this process, from an empty folder."""

from dataclasses import dataclass

import numpy as np
import pytest
from mim_core.cli import main
from PIL import Image

SHORT = ("--quiet", "--train.warmup-epochs", "0", "--train.workers", "0")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        """Both streams, line breaks of boxes and tables taken out."""
        return " ".join((self.out + self.err).replace("│", " ").split())


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A run of two steps on 20 small pictures, of the classes round and square."""
    root = tmp_path_factory.mktemp("small")
    for number in range(20):
        path = root / "data" / ("round", "square")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(values).save(path)
    start = ["pretrain", "image:mae-vit-tiny", "--twin", "--train.steps", "2", "--out", str(root / "run")]
    assert main([*start, *SHORT, "--data.root", str(root / "data")]) == 0
    return root / "run"


@pytest.fixture(scope="session")
def small_classifiers(small_run):
    """It was fine-tuned on the classes: in finetune by the mean of its units, in prefix by its class token."""
    some = [*SHORT, "--train.epochs", "2", "--train.batch-size", "8"]
    assert main(["finetune", str(small_run), *some]) == 0
    assert main(["finetune", str(small_run), *some, "--method.pool", "prefix", "--out", f"{small_run}/prefix"]) == 0
    return small_run


@pytest.fixture
def mim(tmp_path, monkeypatch, capsys):
    """``mim("list", "maskers")`` runs mim-core; ``mim(..., plugin="image")`` mim-image."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, plugin=None):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments], plugin=plugin)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture
def refused(mim):
    """Runs a command that must fail as a user's mistake: exit code 2, one message, no traceback, nothing written."""

    def run(*arguments, plugin=None):
        said = mim(*arguments, plugin=plugin)
        assert said.code == 2, said
        assert "Traceback" not in said.all
        assert said.out == ""
        assert said.all.count("error: ") + said.all.count("For full helptext") == 1, said.err
        assert len(said.err.splitlines()) <= 25
        return said.all

    return run


@pytest.fixture
def few(first_pictures):
    """The first 300 + 100 images of the bundled sample, as a folder of idx files."""
    return first_pictures(300, 100)
