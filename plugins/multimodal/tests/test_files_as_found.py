"""Files as users have them: depth that was not measured, maps of few values, formats, sizes, and damaged files."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from mim_core.errors import BadSample, MimError
from mim_multimodal import files, maps
from mim_multimodal.crops import whole_factor
from mim_multimodal.data import Aligned
from mim_multimodal.depth import standardise
from PIL import Image

SIDE = 32
SHAPES = {"rgb": (3, 32, 32), "depth": (1, 32, 32), "semseg": (32, 32)}
GENERATOR = np.random.default_rng(0)
RGB = GENERATOR.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
DEPTH = (1000 + np.arange(SIDE * SIDE).reshape(SIDE, SIDE)).astype(np.uint16)
METRES = DEPTH.astype(np.float32) / 1000
IDS = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 5).astype(np.uint8)
LARGEST = np.finfo(np.float32).max


def put(root, modality, stem, values, ending="png", **options):
    """A file of a modality."""
    folder = root / "train" / modality
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.{ending}"
    if ending == "npy":
        np.save(path, values)
    else:
        (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    for stem in range(6):
        put(tmp_path, "rgb", stem, RGB)
        put(tmp_path, "depth", stem, METRES, "npy")
        put(tmp_path, "semseg", stem, IDS)
    return tmp_path


def source(root, shapes=None, **options):
    return Aligned(Aligned.Config(root=root, **options), SHAPES if shapes is None else shapes)


def every(data):
    return [data.take(data.collection.train, i, data.shapes) for i in range(len(data))]


# ---- depth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_a_lone_zero_that_is_read_as_depth_is_told(root, kind):
    """In metres and in 8 bits 0 may be a depth; where nothing is near it, it is rarely meant."""
    values = METRES if kind is np.float32 else (40 + np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 6).astype(kind)
    put(root, "depth", 0, np.where(IDS == 1, 0, values).astype(kind), "npy")
    (line,) = source(root).advice()[-1:]
    assert "depth is 0 in 1 of " in line
    assert line.endswith("if it means no measurement: --data.depth-invalid 0")
    assert not any("depth is 0" in line for line in source(root, depth_invalid=-1.0).advice())
    data = source(root, depth_invalid=0.0)
    assert not any("depth is 0" in line for line in data.advice())
    assert any(item["depth"].isnan().float().mean() > 0.1 for item in every(data))


def test_depth_that_standardising_makes_flat_is_told(root):
    for stem in range(6):
        put(root, "depth", stem, METRES * 1e-5, "npy")
    (line,) = (line for line in source(root).advice() if "depth varies by" in line)
    assert "beside which the 0.001 that standardising adds counts" in line
    assert "write depth in a smaller unit" in line


@pytest.mark.parametrize("none", [np.nan, np.inf, -np.inf, LARGEST, -LARGEST, 1e30, 1e10, -1.0, -9999.0])
def test_floats_that_measure_nothing_are_missing(root, none):
    half = METRES.copy()
    half[:16] = none
    for stem in range(6):
        put(root, "depth", stem, half, "npy")
    data = source(root)
    sample = data.finish({name: values[None] for name, values in every(data)[0].items()})
    assert sample["depth_raw"][0, 0, :16].isnan().all()
    assert (sample["depth"][0, 0, :16] == 0).all()
    assert sample["depth"].isfinite().all()
    assert 0.8 < sample["depth"][0, 0, 16:].std() < 1.5
    why = "NaN or infinite" if not np.isfinite(none) else "negative" if -1e10 < none < 0 else "1e10 and beyond"
    assert f"50.0% not measured ({why})" in data.contents()["files hold"]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "<f8", ">f4", "u2", ">u2", "i2", "i4", "u4", "i8", "u8"])
def test_arrays_of_any_numbers(tmp_path, dtype):
    path = tmp_path / "1.npy"
    values = DEPTH.astype(dtype)
    np.save(path, values)
    assert np.array_equal(maps.read_depth(path), values.astype(np.float32))
    values[0] = 0
    np.save(path, values)
    assert np.isnan(maps.read_depth(path)[0]).all() == (values.dtype.kind != "f")


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32), ("L", np.uint8)])
def test_depth_in_tif(tmp_path, mode, dtype):
    values = (DEPTH % 250 + 1).astype(dtype)
    path = tmp_path / "1.tif"
    Image.fromarray(values).save(path)
    assert Image.open(path).mode == mode
    assert np.array_equal(maps.read_depth(path), values.astype(np.float32))


def test_a_lone_65535_is_no_measurement_and_a_stretched_map_keeps_it(tmp_path):
    path = tmp_path / "1.png"
    depth = DEPTH.copy()
    depth[:4] = 65535
    Image.fromarray(depth).save(path)
    assert np.isnan(maps.read_depth(path)[:4]).all()
    assert maps.unmeasured(depth) == ["65,535"]
    assert maps.unmeasured(depth, invalid=1500) == ["1,500"]
    assert not np.isnan(maps.read_depth(path)[4:]).any()
    assert np.nanmax(maps.read_depth(path, invalid=-1)) == 65535
    Image.fromarray(np.linspace(1, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)).save(path)
    assert np.nanmax(maps.read_depth(path)) == 65535


def test_negative_depth_counts_where_it_is_asked_for(tmp_path):
    path = tmp_path / "1.npy"
    np.save(path, -METRES)
    with pytest.raises(ValueError, match=r"no pixel was measured: its values are -2.023 to -1; .*depth-signed"):
        maps.read_depth(path)
    assert np.array_equal(maps.read_depth(path, signed=True), -METRES)


@pytest.mark.parametrize("values", [np.zeros_like(DEPTH), np.full_like(METRES, np.nan), np.linspace(1e20, 2e20, 64)])
def test_a_map_without_any_measurement_is_bad_and_named(root, values):
    values = values.reshape(8, 8) if values.ndim == 1 else values
    put(root, "depth", 3, values, "npy")
    data = source(root)
    bad = [i for i in range(len(data)) if data.collection.train.stems[i] == "3"]
    with pytest.raises(BadSample, match="no pixel was measured") as error:
        data.read(bad[0] if bad else 0, 0) if bad else data.take(data.collection.test, 0, SHAPES)
    assert error.value.path == "train/depth/3.npy"


def test_large_values_are_standardised_without_overflow():
    ramp = torch.linspace(1, 2, 64).reshape(1, 1, 8, 8)
    plain = standardise(ramp * 1e4)
    assert torch.allclose(standardise(ramp * 1e30), plain, atol=1e-3)
    assert torch.allclose(standardise(ramp * 1e20), plain, atol=1e-3)
    ramp[0, 0, 0, 0] = torch.inf
    assert standardise(ramp).isfinite().all()


def test_what_depth_holds_is_said(root):
    far = METRES.copy()
    far[:8] = 1000
    for stem in range(6):
        put(root, "depth", stem, far, "npy")
    data = source(root)
    assert "depth floats, 32 x 32, 1.256 to 1000;" in data.contents()["files hold"]
    assert any("--data.depth-invalid 1000" in line for line in data.advice())
    assert not any("depth-invalid" in line for line in source(root, depth_invalid=1000.0).advice())
    for stem in range(6):
        put(root, "depth", stem, np.where(METRES > 2, -METRES, METRES), "npy")
    assert any("--data.depth-signed" in line for line in source(root).advice())


def test_arrays_whose_heads_lie(tmp_path):
    path = tmp_path / "1.npy"
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        maps.read_depth(path)
    np.save(path, METRES)
    whole = path.read_bytes()
    for shape in (b"(32, 99)", b"(8, 8)  "):
        path.write_bytes(whole.replace(b"(32, 32)", shape))
        with pytest.raises(ValueError, match=r"its head says .* follow"):
            maps.read_depth(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="4,095 follow"):
        maps.read_depth(path)
    head = np.lib.format.header_data_from_array_1_0(METRES)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {**head, "shape": (10**9, 10**9)})
    with pytest.raises(ValueError, match="at most 50 million"):
        maps.read_depth(path)


def test_maps_may_be_coarser_or_finer_by_one_factor(root):
    whole = every(source(root))
    for stem in range(6):
        put(root, "depth", stem, METRES[::2, ::2], "npy")
        put(root, "semseg", stem, IDS.repeat(2, 0).repeat(2, 1))
    sample = every(source(root))[0]
    assert torch.equal(sample["depth"][0], torch.from_numpy(METRES[::2, ::2].repeat(2, 0).repeat(2, 1)))
    assert torch.equal(sample["semseg"], whole[0]["semseg"])
    assert "depth floats, 16 x 16" in source(root).contents()["files hold"]
    assert whole_factor((64, 32), (32, 16))
    assert not whole_factor((64, 32), (32, 32))
    assert not whole_factor((3, 3), (2, 2))


def test_of_three_pictures_the_odd_one_is_named(root):
    for stem in range(6):
        put(root, "rgb", stem, RGB[:, :30])
    with pytest.raises(BadSample, match=r"30 x 32 pixels, and train/depth/\d.npy is 32 x 32") as error:
        source(root).read(0, 0)
    assert error.value.path.startswith("train/rgb/")


# ---- class maps ------------------------------------------------------------------------------------------------------


def test_masks_of_0_and_255_are_noticed_and_can_be_read(root):
    mask = ((IDS > 2) * 255).astype(np.uint8)
    for stem in range(6):
        put(root, "semseg", stem, mask)
    text = " ".join(source(root).advice())
    assert "are they masks of 0 and 255?" in text
    assert "--data.values 0 255 --semseg.tokenizer.classes 2" in text
    data = source(root, values=(0, 255))
    assert not data.advice()
    assert data.class_count == 2
    assert torch.equal(every(data)[0]["semseg"], torch.from_numpy((IDS > 2).astype(np.uint8)))
    put(root, "semseg", 2, IDS)
    with pytest.raises(ValueError, match=r"the value 1; --data\.values lists 0, 255"):
        maps.read_ids(root / "train" / "semseg" / "2.png", values=(0, 255))
    with pytest.raises(ValueError, match="different whole numbers"):
        source(root, values=(0, 0))


def test_an_id_that_is_no_class_takes_the_others_down(tmp_path):
    """As ADE20K and NYUv2 have it; an id of 256 does not become the 255 that is no class."""
    ids = np.array([[0, 1, 2], [255, 3, 1]], np.uint8)
    assert maps.ids_of(ids, 3, void=0).tolist() == [[255, 0, 1], [255, 2, 0]]
    assert maps.ids_of(ids, 4, void=2).tolist() == [[0, 1, 255], [255, 2, 1]]
    for wrong in (ids + 1, (ids > 2) * np.uint16(256)):
        with pytest.raises(ValueError, match=r"once 0 is taken out \(--data.void\)"):
            maps.ids_of(wrong, 3, void=0)
    with pytest.raises(ValueError, match="values, which list what counts already"):
        source(tmp_path, values=(0, 1), void=0)


def test_values_of_16_bits_and_masks_of_one_bit(tmp_path):
    path = tmp_path / "1.png"
    Image.fromarray((IDS.astype(np.uint16) + 1) * 1000).save(path)
    assert np.array_equal(maps.read_ids(path, values=(1000, 2000, 3000, 4000, 5000)), IDS)
    Image.fromarray(IDS > 2).save(path)
    assert Image.open(path).mode == "1"
    assert np.array_equal(maps.read_ids(path), (IDS > 2).astype(np.uint8))


def test_a_single_class_is_said(root):
    for value, words in ((3, "the single class 3, so"), (255, "no class: all is 255")):
        for stem in range(6):
            put(root, "semseg", stem, np.full_like(IDS, value))
        assert any(words in line for line in source(root).advice())


def test_bad_files_that_are_looked_at_are_named(root):
    for stem in range(6):
        put(root, "semseg", stem, IDS + 20)
    text = source(root, classes=20).contents()["files hold"]
    assert "cannot be used (train/semseg/" in text
    assert "it has the id 24, but there are 20 classes" in text


def test_a_map_of_ids_that_is_a_jpeg_is_refused(tmp_path):
    path = tmp_path / "1.png"
    Image.fromarray(IDS).save(path, "jpeg")
    with pytest.raises(ValueError, match="JPEG, whose values are blurred"):
        maps.read_ids(path)


# ---- colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["tif", "tiff", "bmp", "gif", "png", "webp"])
def test_colour_of_every_ending(root, ending):
    for path in (root / "train" / "rgb").iterdir():
        path.unlink()
    for stem in range(6):
        put(root, "rgb", stem, RGB // 128 * 128, ending, **({"lossless": True} if ending == "webp" else {}))
    assert torch.equal(every(source(root))[0]["rgb"], torch.from_numpy(RGB // 128 * 128).permute(2, 0, 1))


def test_what_a_file_is_and_not_its_name_is_read(root, monkeypatch):
    put(root, "rgb", 1, RGB, "png", format="jpeg")
    assert files.read_rgb(root / "train" / "rgb" / "1.png").size == (SIDE, SIDE)
    script = root / "train" / "rgb" / "2.png"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    for read in (files.read_rgb, maps.read_ids, maps.read_depth):
        with pytest.raises(ValueError, match="no picture that can be read"):
            read(script)


def test_tif_of_more_than_colour_is_refused(tmp_path):
    path = tmp_path / "1.tif"
    pages = [Image.fromarray(RGB)] * 3
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="several pages"):
        files.read_rgb(path)
    four = Image.fromarray(np.dstack([RGB, RGB[..., :1]]))
    four.save(path)
    files.read_rgb(path)  # the entry 338 of the file says that the fourth band is opacity
    entry = struct.pack("<HHI", 338, 3, 1)
    path.write_bytes(path.read_bytes().replace(entry + b"\2", entry + b"\0"))
    with pytest.raises(ValueError, match=r"4 bands, and rgb takes 3"):
        files.read_rgb(path)
    for values, words in ((METRES, "no known range"), (DEPTH.astype(np.int32), "no known range")):
        Image.fromarray(values).save(path)
        with pytest.raises(ValueError, match=words):
            files.read_rgb(path)


def test_colours_of_16_bits_are_scaled_and_12_bits_are_said(root):
    deep = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 64).astype(np.uint16)
    put(root, "rgb", 0, deep)
    grey = np.asarray(files.read_rgb(root / "train" / "rgb" / "0.png").image)[..., 0]
    assert np.array_equal(grey, (deep / 257).round().astype(np.uint8))
    assert not source(root).advice()
    for stem in range(6):
        put(root, "rgb", stem, deep // 16)
    assert "rgb 16 bits read as 8" in source(root).contents()["files hold"]
    assert any("10 or 12 bits" in line for line in source(root).advice())


def test_transparent_parts_are_white_in_strips_as_in_one(tmp_path):
    rgba = GENERATOR.integers(0, 256, (50, 40, 4)).astype(np.uint8)
    image = Image.fromarray(rgba)
    wanted = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    assert np.array_equal(np.asarray(files._on_white(image, 300)), np.asarray(wanted))


def bomb(side, kind=2, depth=8):
    """The head of a png of zeros, and a little of its content."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7_100, 13_300, 60_000])
