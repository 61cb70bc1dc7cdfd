"""Image files of every kind that people have: read upright, whole, in 8 bits, with the channels that were asked for."""

import warnings

import numpy as np
import pytest
import torch
from mim_core.errors import BadSample
from mim_image.pixels import convert_mode
from PIL import Image


def colour_of(source, index=0):
    """The mean of each channel."""
    return source.read(index, 1)["image"].float().mean(dim=(1, 2)).tolist()


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png", "a.webp", "a.bmp", "a.gif", "a.tif", "deep/er/a.png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_formats_and_channels(photo, images, name, channels):
    photo(name)
    source = images(channels=channels)
    assert len(source) == 1
    assert source.name_of(0) == name
    image = source.read(0, 7)["image"]
    assert image.dtype == torch.uint8
    assert image.shape == (channels, 8, 8)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    expected = {1: [grey], 3: [200, 100, 50], 4: [200, 100, 50, 255]}[channels]
    assert colour_of(source) == pytest.approx(expected, abs=4)


def test_nested_mixed_and_hidden(photo, images, tmp_path):
    for name in ("z.png", "a/b/c/d.jpg", "a/b.webp", ".thumbnails/x.png", "._z.png", "a/.hidden/x.jpg"):
        photo(name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "clip.mp4").write_bytes(b"no picture")
    source = images()
    assert [source.name_of(i) for i in range(len(source))] == ["a/b.webp", "a/b/c/d.jpg", "z.png"]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (20000, 8), (8, 3000), (641, 479)])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_sizes(photo, images, size, ending):
    photo(f"x.{ending}", size=size)
    source = images(size=(12, 20))
    for key in range(4):
        image = source.read(0, key)["image"]
        assert image.shape == (3, 12, 20)
        assert image.float().mean(dim=(1, 2)).tolist() == pytest.approx([200, 100, 50], abs=4)


@pytest.mark.parametrize("size", [(1, 1), (20000, 8), (8, 3000), (640, 480), (20, 12), (12, 20)])
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_centre_crops_have_the_size(photo, images, size, share):
    for label in ("cat", "dog"):
        for i in range(5):
            photo(f"{label}/{i}.jpg", size=size)
    items = images(size=(12, 20), evaluate_crop=share).labelled("test").items
    assert items[0]["image"].shape == (3, 12, 20)


def test_grey(photo, images):
    photo("a.png", 90, mode="L")
    assert colour_of(images(channels=1)) == [90]
    assert colour_of(images(channels=3)) == [90, 90, 90]
    photo("a.png", 1, mode="1")
    assert colour_of(images(channels=1)) == [255]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257 * 90, 90), (65535, 255), (300, 300 / 257)])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, images, value, expected):
    Image.fromarray(np.full((16, 20), value, np.uint16)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode.startswith("I")
    assert colour_of(images(channels=1)) == pytest.approx([expected])
    assert colour_of(images(channels=3)) == pytest.approx([expected] * 3)


@pytest.mark.parametrize(
    ("ink", "colour"), [((255, 0, 0, 0), (0, 255, 255)), ((0, 255, 0, 0), (255, 0, 255)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_cmyk(photo, images, ink, colour):
    photo("a.jpg", ink, mode="CMYK")
    assert colour_of(images()) == pytest.approx(colour, abs=6)


def test_transparent_parts_become_white(photo, images):
    for mode, colour in (("RGBA", (200, 100, 50, 0)), ("LA", (90, 0))):
        photo("a.png", colour, mode=mode)
        assert colour_of(images()) == [255, 255, 255]
        assert colour_of(images(channels=1)) == [255]
    photo("a.png", (200, 100, 50, 0), mode="RGBA")
    assert colour_of(images(channels=4))[3] == 0
    photo("a.png", (200, 100, 50, 128), mode="RGBA")
    assert colour_of(images()) == pytest.approx([227, 177, 152], abs=1)
    photo("a.png", (200, 100, 50, 255), mode="RGBA")
    assert colour_of(images()) == [200, 100, 50]


def test_palettes_with_and_without_transparency(tmp_path, images):
    image = Image.new("P", (20, 16), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "a.png")
    assert colour_of(images()) == [200, 100, 50]
    image.save(tmp_path / "a.png", transparency=1)
    assert colour_of(images()) == [255, 255, 255]
    image.save(tmp_path / "a.png", transparency=0)
    assert colour_of(images()) == [200, 100, 50]
    rgb = Image.new("RGB", (20, 16), (10, 20, 30))
    rgb.save(tmp_path / "a.png", transparency=(10, 20, 30))
    assert colour_of(images()) == [255, 255, 255]


ORIENTATION = 0x0112
UPRIGHT = np.array([[10, 60, 110], [160, 210, 255]], np.uint8)  # two rows, three columns
STORED = {  # EXIF orientation -> how a camera stores the upright picture
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_pixel_by_pixel(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(convert_mode(image, 1)), UPRIGHT)


def test_exif_rotation_of_a_large_jpeg_that_is_decoded_small(tmp_path, images):
    pixels = np.zeros((400, 800, 3), np.uint8)
    pixels[:, :400, 0] = 250  # stored: red on the left; upright, after a quarter turn to the right: red above
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for label in ("cat", "dog"):
        for i in range(5):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.jpg", exif=exif, quality=95)
    image = images(size=(16, 16)).labelled("test").items[0]["image"][0].float()
    assert image[:6].mean() > 240
    assert image[10:].mean() < 10


def test_large_jpegs_are_decoded_small_but_not_too_small(tmp_path, images, monkeypatch):
    Image.effect_noise((2048, 2048), 60).save(tmp_path / "a.jpg", quality=95)
    sizes = []
    monkeypatch.setattr(
        "mim_image.data.convert_mode", lambda image, *rest: sizes.append(image.size) or convert_mode(image, *rest)
    )
    images(size=(64, 64), crop=(0.25, 1.0)).read(0, 1)  # a quarter of the area must still give 64 pixels: 128
    images(size=(224, 224), crop=(0.2, 1.0)).read(0, 1)  # 224 / sqrt(0.2) = 501
    assert sizes == [(256, 256), (512, 512)]


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.png", b"I am a text."), ("x.jpg", b""), ("x.webp", b"RIFF\x00\x00\x00\x00WEBP"), ("x.gif", b"GIF89a")],
)
def test_files_that_are_no_images_are_named(photo, images, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    source = images()
    with pytest.raises(BadSample) as error:
        source.read(0, 1)
    assert error.value.path == name
    assert error.value.reason


def test_truncated_files_are_named(tmp_path, images):
    noise = Image.effect_noise((100, 100), 60)
    for name in ("x.jpg", "x.png", "x.webp", "x.tif"):
        for old in tmp_path.iterdir():
            old.unlink()
        noise.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(BadSample) as error:
            images().read(0, 1)
        assert error.value.path == name


def test_floats_are_refused_with_a_reason(tmp_path, images):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadSample, match="no known range"):
        images().read(0, 1)


def test_files_are_closed(photo, images, recwarn):
    import gc

    for i in range(5):
        photo(f"{i}.jpg")
    source = images()
    for i in range(5):
        source.read(i, i)
    gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


def test_large_pictures_are_read_without_a_word_and_larger_ones_are_bad(photo, images, monkeypatch):
    """Pillow warns of pictures above its limit and refuses those above twice that; scans are that large."""
    photo("scan.png", size=(40, 30))
    source = images()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert source.read(0, 7)["image"].shape == (3, 8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(BadSample, match="DecompressionBombError"):
        source.read(0, 7)
