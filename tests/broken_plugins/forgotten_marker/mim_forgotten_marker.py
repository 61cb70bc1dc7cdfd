"""A plugin that marks one of its two hooks."""

from mim_core.hookspecs import hookimpl
from mim_core.registry import Card, Register


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Is called."""
    register(name="found", load="mim_forgotten_marker:Found", card=Card("Found."))


def mim_register_targets(register: Register) -> None:
    """Would never be called."""
    register(name="lost", load="mim_forgotten_marker:Lost", card=Card("Never found."))
