"""``python -m mim_video``: the same as the ``mim-video`` command, for launchers such as torchrun."""

import sys

from mim_video.plugin import main

sys.exit(main())
