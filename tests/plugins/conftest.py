"""Plugins that are made up on the spot, and plugin projects that are announced as if pip had installed them."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from mim_core.host.loading import Candidate

TESTS = Path(__file__).parents[1]


@pytest.fixture
def plugin(monkeypatch):
    """``plugin("name", hook=function, ...)`` makes a module with these contents and returns what announces it."""

    def make(name, distribution=None, version="1.0", requires=(), module=None, **contents):
        path = module or f"fake_{distribution or name}".replace("-", "_")
        made = ModuleType(path)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, path, made)
        return Candidate(name, distribution or f"mim-{name}", version, path, tuple(requires))

    return make


class Session:
    """A Python whose path holds some plugin projects, each with the metadata that pip would have written."""

    def __init__(self, folder: Path, projects: tuple[Path, ...], loaded_python) -> None:
        self.loaded = loaded_python
        site, self.work = folder / "site", folder / "work"
        for made in (site, self.work):
            made.mkdir()
        for project in projects:
            about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
            folder = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
            folder.mkdir()
            needs = "".join(f"Requires-Dist: {text}\n" for text in about["dependencies"])
            (folder / "METADATA").write_text(
                f"Metadata-Version: 2.3\nName: {about['name']}\nVersion: {about['version']}\n{needs}"
            )
            points = about["entry-points"]["mim_core"].items()
            (folder / "entry_points.txt").write_text("[mim_core]\n" + "".join(f"{k} = {v}\n" for k, v in points))
        self.path = os.pathsep.join(map(str, [site, *projects]))

    def python(self, *arguments, fresh=False, **environ):
        """Runs Python and returns what became of it; a fresh one has loaded nothing."""
        env = {**os.environ, "PYTHONPATH": self.path, "OMP_NUM_THREADS": "1", **environ}
        if fresh:
            command = [sys.executable, *map(str, arguments)]
            return subprocess.run(command, env=env, cwd=self.work, capture_output=True, text=True, timeout=600)
        return self.loaded.run([*map(str, arguments)], self.work, env)

    def mim(self, *arguments, **environ):
        """Runs ``mim-core``."""
        return self.python("-m", "mim_core", *arguments, **environ)


@pytest.fixture
def session(tmp_path, loaded_python):
    """``session("broken_plugins/misspelt_hook", ...)``: projects below tests/."""

    def make(*projects):
        return Session(tmp_path, tuple(TESTS / project for project in projects), loaded_python)

    return make
