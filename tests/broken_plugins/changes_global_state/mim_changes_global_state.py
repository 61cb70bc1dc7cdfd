"""A plugin that sets the process up as it likes it."""

import logging
import os
import random
import sys

from mim_core.host.hookspecs import hookimpl
from mim_core.host.registry import Register

os.environ["MIM_EXAMPLE_NEW"] = "a secret"
os.environ["MIM_EXAMPLE_SET"] = "changed"
sys.path.insert(0, "/nowhere/vendored")
random.seed(0)
logging.basicConfig(level=logging.DEBUG)


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Works all the same."""
    register(name="polite", load="mim_core.parts.masker:RandomMasker", summary="Comes with side effects.")
