"""Makes the sample that mim-image ships: the first 10,000 training and 2,000 test images of Fashion-MNIST, in the
original order and format.

Source: Debian's package dataset-fashion-mnist (apt-get install dataset-fashion-mnist). Licence: MIT, copied beside the
sample. Run: python tools/samples/fashion_mnist.py [FOLDER WITH THE FOUR idx.gz FILES]
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

SOURCE = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).parents[2] / "plugins/image/mim_image/sample"


def shorten(name: str, count: int) -> None:
    """Writes the first ``count`` items of an idx file."""
    content = gzip.decompress((SOURCE / name).read_bytes())
    axes = content[3]
    sizes = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    item = 1
    for size in sizes[1:]:
        item *= size
    start = 4 + 4 * axes
    head = content[:4] + struct.pack(f">{axes}I", count, *sizes[1:])
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / name).write_bytes(gzip.compress(head + content[start : start + count * item], 9, mtime=0))


for prefix, count in (("train", 10_000), ("t10k", 2_000)):
    shorten(f"{prefix}-images-idx3-ubyte.gz", count)
    shorten(f"{prefix}-labels-idx1-ubyte.gz", count)
