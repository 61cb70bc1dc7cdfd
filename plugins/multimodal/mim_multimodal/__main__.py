"""``python -m mim_multimodal``: the same as the ``mim-multimodal`` command, for launchers such as torchrun."""

import sys

from mim_multimodal.plugin import main

sys.exit(main())
