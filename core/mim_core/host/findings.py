"""What a look at the machine found: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        topic: What was looked at.
        state: "ok", "missing" or "warning".
        text: What was found.
        means: Which choice follows for a run, or what to do.
        stops: Whether no run can start; ``doctor`` then ends with exit code 1.
    """

    topic: str
    state: Literal["ok", "missing", "warning"]
    text: str
    means: str = ""
    stops: bool = False


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]


def library(module: str, distributions: tuple[str, ...] = (), means: str = "", extra: str = "") -> Finding:
    """Whether an optional library is installed, looked up without importing it.

    Args:
        module: What is imported.
        distributions: Packages that bring it; the module's name by default.
        means: What the library is for.
        extra: Extra of mim-core that installs it, where there is one.
    """
    names = distributions or (module,)
    spec = find_spec(module)
    if spec is None or spec.origin is None:  # a folder of that name, such as ./wandb, is no library
        known = metadata.metadata("mim-core").get_all("Provides-Extra") or [] if extra else []
        what = f'"mim-core[{extra}]"' if extra in known else names[0]
        return Finding(module, "missing", "not installed", f"For {means}: pip install {what}" if means else "")
    return Finding(module, "ok", version_of(*names) or "installed, version not known", means)


def version_of(*distributions: str) -> str | None:
    """The version of the first of these that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
