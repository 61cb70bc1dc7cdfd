"""For every test: one thread, and shape annotations checked at run time.

MIM_NO_SHAPE_CHECKS=1 leaves the checks out. Contracts that compile switch them off for that one check
(`mim_core.testing.unchecked`), because a tracer cannot look into the checker.
"""

import os

import torch

torch.set_num_threads(1)

if not os.environ.get("MIM_NO_SHAPE_CHECKS"):
    from jaxtyping import install_import_hook

    # before anything imports these packages; kept for the whole session
    install_import_hook(["mim_core", "mim_image"], "beartype.beartype")
