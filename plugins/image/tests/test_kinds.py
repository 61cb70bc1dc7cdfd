"""What files hold is used, or refused or told by name: bits, bands, pages, formats, sizes."""

import io
import json
import struct

import numpy as np
import pytest
import torch
from mim_core.data.loading import KeyedDataset, Request, collate, end_readers, loader
from mim_core.errors import BadSample, MimError
from mim_image import formats
from mim_image.data import CenterCrops
from mim_image.formats import open_image
from mim_image.pixels import convert_mode
from mim_image.tiff import read_pages
from PIL import Image


def save_tiff(path, array, planes=False, photometric=1):
    """An uncompressed TIFF of any number of bands, as other programs write them."""
    height, width, bands = array.shape
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    data = np.ascontiguousarray(array.transpose(2, 0, 1) if planes else array)
    facts = {256: width, 257: height, 259: 1, 262: photometric, 277: bands, 278: height}
    facts[284] = 2 if planes else 1
    entries = [(tag, 3, [value]) for tag, value in facts.items()]
    entries += [(258, 3, [array.itemsize * 8] * bands), (339, 3, [kind] * bands)]
    extra = bands - (3 if facts[262] == 2 else 1)
    entries += [(338, 3, [0] * extra)] if extra > 0 else []
    parts = bands if planes else 1
    size = data.nbytes // parts
    entries += [(273, 4, [8 + i * size for i in range(parts)]), (279, 4, [size] * parts)]
    start = 8 + data.nbytes
    directory, behind = struct.pack("<H", len(entries)), b""
    place = start + 2 + 12 * len(entries) + 4
    for tag, code, values in sorted(entries):
        content = struct.pack(f"<{len(values)}{'H' if code == 3 else 'I'}", *values)
        if len(content) > 4:
            content, behind = struct.pack("<I", place + len(behind)), behind + content
        directory += struct.pack("<HHI", tag, code, len(values)) + content.ljust(4, b"\0")
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + data.tobytes() + directory + bytes(4) + behind)


def values_of(source, index=0):
    """The picture as evaluation reads it."""
    return CenterCrops(source, source.splits.pretrain)[index]["image"]


def sixteen_bits(top, shape=(8, 8)):
    return (np.arange(shape[0] * shape[1]).reshape(shape) * top // (shape[0] * shape[1] - 1)).astype(np.uint16)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "pgm", "jp2"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_keep_their_levels(tmp_path, images, ending, channels):
    array = sixteen_bits(4095)
    Image.fromarray(array).save(tmp_path / f"a.{ending}")
    for limits, top in ((None, 65535), ((0, 4095), 4095)):
        source = images(channels=channels, range=limits)
        values = values_of(source)
        assert values.dtype == torch.float32
        wanted = np.broadcast_to(array * (255 / top), (min(channels, 3), 8, 8))
        assert values[:3].numpy() == pytest.approx(wanted, abs=1e-3)
        assert channels < 4 or (values[3] == 255).all()
        done = source.finish({"image": values[None]})["image"]
        assert (done * source.std + source.mean)[0, 0].max().item() == pytest.approx(4095 / top)
        assert source.picture("image", done[0]).content.startswith(b"\x89PNG")


def test_levels_survive_crop_and_resize(tmp_path, images):
    Image.fromarray(sixteen_bits(4095, (64, 64))).save(tmp_path / "a.png")
    source = images(channels=1, size=(32, 32), range=(0, 4095))
    assert source.read(0, 5)["image"].unique().numel() > 500
    assert source.read(0, 5)["image"].max() <= 255


def test_little_of_the_range_is_said(tmp_path, images):
    Image.fromarray(sixteen_bits(1100)).save(tmp_path / "a.png")
    (said,) = images(channels=1).advice()
    assert "reach 1,100 of 65,535" in said
    assert said.endswith("--data.range 0 2047")
    assert images(channels=1, range=(0, 2047)).advice() == []
    assert "becomes black or white" in images(channels=1, range=(0, 255)).advice()[0]
    assert "grey of 16 bits" in images(channels=1).contents()["files hold"]
    assert "grey values from 0 to 1,100" in images(channels=1).contents()["files hold"]


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, np.int16, np.int8])
def test_kinds_without_a_known_range_need_one(tmp_path, images, dtype):
    array = np.linspace(-100, 100, 64).reshape(8, 8, 1)
    array = (array + 2**31 if dtype is np.uint32 else array).astype(dtype)
    save_tiff(tmp_path / "a.tif", array)
    with pytest.raises(MimError, match=r"a\.tif: grey of .*no known range.*--data\.range"):
        images(channels=1).advice()
    with pytest.raises(BadSample, match="no known range"):
        images(channels=1).read(0, 1)
    low, high = float(array.min()), float(array.max())
    source = images(channels=1, range=(low, high))
    assert source.advice() == []
    wanted = (array[..., 0].astype(np.float64) - low) / (high - low) * 255
    assert values_of(source)[0].numpy() == pytest.approx(wanted, abs=1e-3)


