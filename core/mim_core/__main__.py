"""``python -m mim_core``: the same as the ``mim-core`` command."""

import sys

from mim_core.cli import main

sys.exit(main())
