"""A Python that has loaded torch and timm, and forks for each command, which saves these imports.

    with LoadedPython() as python:
        done = python.run(["-m", "mim_core", "plugins"], cwd=folder, env=os.environ)

A command finds its own environment, working folder, paths, streams and exit code, and none of this project's modules
loaded. What it does not show is an import that torch or timm happen to do before it; tests/packaging starts Pythons
that have loaded nothing. A command that is to be killed or signalled gets a Python of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class LoadedPython:
    """Starts the Python that forks; it ends with the block.

    Commands run one after the other.
    """

    def __enter__(self) -> LoadedPython:
        self.socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.wait()

    def run(
        self,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        executable: str = sys.executable,
        together: bool = False,
        timeout: float = 900,
    ) -> subprocess.CompletedProcess[str]:
        """Runs what ``python ARGUMENTS`` would run.

        Args:
            arguments: As of ``python``: ``-m MODULE``, ``-c CODE`` or a file, and what follows.
            cwd: The working folder.
            env: The environment.
            executable: A Python whose packages are found before those of this one, such as of a virtual environment.
            together: Both streams as one.
            timeout: Seconds; the command is killed after them, and all others with it.
        """
        job = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "executable": executable}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
            text = json.dumps(job).encode()
            streams = [nothing.fileno(), out.fileno(), (out if together else err).fileno()]
            socket.send_fds(self.socket, [len(text).to_bytes(8, "big")], streams)
            self.socket.sendall(text)
            self.socket.settimeout(timeout)
            try:
                answer = self.socket.recv(8)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                raise
            out.seek(0)
            err.seek(0)
            code = os.waitstatus_to_exitcode(int.from_bytes(answer, "big"))
            return subprocess.CompletedProcess(arguments, code, out.read().decode(), err.read().decode())

    @staticmethod
    def script(command: str, folder: Path) -> tuple[dict[str, str], list[str]] | None:
        """What a line of a shell would run, if it is no more than one program of a virtual environment that is written
        in Python, with what is set before it: (variables, arguments of ``python``). None for all else.

        Args:
            command: The line.
            folder: The environment's programs.
        """
        words = shlex.split(command)
        variables = {}
        while words and words[0].partition("=")[0].isidentifier() and "=" in words[0]:
            name, _, variables[name] = words.pop(0).partition("=")
        if not words or any(sign in command for sign in "|&;<>$`*?"):
            return None
        if words[0] == "pytest":
            return variables, ["-m", *words]
        script = folder / words[0]
        if (
            not words[0].startswith("mim-")
            or not script.exists()
            or "python" not in script.read_text().partition("\n")[0]
        ):
            return None
        return variables, [str(script), *words[1:]]


# ---- the Python that forks -------------------------------------------------------------------------------------------


def _serve(link: socket.socket) -> dict[str, Any] | None:
    """Waits for jobs, and forks for each. Returns the job in the fork, and None where there are no more."""
    while True:
        head, streams, _, _ = socket.recv_fds(link, 8, 3)
        if not head:
            return None
        size, text = int.from_bytes(head, "big"), b""
        while len(text) < size:
            text += link.recv(size - len(text))
        child = os.fork()
        if child == 0:
            link.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, 64)
            return json.loads(text)
        for stream in streams:
            os.close(stream)
        status = os.waitpid(child, 0)[1]
        link.sendall(status.to_bytes(8, "big"))


def _become(job: dict[str, Any]) -> None:
    """Makes this process what a new Python would be."""
    import multiprocessing.spawn
    import site

    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    tempfile.tempdir = None
    sys.executable = job["executable"]
    multiprocessing.spawn.set_executable(sys.executable)
    home = Path(sys.executable).parents[1]
    before = list(sys.path[1:])
    sys.path[:] = [path for path in job["env"].get("PYTHONPATH", "").split(os.pathsep) if path] + before
    if str(home) != sys.prefix:
        sys.prefix = sys.exec_prefix = str(home)
        for packages in home.glob("lib/python*/site-packages"):
            sys.path[:] = [path for path in sys.path if "site-packages" not in path]
            site.addsitedir(str(packages))
    import importlib

    importlib.invalidate_caches()


def _run(arguments: list[str]) -> None:
    """What ``python ARGUMENTS`` runs."""
    import runpy

    if arguments[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(arguments[0]))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def main() -> None:
    link = socket.socket(fileno=int(sys.argv[1]))
    import matplotlib.figure  # noqa: F401
    import timm
    import torch

    assert timm
    assert torch.get_num_threads() == 1
    job = _serve(link)
    if job is not None:
        _become(job)
        _run(job["arguments"])


if __name__ == "__main__":
    main()