def test_values_that_are_not_finite_are_bad(tmp_path, images):
    save_tiff(tmp_path / "a.tif", np.full((8, 8, 1), np.nan, np.float32))
    with pytest.raises(BadSample, match="not finite"):
        images(channels=1, range=(0, 1)).read(0, 1)


def test_sixteen_bits_where_0_is_white(tmp_path, images):
    save_tiff(tmp_path / "a.tif", np.full((8, 8, 1), 65535, np.uint16))
    save_tiff(tmp_path / "b.tif", np.full((8, 8, 1), 65535, np.uint16), photometric=0)
    source = images(channels=1)
    assert [values_of(source, i).unique().tolist() for i in (0, 1)] == [[255], [0]]


def test_a_range_that_falls_is_refused(photo, images):
    photo("a.png")
    with pytest.raises(ValueError, match="two rising numbers"):
        images(range=(5, 5))
    assert "does nothing" in images(range=(0, 4095)).advice()[0]


def test_colour_of_sixteen_bits_is_said(tmp_path, images):
    array = np.zeros((8, 8, 3), np.uint16)
    array[..., 0] = 40000
    save_tiff(tmp_path / "a.tif", array, photometric=2)
    source = images()
    assert "looked at: colour of 16 bits, of which the upper 8 are used" in source.advice()[0]
    assert values_of(source)[:, 0, 0].tolist() == [40000 // 256, 0, 0]
    with pytest.raises(BadSample, match=r"so --data\.range cannot hold"):
        images(range=(0, 4095)).read(0, 1)


MODES = {
    "1": (1, [255] * 3),
    "L": (90, [90] * 3),
    "LA": ((90, 255), [90] * 3),
    "La": ((90, 255), [90] * 3),
    "P": (90, [90] * 3),
    "PA": ((90, 255), [90] * 3),
    "RGB": ((200, 100, 50), [200, 100, 50]),
    "RGBA": ((200, 100, 50, 255), [200, 100, 50]),
    "RGBa": ((200, 100, 50, 255), [200, 100, 50]),
    "RGBX": ((200, 100, 50, 0), [200, 100, 50]),
    "CMYK": ((55, 155, 205, 0), [200, 100, 50]),
    "HSV": ((0, 0, 90), [90] * 3),
    "YCbCr": ((90, 128, 128), [90] * 3),
    "I;16": (90 * 257, [90] * 3),
    "I;16B": (90 * 257, [90] * 3),
    "I": (90 * 257, [90] * 3),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode(mode, channels):
    colour, wanted = MODES[mode]
    if mode in ("P", "PA"):
        image = Image.new("L", (4, 4), 90).convert("P")
        image = image.convert("PA") if mode == "PA" else image
    else:
        image = Image.new(mode, (4, 4), colour)
    done = convert_mode(image, channels)
    values = np.array(done).reshape(16, -1)[0].tolist()
    if done.mode == "F":
        assert values == pytest.approx([90])
    elif channels == 1:
        assert values == pytest.approx([np.dot(wanted, [0.299, 0.587, 0.114])], abs=1)
    else:
        assert values[:3] == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize("mode", ["LAB", "F"])
def test_modes_that_are_refused(mode):
    with pytest.raises(formats.UnsupportedKind, match=r"cannot be read|no known range"):
        convert_mode(Image.new(mode, (4, 4)), 3)


# ---- bands and pages -------------------------------------------------------------------------------------------------


def test_four_channels_are_resized_each_on_its_own(tmp_path, images):
    array = np.empty((64, 64, 4), np.uint8)
    array[...] = 200, 100, 50, 0
    array[:, 32:, 3] = 90
    Image.fromarray(array).save(tmp_path / "a.png")
    image = images(channels=4).read(0, 5)["image"]
    assert [channel.unique().tolist() for channel in image[:3]] == [[200], [100], [50]]


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_the_fourth_band_of_a_tiff(tmp_path, images, compression):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    Image.fromarray(array, "RGBX").save(tmp_path / "a.tif", compression=compression)
    source = images(channels=4)
    assert np.array_equal(values_of(source).numpy(), array.transpose(2, 0, 1))
    assert source.advice() == []
    assert np.array_equal(values_of(images()).numpy(), array[..., :3].transpose(2, 0, 1))
    assert "looked at: 4 bands, of which the last is left out" in images().advice()[0]
    assert "4 bands" in images().contents()["files hold"]


@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint8, np.float32])
def test_many_bands_are_refused_before_a_run(tmp_path, images, planes, dtype):
    save_tiff(tmp_path / "a.tif", np.zeros((16, 16, 13), dtype), planes)
    with pytest.raises(MimError, match=r"a\.tif: a TIFF of 13 bands of \d+-bit"):
        images(channels=1).advice()
    with pytest.raises(BadSample, match="13 bands"):
        images(channels=1).read(0, 1)
    with pytest.raises(ValueError, match="not 13"):
        images(channels=13)