def test_pictures_that_would_fill_the_memory_are_refused(tmp_path, side):
    path = tmp_path / "1.png"
    for kind, depth, read in ((2, 8, files.read_rgb), (0, 16, maps.read_depth), (0, 8, maps.read_ids)):
        path.write_bytes(bomb(side, kind, depth))
        with pytest.raises((ValueError, Image.DecompressionBombError), match=r"at most 50 million|exceeds limit"):
            read(path)


def test_mean_and_deviation_of_0_to_255_are_refused(root):
    with pytest.raises(MimError, match=r"255: --data.mean 0.485 0.456 0.406 --data.std 0.229 0.224 0.225"):
        source(root, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


# ---- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no bytes"),
        (b" \n", "empty"),
        (b"caf\xe9", r"not UTF-8 \(byte 3\)"),
        ("text".encode("utf-16"), "not UTF-8"),
        (b"a\0b", "NUL"),
        (b"word " * 3000, "15,000|14,999"),
        (b"word " * 300_000, "1,500,000 bytes"),
    ],
)
def test_captions_that_are_none(tmp_path, content, words):
    path = tmp_path / "1.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        files.read_text(path)


# ---- damage ----------------------------------------------------------------------------------------------------------


def damaged(raw, draws):
    """Cut short, or with bytes of another value in it."""
    for _ in range(12):
        yield raw[: draws.integers(0, len(raw))]
        content = bytearray(raw)
        for _ in range(draws.integers(1, 8)):
            content[draws.integers(0, len(raw) if draws.random() < 0.5 else 100)] = draws.integers(0, 256)
        yield bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("modality", "ending", "values"),
    [
        *(("rgb", ending, RGB) for ending in ("png", "jpg", "webp", "tif", "bmp", "gif")),
        ("depth", "png", DEPTH),
        ("depth", "tif", METRES),
        ("depth", "npy", METRES),
        ("depth", "npy", DEPTH),
        ("semseg", "png", IDS),
    ],
)
def test_damaged_files_are_named(root, modality, ending, values):
    folder = root / "train" / modality
    content = io.BytesIO()
    kind = {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending)
    np.save(content, values) if ending == "npy" else Image.fromarray(values).save(content, kind)
    data = source(root, missing="mask")
    item = data.collection.train
    [file] = [path for path in folder.iterdir() if path.stem == item.stems[0]]
    file.unlink()
    file = file.with_suffix(f".{ending}")
    file.write_bytes(content.getvalue())
    data, bad = source(root), []
    for number, raw in enumerate(damaged(content.getvalue(), np.random.default_rng(1))):
        file.write_bytes(raw)
        try:
            sample = data.finish({name: part[None] for name, part in data.read(0, number).items()})
            assert all(part.float().isfinite().all() for part in sample.values())
        except BadSample as error:
            bad.append(error.path + error.reason)
    assert len(bad) >= 10
    assert all(file.name in text for text in bad)


