"""``python -m mim_pointcloud``: the same as the ``mim-pointcloud`` command, for launchers such as torchrun."""

import sys

from mim_pointcloud.plugin import main

sys.exit(main())