def test_pages_that_are_not_read_are_said(tmp_path, images):
    pages = [Image.new("L", (40, 40), i) for i in range(6)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "b.gif", save_all=True, append_images=pages[1:])
    said = images(channels=1).advice()
    assert said[0].startswith("1 of 2 images looked at: 6 pages (an array [6, 40, 40] of bands or slices?), of which")
    assert said[1] == "1 of 2 images looked at: an animation, of which only the first picture is used (b.gif)."
    assert "6 pages" in images(channels=1).contents()["files hold"]


def test_bands_that_became_pages_are_refused(tmp_path, images):
    pages = [Image.new("L", (13, 64), i) for i in range(64)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(MimError, match=r"64 pages of 64 x 13 values.*13 bands"):
        images(channels=1).contents()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_bands_as_square_pages_are_refused_where_colour_is_asked_for(tmp_path, images, dtype):
    pages = [Image.fromarray(np.full((64, 64), i, dtype)) for i in range(13)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for channels in (3, 4):
        with pytest.raises(MimError, match=r"a\.tif: a TIFF of 13 pages .*no page has.*--tokenizer\.channels 1"):
            images(channels=channels, range=(0, 100)).contents()
        with pytest.raises(BadSample, match="13 pages"):
            images(channels=channels, range=(0, 100)).read(0, 0)
    grey = images(channels=1, range=(0, 100))
    assert "13 pages" in grey.advice()[0]
    assert (values_of(grey) == 0).all()


def many(photo, root):
    """More pictures than are looked at, the ninth of which is left to others."""
    for number in range(200):
        if number != 8:
            photo(f"{number:03}.png", (number, 90, 20), (8, 8))
    return root / "008"


LATER = {
    "grey of 16 bits": lambda path: Image.fromarray(sixteen_bits(65535)).save(path.with_suffix(".png")),
    "CMYK": lambda path: Image.new("CMYK", (8, 8)).save(path.with_suffix(".jpg")),
    "colour by a palette": lambda path: Image.new("P", (8, 8)).save(path.with_suffix(".png")),
    "grey of 8 bits": lambda path: Image.new("L", (8, 8)).save(path.with_suffix(".png")),
    "colour with opacity, laid on white": lambda path: Image.new("RGBA", (8, 8)).save(path.with_suffix(".png")),
    "colour of 16 bits, of which the upper 8 are used": lambda path: save_tiff(
        path.with_suffix(".tif"), np.zeros((8, 8, 3), np.uint16), photometric=2
    ),
    "4 bands, of which the last is left out": lambda path: Image.new("RGBX", (8, 8)).save(path.with_suffix(".tif")),
    "3 pages": lambda path: Image.new("L", (8, 8)).save(
        path.with_suffix(".tif"), save_all=True, append_images=[Image.new("L", (8, 8))] * 2
    ),
}


@pytest.mark.parametrize("what", LATER)
def test_a_kind_that_is_met_later_is_said_once(tmp_path, photo, images, what, capfd):
    LATER[what](many(photo, tmp_path))
    source = images()
    assert what not in " ".join((*source.advice(), *source.contents().values()))
    for _ in range(2):
        batches = loader(KeyedDataset(source), [[Request(i, 0)] for i in (7, 8, 8, 9)], 2, collate)
        assert all(batch.sample is not None and not batch.skipped for batch in batches)
    source.read(8, 1)
    end_readers()
    said = capfd.readouterr().err
    assert len([line for line in said.splitlines() if f" holds {what}" in line]) == 1, said
    assert "008." in said
    assert "of the 64 images looked at" in said


@pytest.mark.parametrize("bands", [5, 13])
def test_a_kind_that_is_met_later_and_cannot_be_read_is_a_bad_file(tmp_path, photo, images, bands):
    path = many(photo, tmp_path).with_suffix(".tif")
    save_tiff(path, np.zeros((8, 8, bands), np.uint16))
    source = images()
    assert source.advice() == []
    with pytest.raises(BadSample, match=rf"{bands} bands") as found:
        source.read(8, 0)
    assert found.value.path == "008.tif"


def test_pages_of_files_that_are_none_or_go_round(tmp_path):
    assert read_pages(io.BytesIO(b"")) == []
    assert read_pages(io.BytesIO(b"II*\0\x08\0\0\0")) == []
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8)
    assert len(read_pages(io.BytesIO(loop))) == 1


# ---- formats, names, sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jfif", "a.ppm", "a.avif", "a.jp2"])
def test_more_formats(photo, images, name):
    path = photo("b.png").with_name(name)
    Image.new("RGB", (20, 16), (200, 100, 50)).save(path, "JPEG" if name == "a.jfif" else None)
    source = images()
    assert [source.name_of(i) for i in range(2)] == [name, "b.png"]
    assert source.read(0, 1)["image"].float().mean(dim=(1, 2)).tolist() == pytest.approx([200, 100, 50], abs=5)


def test_postscript_is_not_opened(tmp_path, images, monkeypatch):
    from PIL import EpsImagePlugin

    def never(*arguments, **options):
        raise AssertionError("a program would have run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    Image.new("RGB", (20, 16)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(BadSample, match="not an image of a kind that is read"):
        images().read(0, 1)


def test_what_is_left_out_is_said(photo, images, tmp_path):
    photo("a.png")
    for name in ("b.heic", "c.HEIC", "d.npy", "labels.csv"):
        (tmp_path / name).write_bytes(b"x")
    source = images()
    assert "2 x .heic" in source.contents()["left out"]
    assert ".csv" in source.contents()["left out"]
    said, table = source.advice()
    assert "3 files with endings that are not read: 2 x .heic, 1 x .npy" in said
    assert "labels.csv is ignored" in table
    with pytest.raises(MimError, match=r"labels\.csv, line 1: it should be a path and a label"):
        source.labelled("train")


def test_what_would_take_too_much_memory_is_refused_by_name(photo, images, monkeypatch):
    photo("a.png", size=(100, 100))
    monkeypatch.setattr(formats, "MEMORY", 50_000)
    with pytest.raises(MimError, match=r"a\.png: too large: 100 x 100 pixels"):
        images().advice()
    with pytest.raises(BadSample, match="too large"):
        images().read(0, 1)
    monkeypatch.setattr(formats, "MEMORY", 100)
    with pytest.raises(BadSample, match="its file has"):
        images().read(0, 1)


def test_pipes_are_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="no regular file"):
        open_image(tmp_path / "a.png")


def test_odd_names(tmp_path, photo, images):
    import os

    for name in ("a\nb.png", "é ü.png", "%s{}.png", "-x.png", "'\".png"):
        photo(name, colour=(1, 2, 3))
    os.rename(photo("z.png"), os.fsencode(tmp_path) + b"/\xff.png")
    source = images(crop=(1.0, 1.0))
    assert len(source) == 6
    for i in range(6):
        source.read(i, 1)
        json.dumps(source.name_of(i))
    "".join((*source.advice(), *source.contents().values(), *source.plan().values())).encode()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "g.png", "a.tif", "l.tif", "a.gif", "a.webp", "a.bmp", "a.jp2"])
