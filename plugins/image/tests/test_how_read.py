"""What docs/new-files.md says of how a photo becomes an input gives what evaluation sees, to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mim_image.data import Images
from PIL import Image, ImageOps

PAGE = Path(__file__).parents[3] / "docs/new-files.md"


@pytest.mark.parametrize("size", [(160, 120), (117, 161), (96, 96), (40, 70)])
def test_the_documented_steps(tmp_path, size):
    block = next(part for part in PAGE.read_text().split("```") if "def photo(" in part)
    names = {}
    exec(block.removeprefix("python\n"), names)
    rng = np.random.default_rng(0)
    for place in ("train/a", "train/b", "test/a", "test/b"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / "x.png")
    source = Images(Images.Config(root=tmp_path, evaluate_crop=0.875, mean=(0.5,) * 3, std=(0.25,) * 3),
                    {"image": (3, 96, 80)})  # fmt: skip
    labelled = source.labelled("test")
    seen = source.finish({"image": labelled.items[0]["image"][None]})["image"][0]
    about = source.how_read()
    assert about["interpolation"] == "bicubic"
    wanted = names["photo"](tmp_path / "test/a/x.png", 96, 80, about["crop_pct"], np.float32(0.5), np.float32(0.25))
    torch.testing.assert_close(seen, torch.from_numpy(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "turn"), [((90, 60), 1), ((90, 60), 6), ((28, 28), 1)])
def test_the_part_of_a_picture_that_is_shown_is_known(tmp_path, size, turn):
    """Cut out of the upright picture and resized by Pillow alone, it is what is shown."""
    ramp = np.linspace(0, 255, size[0])[None] * np.linspace(0.3, 1, size[1])[:, None]
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    plain = Images(Images.Config(root=tmp_path, evaluate_crop=0.8), {"image": (1, 28, 28)}).plain()
    left, top, width, height = plain.boxes(0)
    with Image.open(tmp_path / "a.png") as image:
        upright = ImageOps.exif_transpose(image)
    box = (left, top, left + width, top + height)
    assert min(left, top) >= 0
    assert box[2] <= upright.width
    assert box[3] <= upright.height
    again = np.asarray(upright.resize((28, 28), Image.Resampling.BICUBIC, box=box), np.float64)
    np.testing.assert_allclose(plain.items[0]["image"][0].numpy(), again, rtol=0, atol=2)
