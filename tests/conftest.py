"""For tests of the core: a Python that starts quickly."""

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("loaded_python", Path(__file__).with_name("loaded_python.py"))
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)


@pytest.fixture(scope="session")
def loaded_python():
    """See tests/loaded_python.py."""
    with _MODULE.LoadedPython() as python:
        yield python
