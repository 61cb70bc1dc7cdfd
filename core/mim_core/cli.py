"""The command line: ``mim-core`` for all plugins, and each plugin's own script for its recipes. This file imports no
torch."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from mim_core.errors import MimError, RankError, unknown
from mim_core.version import __version__

COMMANDS = {
    "pretrain": ("running", "Pre-train an encoder: pretrain RECIPE --data.root FOLDER"),
    "evaluate": ("judging", "Judge a run's features by k-NN and linear probes"),
    "show": ("judging", "Write a run's report.html: curves, reconstructions, scores"),
    "export": ("judging", "Write a run's encoder for timm"),
    "bench": ("measuring", "Measure a recipe's training speed on this machine: bench RECIPE"),
    "recipes": ("listing", "List the recipes"),
    "plugins": ("listing", "List the plugins that are installed, and why one failed"),
    "list": ("listing", "List parts of a kind: list maskers"),
    "describe": ("listing", "Describe a recipe or a part, with its options: describe core:random"),
    "doctor": ("diagnosing", "Say what this machine has, what is missing, and what that means for a run"),
}
OF_A_PLUGIN = ("pretrain", "evaluate", "show", "export", "bench", "recipes", "doctor")


def main(argv: Sequence[str] | None = None, plugin: str | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments after the program's name; the process's own by default.
        plugin: Restricts commands and recipes to those of one plugin.

    Returns:
        Exit code: 0, 1 when doctor found what stops any run, 2 for a mistake of the user's, 3 for a run that was
        stopped and can go on, 130 after Ctrl-C elsewhere. A bug keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = "mim-core" if plugin is None else f"mim-{plugin}"
    names = list(COMMANDS) if plugin is None else list(OF_A_PLUGIN)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _say(_help(program, names))
        return 0
    if arguments[0] in ("-V", "--version"):
        _say(f"{program} {__version__}" if plugin is None else f"{program} (mim-core {__version__})")
        return 0
    try:
        return _command(program, arguments[0], names)(program, plugin, arguments[1:])
    except MimError as error:
        if isinstance(error, RankError) or os.environ.get("RANK", "0") == "0":  # what all ranks meet, one says
            print(f"{program}: error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 2
    except SystemExit as end:  # tyro, after --help or a wrong option
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command(program: str, name: str, names: list[str]) -> Callable[[str, str | None, list[str]], int]:
    if name not in names:
        raise unknown("command", name, names, f"See: {program} --help")
    module = importlib.import_module(f"mim_core.commands.{COMMANDS[name][0]}")
    command: Callable[[str, str | None, list[str]], int] = getattr(module, name if name != "list" else "list_parts")
    return command


def _help(program: str, names: list[str]) -> str:
    lines = [f"usage: {program} COMMAND [OPTIONS]", "", "Masked modeling with replaceable parts.", "", "commands:"]
    lines += [f"  {name:<10} {COMMANDS[name][1]}" for name in names]
    first = "mim-image pretrain mae-vit-tiny" if program == "mim-core" else f"{program} recipes"
    lines += ["", f"{program} COMMAND --help tells a command's options. A first run: {first}"]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text)  # noqa: T201
