"""A plugin with a letter missing in the name of its hook."""

from mim_core.host.hookspecs import hookimpl
from mim_core.host.registry import Register


@hookimpl
def mim_register_masker(register: Register) -> None:
    """Would never be called."""
    register(name="lost", load="mim_misspelt_hook:Lost", summary="Never found.")
