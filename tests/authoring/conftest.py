"""A fresh environment that sees this one's packages, in which plugin projects are installed for real."""

import os
import subprocess
import sysconfig
import venv

import pytest


class Environment:
    """A virtual environment without packages of its own, and a folder to work in."""

    def __init__(self, folder, loaded_python):
        self.loaded = loaded_python
        venv.create(folder / "venv", symlinks=True)
        self.bin = folder / "venv/bin"
        site = next(folder.glob("venv/lib/python*/site-packages"))
        # addsitedir follows the .pth files there too, which is how an editable install of the core is found
        (site / "dependencies.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        core = self.bin / "mim-core"  # what pip would have written beside the others
        core.write_text(f"#!{self.bin}/python\nimport sys\nfrom mim_core.cli import main\nsys.exit(main())\n")
        core.chmod(0o755)
        for name in ("pip", "pytest"):
            script = self.bin / name
            script.write_text(f'#!/bin/sh\nexec "{self.bin}/python" -m {name} "$@"\n')
            script.chmod(0o755)

    def run(self, command, cwd, code=0, together=False, **environ):
        """Runs a shell command with the environment's programs in front; returns what it wrote, both streams as one if
        so wished. Its own programs run in forks of a Python that has loaded torch."""
        env = {
            **os.environ,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.bin.parent),
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # as pip reads it: no isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "COLUMNS": "160",
            **environ,
        }
        env.pop("PYTHONPATH", None)
        env.pop("PYTEST_ADDOPTS", None)
        script = self.loaded.script(command, self.bin)
        if script is not None:
            more, arguments = script
            python = str(self.bin / "python")
            done = self.loaded.run(arguments, cwd, {**env, **more}, executable=python, together=together)
            assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
            return done
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT if together else subprocess.PIPE}
        done = subprocess.run(command, shell=True, cwd=cwd, env=env, text=True, timeout=900, **streams)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def install(self, project):
        """Installs a project in place; the environment's settings say to fetch nothing."""
        self.run("pip install --quiet --editable .", project)


@pytest.fixture(scope="module")
def environment(tmp_path_factory, loaded_python):
    return Environment(tmp_path_factory.mktemp("environment"), loaded_python)
