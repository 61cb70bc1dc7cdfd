"""A plugin that marks one of its two hooks."""

from mim_core.host.hookspecs import hookimpl
from mim_core.host.registry import Register


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Is called."""
    register(name="found", load="mim_forgotten_marker:Found", summary="Found.")


def mim_register_targets(register: Register) -> None:
    """Would never be called."""
    register(name="lost", load="mim_forgotten_marker:Lost", summary="Never found.")
