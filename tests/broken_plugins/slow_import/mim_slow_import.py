"""A plugin that does its work while it is imported."""

import time

from mim_core.host.hookspecs import hookimpl
from mim_core.host.registry import Register

time.sleep(2.2)


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Works, once it is there."""
    register(name="late", load="mim_core.parts.masker:RandomMasker", summary="Comes late.")
