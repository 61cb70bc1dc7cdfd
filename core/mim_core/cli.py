"""The command line: ``mim-core`` for all plugins, and each plugin's own script for its recipes. This file imports no
torch."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from mim_core.disk import of_the_disk
from mim_core.errors import MimError, RankError, first_rank, too_much, unknown
from mim_core.host.threads import sleep_where_busy
from mim_core.terminal import tell
from mim_core.training.signals import before_the_first_step, cleared_away
from mim_core.version import __version__

Command = Callable[[str, str | None, list[str]], int]
"""(program, plugin, arguments) -> exit code."""


COMMANDS = {
    "pretrain": ("mim_core.commands.pretrain:pretrain", "Pre-train an encoder: pretrain RECIPE --data.root FOLDER"),
    "finetune": ("mim_core.commands.finetune:finetune", "Train a run's encoder on labels, all of it: finetune RUN"),
    "evaluate": ("mim_core.commands.evaluate:evaluate", "Judge a run's features by k-NN and linear probes"),
    "show": ("mim_core.commands.show:show", "Write a run's report.html: curves, reconstructions, scores"),
    "embed": ("mim_core.commands.embed:embed", "Write the features of files, by a run: embed RUN FOLDER"),
    "predict": ("mim_core.commands.predict:predict", "Write what a run answers about files: predict RUN FOLDER"),
    "export": ("mim_core.commands.export:export", "Write a run's encoder for timm, transformers, torch or ONNX"),
    "import": ("mim_core.commands.import_weights:import_weights", "Make weights of another code base a run"),
    "bench": ("mim_core.commands.bench:bench", "Measure a recipe's training speed on this machine: bench RECIPE"),
    "recipes": ("mim_core.commands.installed:recipes", "List the recipes"),
    "plugins": ("mim_core.commands.installed:plugins", "List the plugins that are installed, and why one failed"),
    "list": ("mim_core.commands.installed:list_parts", "List parts of a kind: list maskers"),
    "describe": (
        "mim_core.commands.installed:describe",
        "Describe a recipe or a part, with its options: describe core:random",
    ),
    "new-plugin": (
        "mim_core.commands.new_plugin:new_plugin",
        "Write a plugin project to start from: new-plugin mim-NAME",
    ),
    "doctor": (
        "mim_core.commands.doctor:doctor",
        "Report your hardware and what is missing for a run",
    ),
}


OF_A_PLUGIN = (
    *("pretrain", "finetune", "evaluate", "show", "embed", "predict", "export", "import", "bench", "recipes", "doctor"),
)


LIGHT = ("recipes", "plugins", "list", "describe", "new-plugin", "doctor")
"""Commands that compute nothing."""


TRAIN = ("pretrain", "finetune")
"""Commands that train, and end with `signals.STOPPED` when a signal comes."""


def main(
    argv: Sequence[str] | None = None,
    plugin: str | None = None,
    more: Mapping[str, tuple[str, str]] | None = None,
    less: Sequence[str] = (),
) -> int:
    """Runs a command.

    Args:
        argv: Arguments after the program's name; the process's own by default.
        plugin: Restricts commands and recipes to those of one plugin.
        more: The plugin's own commands: name -> ("module:function", what it does).
        less: Commands that serve none of the plugin's runs.

    Returns:
        Exit code: 0, 1 when doctor found what stops any run, 2 for a mistake of the user's, 3 for a run that was
        stopped and can go on, 130 after Ctrl-C elsewhere, 128 + its number after another signal. A bug keeps its
        traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = "mim-core" if plugin is None else f"mim-{plugin}"
    of_a_plugin = [name for name in OF_A_PLUGIN if name not in less]
    known = COMMANDS if plugin is None else {**{name: COMMANDS[name] for name in of_a_plugin}, **(more or {})}
    try:
        code = _run(program, plugin, arguments, known)
        sys.stdout.flush()  # here, where a reader that is gone is no error
        return code
    except MimError as error:
        if isinstance(error, RankError) or first_rank():  # what all ranks meet, one says
            tell(f"{program}: error: {error}", error=True)
        return 2
    except SystemExit as end:  # tyro, after --help or a wrong option
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        tell(f"{program}: interrupted", error=True)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        text = of_the_disk(error) or too_much(error)
        if text is None:
            raise
        tell(f"{program}: error: {text}", error=True)
        return 2


def _run(program: str, plugin: str | None, arguments: list[str], known: Mapping[str, tuple[str, str]]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        tell(_help(program, known))
        return 0
    if arguments[0] in ("-V", "--version"):
        tell(f"{program} {__version__}" if plugin is None else f"{program} (mim-core {__version__})")
        return 0
    if arguments[0] in known:
        own = known[arguments[0]] != COMMANDS.get(arguments[0])
        text = _help_of(program, plugin, arguments, known[arguments[0]][0] if own else None)
        if text is not None:
            tell(text)
            return 0
    if arguments[0] not in LIGHT and "torch" not in sys.modules:
        sleep_where_busy()
    ends = before_the_first_step if arguments[0] in TRAIN else cleared_away
    with ends(program):  # from here on: importing torch takes seconds
        return _command(program, arguments[0], known)(program, plugin, arguments[1:])


def _help_of(program: str, plugin: str | None, arguments: list[str], reference: str | None) -> str | None:
    """What a command says of itself; ``reference`` is that of a plugin's own."""
    if "--help" not in arguments and "-h" not in arguments:
        return None
    from mim_core.commands.help import help_of_own, help_text

    if reference is not None:
        return help_of_own(program, arguments[0], reference)
    return help_text(program, plugin, arguments[0], arguments[1:])


def _command(program: str, name: str, known: Mapping[str, tuple[str, str]]) -> Command:
    if name not in known:
        raise unknown("command", name, known, f"See: {program} --help")
    module, _, function = known[name][0].partition(":")
    command: Command = getattr(importlib.import_module(module), function)
    return command


def _help(program: str, known: Mapping[str, tuple[str, str]]) -> str:
    lines = [f"usage: {program} COMMAND [OPTIONS]", "", "Masked modeling with replaceable parts.", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, (_, text) in known.items()]
    lines += ["", f"{program} COMMAND --help tells a command's options.", _first_run(program)]
    return "\n".join(lines)


def _first_run(program: str) -> str:
    """What to try first, with what is installed; nothing of it is imported."""
    from mim_core.host.loading import discover
    from mim_core.host.registry import EXTRAS

    if program != "mim-core":
        return f"A first run: {program} recipes"
    plugins = [candidate.name for candidate in discover()]
    if EXTRAS[0] in plugins:
        return f"A first run: mim-{EXTRAS[0]} pretrain mae-vit-tiny"
    if plugins:
        return f"What can be trained: {program} recipes"
    return f'No plugin is installed, and so no recipe. Try: pip install "mim-core[{EXTRAS[0]}]"'
