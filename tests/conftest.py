"""For every test: one thread, and shape annotations checked at run time.

MIM_NO_SHAPE_CHECKS=1 leaves the checks out. Contracts that compile switch them off for that one check
(`mim_core.testing.unchecked`), because a tracer cannot look into the checker.
"""

import os

import pytest
import torch

torch.set_num_threads(1)

# where a float is asked, an int will do, as PEP 484 has it
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

if not os.environ.get("MIM_NO_SHAPE_CHECKS"):
    from jaxtyping import install_import_hook

    # before anything imports these packages; it stays for the whole session
    install_import_hook(["mim_core", "mim_image", "mim_video", "mim_pointcloud", "mim_multimodal"], CHECKER)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Checks of the contracts that need a GPU get the marker ``gpu``; `mim_core.testing` does without pytest."""
    for item in items:
        if getattr(getattr(item, "function", None), "needs_gpu", False):
            item.add_marker(pytest.mark.gpu)
