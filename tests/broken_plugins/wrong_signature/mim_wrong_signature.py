"""A plugin whose hook takes an argument that it is not given."""

from mim_core.host.hookspecs import hookimpl
from mim_core.host.registry import Register


@hookimpl
def mim_register_maskers(register: Register, colour: str) -> None:
    """Cannot be called."""
