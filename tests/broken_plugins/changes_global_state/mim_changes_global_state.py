"""A plugin that sets the process up as it likes it."""

import logging
import os
import random
import sys

from mim_core.hookspecs import hookimpl
from mim_core.registry import Register

os.environ["MIM_EXAMPLE_NEW"] = "a secret"
os.environ["MIM_EXAMPLE_SET"] = "changed"
sys.path.insert(0, "/nowhere/vendored")
random.seed(0)
logging.basicConfig(level=logging.DEBUG)


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Works all the same."""
    register(name="polite", load="mim_core.masker:RandomMasker", summary="Comes with side effects.")
