"""``python -m mim_image``: the same as the ``mim-image`` command, for launchers such as torchrun."""

import sys

from mim_image.plugin import main

sys.exit(main())
