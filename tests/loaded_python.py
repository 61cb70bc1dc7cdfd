"""A Python that has loaded torch and timm, and forks for each command, which saves these imports.

    with LoadedPython() as python:
        done = python.run(["-m", "mim_core", "plugins"], cwd=folder, env=os.environ)

A command finds its own environment, working folder, paths, streams and exit code, and none of this project's modules
loaded. It leads a session of its own, and may be killed and signalled. What it does not show is an import that torch or
timm happen to do before it; tests/packaging starts Pythons that have loaded nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any


class Started:
    """A command that runs, as `subprocess.Popen` has it. What it writes is kept in files until it has ended.

    Attributes:
        args: What ``python`` was given.
        pid: Its process, which leads a session of its own.
        returncode: None while it runs.
    """

    def __init__(self, arguments: Sequence[str], pipe: int, out: IO[bytes], err: IO[bytes]) -> None:
        self.args, self.returncode = list(arguments), None
        self._pipe, self._out, self._err = pipe, out, err
        self.pid = self._number()
        assert self.pid, "the Python that forks has ended"

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._pipe)

    def _number(self) -> int:
        text = b""
        while len(text) < 8 and (some := os.read(self._pipe, 8 - len(text))):
            text += some
        return int.from_bytes(text, "big")

    def poll(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it runs."""
        if self.returncode is None and select.select([self._pipe], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(self._number())
        return self.returncode

    def wait(self, timeout: float = 900) -> int:
        """The same once it has ended.

        Raises:
            subprocess.TimeoutExpired: It runs longer than these seconds, and still does.
        """
        if self.returncode is None and not select.select([self._pipe], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float = 900) -> tuple[str, str]:
        """What it wrote to both streams, once it has ended.

        Raises:
            subprocess.TimeoutExpired: As `wait` does.
        """
        self.wait(timeout)
        out, err = (self._read(stream) for stream in (self._out, self._err))
        return out, "" if self._out is self._err else err

    @staticmethod
    def _read(stream: IO[bytes]) -> str:
        stream.seek(0)
        return stream.read().decode()

    def send_signal(self, number: int) -> None:
        """To this process alone, unless it has ended; nobody keeps its number then."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class LoadedPython:
    """Starts the Python that forks; it ends with the block."""

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

    def start(
        self,
        arguments: Sequence[object],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        executable: str = sys.executable,
        together: bool = False,
    ) -> Started:
        """Starts what ``python ARGUMENTS`` would run.

        Args:
            arguments: As of ``python``: ``-m MODULE``, ``-c CODE`` or a file, and what follows.
            cwd: The working folder; this process's where None.
            env: The environment; this process's where None.
            executable: A Python whose packages are found before those of this one, such as of a virtual environment.
            together: Both streams as one.
        """
        words = [str(word) for word in arguments]
        env = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env)
        job = {"arguments": words, "cwd": str(cwd or Path.cwd()), "env": env, "executable": executable}
        out = tempfile.TemporaryFile()  # noqa: SIM115 - `Started` has them
        err = out if together else tempfile.TemporaryFile()  # noqa: SIM115
        ours, theirs = os.pipe()
        text = json.dumps(job).encode()
        with open(os.devnull) as nothing, open(theirs, "wb"):
            streams = [nothing.fileno(), out.fileno(), err.fileno(), theirs]
            socket.send_fds(self.socket, [len(text).to_bytes(8, "big")], streams)
            self.socket.sendall(text)
        return Started(words, ours, out, err)

    def run(
        self, arguments: Sequence[object], *given: Any, timeout: float = 900, **named: Any
    ) -> subprocess.CompletedProcess[str]:
        """Starts it and waits for its end.

        Args:
            arguments: As of `start`, and so are all others but the last.
            given: See there.
            timeout: Seconds; the command is killed after them.
            named: See there.

        Raises:
            subprocess.TimeoutExpired: It was killed.
        """
        started = self.start(arguments, *given, **named)
        try:
            out, err = started.communicate(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            raise
        return subprocess.CompletedProcess(started.args, started.wait(), out, err)

    def start_ranks(self, arguments: Sequence[object], count: int = 2, cwd: Path | None = None) -> list[Started]:
        """Starts it in several ranks, one by one as srun does it.

        Args:
            arguments: As of `start`.
            count: How many ranks.
            cwd: See there.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
        envs = [{**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        return [self.start(arguments, cwd, env) for env in envs]

    def ranks(
        self, arguments: Sequence[object], count: int = 2, cwd: Path | None = None, timeout: float = 900
    ) -> list[subprocess.CompletedProcess[str]]:
        """Starts ranks and waits for them all.

        Args:
            arguments: As of `start_ranks`; and so are the others.
            count: See there.
            cwd: See there.
            timeout: Seconds; after them, all are killed.

        Raises:
            subprocess.TimeoutExpired: They were killed.
        """
        started = self.start_ranks(arguments, count, cwd)
        until = time.monotonic() + timeout
        try:
            said = [each.communicate(max(0.0, until - time.monotonic())) for each in started]
        finally:
            for each in started:
                each.kill()
        return [
            subprocess.CompletedProcess(each.args, each.wait(), *text) for each, text in zip(started, said, strict=True)
        ]

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
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        head, streams, _, _ = socket.recv_fds(link, 8, 4)
        if not head:
            return None
        size, text = int.from_bytes(head, "big"), b""
        while len(text) < size:
            text += link.recv(size - len(text))
        if os.fork() == 0 and _waited_for(streams.pop()):
            link.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, 64)
            return json.loads(text)
        for stream in streams:
            os.close(stream)


def _waited_for(pipe: int) -> bool:
    """Forks once more. True in the process that is to run the job. The other one writes that one's number to the pipe,
    and its status when it has ended, and ends itself."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.setsid()
        return True
    os.write(pipe, child.to_bytes(8, "big"))
    os.write(pipe, os.waitpid(child, 0)[1].to_bytes(8, "big"))
    os._exit(0)


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
