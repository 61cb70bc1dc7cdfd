"""A plugin with the name of another."""

from mim_core.host.hookspecs import hookimpl
from mim_core.host.registry import Register


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Would take the other's place."""
    register(name="checker", load="mim_same_name:Other", summary="Another checker.")