@pytest.mark.filterwarnings("error")
def test_half_floats_are_looked_at_without_an_overflow(tmp_path):
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 64, dtype=np.float16).reshape(8, 8))
    values = maps.depth_values(tmp_path / "a.npy")
    assert values.dtype == np.float32
    assert maps.unmeasured(values) == []


def test_colours_of_16_bits_in_planes_are_not_taken_for_eight(tmp_path):
    planes = np.full((3, 8, 8), 1000, "<u2")
    facts = [(256, 1, 8), (257, 1, 8), (258, 3, 392), (259, 1, 1), (262, 1, 2), (273, 3, 400), (277, 1, 3), (278, 1, 8),
             (279, 3, 412), (284, 1, 2)]  # fmt: skip
    tail = struct.pack("<3HH3I3I", 16, 16, 16, 0, 8, 136, 264, 128, 128, 128)
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if count == 1 or tag == 258 else 4, count, value) for tag, count, value in facts
    )
    data = struct.pack("<2sHI", b"II", 42, 424) + planes.tobytes() + tail + struct.pack("<H", len(facts)) + entries
    (tmp_path / "a.tif").write_bytes(data + bytes(4))
    with pytest.raises(ValueError, match="16 bits with one plane after the other"):
        files.read_rgb(tmp_path / "a.tif")
