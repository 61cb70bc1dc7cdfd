"""Files of weights from anywhere, read without running what they may hold."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mim_core.errors import MimError, one_line
from mim_core.runs.state import StateError, read_json

SAVE = "Save the weights alone: torch.save(model.state_dict(), FILE); or as .safetensors."


CONFIG = "config.json"


class _Inert:
    """Stands for every class that a file names: whatever it is given, it becomes an empty dict. So no code of the
    file's runs."""

    def __new__(cls, *given: Any, **named: Any) -> Any:
        return OrderedDict()


def read_weights(path: Path) -> Mapping[str, Any]:
    """What a .safetensors file holds, or one of torch.save.

    Raises:
        MimError: It cannot be read, or not without running code.
    """
    try:
        if not path.is_file():
            raise MimError(f"{path} is no regular file.")
        content = load_file(path) if is_safetensors(path) else _unpickled(path)
    except MimError:
        raise
    except Exception as error:  # damaged files raise many kinds
        raise MimError(f"{path} cannot be read as weights: {reason_of(error)}") from error
    if not isinstance(content, Mapping):
        raise MimError(f"{path} holds a {type(content).__name__}, not weights by name. {SAVE}")
    return content


def is_safetensors(path: Path) -> bool:
    """Whether a file is of safetensors, by its name or by its first bytes: the length of its header, and a brace."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def reason_of(error: Exception) -> str:
    """Why a file of weights was refused, in one line. torch's own text for one that it does not trust advises to run
    its code; that is not repeated."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return f"it holds more than weights, and code in it is not run, or it is damaged. {SAVE}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it says that it holds more than this machine's memory"
    first = one_line(error)
    return f"{first[:200]} ..." if len(first) > 200 else first


def is_program(path: Path) -> bool:
    """Whether this is a program of TorchScript, whose weights are within code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _unpickled(path: Path) -> Any:
    """MAE, SimMIM and others keep settings beside the weights, as objects of their own classes: inert ones take their
    place. The format of before torch 1.6 does not list its classes, and may have none."""
    if is_program(path):
        raise MimError(f"{path} is a TorchScript program, which is code, and only weights are read. {SAVE}")
    known: list[Any] = []
    if zipfile.is_zipfile(path):
        known = [(_Inert, name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)]
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_sizes(folder: Path) -> dict[str, Any]:
    """What the ``config.json`` of a Hugging Face folder says; nothing where there is none.

    Raises:
        MimError: It is damaged.
    """
    path = folder / CONFIG
    try:
        sizes = read_json(path) if path.exists() else {}
        if not isinstance(sizes, dict):
            raise StateError(f"{CONFIG} holds no table of sizes")
        return sizes
    except StateError as error:
        raise MimError(f"{path} is damaged: {error}. Copy or download it again.") from error