def test_whatever_is_damaged_is_named(tmp_path, images, name):
    draw = np.random.default_rng(0)
    array = draw.integers(0, 256, (12, 10, 3), np.uint8)
    image = Image.fromarray(array[..., 0].astype(np.uint16) if name == "g.png" else array)
    content = io.BytesIO()
    options = {"compression": "tiff_lzw"} if name == "l.tif" else {}
    image.save(content, Image.registered_extensions()[name[1:]], **options)
    for _ in range(15):
        damaged = np.frombuffer(content.getvalue(), np.uint8).copy()
        damaged[draw.integers(0, min(len(damaged), 200), 3)] = draw.integers(0, 256, 3)
        (tmp_path / name).write_bytes(damaged[: draw.integers(1, 2 * len(damaged))].tobytes())
        source, said = images(), name
        try:
            assert source.read(0, 1)["image"].shape == (3, 8, 8)
            source.contents()
        except BadSample as error:
            said = error.path
        except MimError as error:
            said = str(error)
        assert name in said


# ---- crops, mean and deviation ---------------------------------------------------------------------------------------


def test_crops_are_about_as_wide_as_the_input(images, tmp_path):
    """A lattice of dots keeps about the same period in both directions."""
    y, x = np.mgrid[0:320, 0:640]
    dots = (((x % 40) < 20) & ((y % 40) < 20)).astype(np.uint8) * 255
    Image.fromarray(dots).save(tmp_path / "a.png")
    source = images(channels=1, size=(56, 112))
    ratios = []
    for key in range(40):
        image = source.read(0, key)["image"][0].float()
        steps = [(image.diff(dim=axis).abs().sum() / 255).item() for axis in (0, 1)]
        ratios.append(steps[0] / steps[1])
    assert 0.85 < np.median(ratios) < 1.18
    square = images(channels=1, size=(56, 56)).augment.transforms[0]
    assert tuple(square.ratio) == (3 / 4, 4 / 3)


def test_statistics_of_255_are_refused(photo, images):
    photo("a.png")
    with pytest.raises(MimError, match=r"--data\.mean 0\.485 0\.456 0\.406 --data\.std 0\.229 0\.224 0\.225"):
        images(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    with pytest.raises(ValueError, match="must be finite"):
        images(mean=(float("nan"), 0.5, 0.5))
    images(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_colour_of_more_bits_in_planes_is_refused_and_not_taken_for_eight(tmp_path, images):
    array = np.full((8, 8, 3), 1000, np.uint16)
    save_tiff(tmp_path / "a.tif", array, planes=True, photometric=2)
    with pytest.raises(MimError, match="colour of 16 bits with one plane after the other"):
        images(channels=3).advice()
    save_tiff(tmp_path / "a.tif", array, photometric=2)
    assert "of 16 bits the upper 8 are used, and they reach 3 of 255" in " ".join(images(channels=3).advice())


def test_the_refusal_of_values_without_a_range_says_theirs(tmp_path, images):
    for i, value in enumerate((-500.0, 250.0)):
        Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / f"{i}.tif")
    with pytest.raises(MimError, match=r"go from -500 to 250: for these, --data.range -500 250"):
        images(channels=1).advice()
