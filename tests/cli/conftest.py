"""The command line inside this process, from an empty folder."""

from dataclasses import dataclass

import pytest
from mim_core.cli import main


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
