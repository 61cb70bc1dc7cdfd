"""Draws docs/reconstructions.png, the README's picture: input, masked, rebuilt, for a row of held-out samples.

Run: python tools/readme_picture.py runs/demo
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from mim_core.evaluation.reconstruction import held_out_samples, reconstruct
from mim_core.host.loading import installed
from mim_core.methods.build import make_source
from mim_core.methods.masked_autoencoder import MaskedAutoencoder
from mim_core.runs.load import load_run
from PIL import Image

SIDE, GAP = 56, 4


def main(folder: Path, count: int = 12) -> None:
    """Writes the picture."""
    run, method, _ = load_run(folder, installed())
    assert isinstance(method, MaskedAutoencoder)
    source = make_source(run, method)
    sample, _ = held_out_samples(source, count)
    (rebuilt,) = reconstruct(method, sample).values()
    sheet = Image.new("RGB", (count * (SIDE + GAP) - GAP, 3 * (SIDE + GAP) - GAP), "white")
    for row, values in enumerate((rebuilt.input, rebuilt.masked, rebuilt.rebuilt)):
        for column, item in enumerate(values):
            picture = Image.open(BytesIO(source.picture(rebuilt.modality, item).content)).convert("RGB")
            sheet.paste(picture.resize((SIDE, SIDE)), (column * (SIDE + GAP), row * (SIDE + GAP)))
    path = Path(__file__).parents[1] / "docs/reconstructions.png"
    sheet.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
