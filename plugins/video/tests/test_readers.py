"""Readers against files whose frames show their own number: every frame, any order, every reader."""

import contextlib
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mim_core.errors import BadSample, MimError
from mim_video.looking import header
from mim_video.prepare import Encoding, encode_video
from mim_video.reader_pyav import PyavReader
from mim_video.readers import known_readers, open_reader

sys.path.insert(0, str(Path(__file__).parent))  # workers that are spawned get it too

from numbered_videos import KINDS, Kind, encode, number_of
from reading_workers import Numbers, read_in_workers

REFUSED = {
    "torchcodec": {"stream.ts", "xvid-b.avi", "h264-b.avi", "raw.h264"},
    "decord": {"stream.ts", "flash.flv", "xvid-b.avi", "h264-b.avi", "raw.h264"}
    | {"open-gop.mp4", "open-gop.mkv", "hevc.mp4", "trimmed.mp4"},
}
"""Files that a reader says it cannot read right."""
LOOSE = {"ten-bit.mp4": 1.0, "odd.webm": 0.5}
"""Mean difference in levels of 256 that other readers may have; none elsewhere. docs/video-readers.md states it."""


def loads(name):
    try:
        open_reader(Path(__file__), name).close()
    except MimError:
        return False
    except BadSample:
        return True
    return True


READERS = [name for name in known_readers() if loads(name)]
OTHERS = [name for name in READERS if name != "pyav"]


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """``videos(kind)``: its file, encoded once."""
    folder, made = tmp_path_factory.mktemp("videos"), {}

    def make(kind):
        if kind.name not in made:
            made[kind.name] = encode(folder, kind)
        return made[kind.name]

    return make


def by_name(name):
    return next(kind for kind in KINDS if kind.name == name)


def refused(name, kind):
    return kind.name in REFUSED.get(name, ())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", READERS)
def test_every_index_gives_its_own_frame(videos, kind, name):
    path = videos(kind)
    if refused(name, kind):
        with pytest.raises(BadSample, match="pyav"), open_reader(path, name) as reader:
            reader.frames_at(range(len(reader)))
        return
    with open_reader(path, name) as reader:
        assert len(reader) == kind.frames - kind.hidden
        assert reader.size == kind.size
        order = [*range(len(reader)), *random.Random(1).choices(range(len(reader)), k=20)]
        random.Random(2).shuffle(order)
        frames = reader.frames_at(order)
        assert frames.shape == (len(order), *kind.size, 3)
        assert [number_of(frame) - kind.hidden for frame in frames.numpy()] == order
        alone = random.Random(3).sample(range(len(reader)), 12)
        assert [number_of(reader.frames_at([i])[0].numpy()) - kind.hidden for i in alone] == alone


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_times_are_those_that_were_encoded(videos, kind):
    shift = {"stream.ts": 0.08, "flash.flv": 0.08, "xvid-b.avi": 0.04}.get(
        kind.name, 0
    )  # what the muxer itself adds for B-frames
    with open_reader(videos(kind)) as reader:
        expected = [time / 1000 + shift for time in kind.milliseconds[kind.hidden :]]
        assert reader.times.dtype == torch.float64
        assert reader.times.tolist() == pytest.approx(expected, abs=1e-6)
        assert (reader.times.diff() > 0).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_seeking_gives_the_bits_of_plain_decoding(videos, kind):
    with av.open(str(videos(kind))) as container:
        plain = [frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)]
    with open_reader(videos(kind), "pyav") as reader:
        turn = reader.survey().turn
        for index in random.Random(4).sample(range(len(reader)), 15):
            assert np.array_equal(reader.frames_at([index])[0].numpy(), turn.apply(plain[index])), index
        together = reader.frames_at(range(len(reader))).numpy()
        assert all(np.array_equal(frame, turn.apply(other)) for frame, other in zip(together, plain, strict=True))


@pytest.mark.parametrize("size", [None, (48, 56)])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", OTHERS)
def test_readers_agree_with_pyav(videos, kind, name, size):
    if refused(name, kind):
        pytest.skip("refused")
    with open_reader(videos(kind), "pyav") as ours, open_reader(videos(kind), name) as theirs:
        assert torch.equal(ours.times, theirs.times)
        order = random.Random(5).sample(range(len(ours)), 30)
        different = (ours.frames_at(order, size).float() - theirs.frames_at(order, size).float()).abs()
    assert different.mean() <= LOOSE.get(kind.name, 0)


def test_seeking_starts_at_the_key_frame_before(videos, monkeypatch):
    with open_reader(videos(by_name("trimmed.mp4")), "pyav") as reader:
        monkeypatch.setattr(type(reader), "_open", lambda self: pytest.fail("went back to the start"))
        order = random.Random(6).sample(range(len(reader)), 20)
        assert [number_of(reader.frames_at([i])[0].numpy()) - 10 for i in order] == order


@pytest.mark.parametrize("name", READERS)
def test_scaling(videos, name):
    with open_reader(videos(by_name("turned-90.mp4")), name) as reader:
        small = reader.frames_at([3, 50, 3], (48, 64))
        assert small.shape == (3, 48, 64, 3)
        assert torch.equal(small[0], small[2])
        assert [number_of(frame) for frame in small.numpy()] == [3, 50, 3]
        mean = reader.frames_at([3])[0].float().unflatten(0, (48, 2)).unflatten(2, (64, 2)).mean((1, 3))
        assert (small[0].float() - mean).abs().mean() < 4


def test_wrong_use_is_told(videos):
    reader = open_reader(videos(KINDS[0]))
    for index in (-1, 60):
        with pytest.raises(IndexError, match="frames 0 to 59"):
            reader.frames_at([index])
    assert reader.frames_at([]).shape == (0, 96, 128, 3)
    with pytest.raises(TypeError, match="open the file there"):
        reader.__reduce__()
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.frames_at([0])
    with pytest.raises(MimError, match="Did you mean 'pyav'"):
        open_reader(videos(KINDS[0]), "pyavv")


def test_missing_library_is_told(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.delitem(sys.modules, "mim_video.reader_decord", raising=False)
    with pytest.raises(MimError, match=r'pip install "mim-video\[decord\]"'):
        open_reader(videos(KINDS[0]), "decord")


def bad_files(folder, videos):
    whole = videos(KINDS[0]).read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:10,\nhttp://localhost:9/a.ts\n")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the table of contents is at the end
    (folder / "noise.mp4").write_bytes(whole[:64] + random.Random(0).randbytes(5000))
    (folder / "folder.mp4").mkdir()
    encode(folder, Kind("sound.mp4", audio=True))
    with av.open(str(folder / "sound.mp4")) as both, av.open(str(folder / "audio-only.mp4"), "w") as out:
        stream = out.add_stream_from_template(both.streams.audio[0])
        for packet in both.demux(both.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    with av.open(str(folder / "no-frames.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    names = ["empty", "text", "playlist", "cut", "noise", "folder", "audio-only", "missing"]
    return [folder / f"{name}.mp4" for name in names] + [folder / "no-frames.mkv"]


@pytest.mark.parametrize("name", READERS)
def test_bad_files_are_named(videos, tmp_path, name):
    for path in bad_files(tmp_path, videos):
        with pytest.raises(BadSample) as caught:
            open_reader(path, name)
        assert caught.value.path == str(path)
        assert caught.value.reason


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_truncated_in_the_middle_gives_what_decodes(tmp_path, suffix):
    kind = Kind(f"front.{suffix}", muxer=(("movflags", "faststart"),) if suffix == "mp4" else ())
    whole = encode(tmp_path, kind).read_bytes()
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    with open_reader(path) as reader:
        assert 10 < len(reader) < 60
        numbers = [number_of(frame) for frame in reader.frames_at(range(len(reader))).numpy()]
    assert numbers[:12] == list(range(12))
    assert numbers == sorted(numbers)


def test_damage_inside_never_gives_another_frame(tmp_path):
    whole = bytearray(encode(tmp_path, Kind("whole.mp4")).read_bytes())
    start, stop = whole.index(b"mdat") + 2000, whole.index(b"moov") - 200
    for place in range(start, stop, 97):
        whole[place] ^= 0x5A
    path = tmp_path / "damaged.mp4"
    path.write_bytes(whole)
    with contextlib.suppress(BadSample), open_reader(path) as reader:
        frames = reader.frames_at(range(len(reader)))
        assert len(frames) == len(reader)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "avi", "flv", "webm"])
def test_reading_goes_on_behind_damage(tmp_path, suffix):
    """Without a table of contents, frames that are lost are not counted, and those behind them are found."""
    codec = {"avi": "mpeg4", "webm": "libvpx-vp9"}.get(suffix, "libx264")
    path = encode(tmp_path, Kind(f"a.{suffix}", frames=120, codec=codec, between=0))
    whole = bytearray(path.read_bytes())
    start, stop = int(len(whole) * 0.4), int(len(whole) * 0.5)
    whole[start:stop] = bytes(stop - start)
    path.write_bytes(whole)
    with open_reader(path) as reader:
        assert 60 < len(reader) < 120
        assert reader.failing(120) == []
        shown = [number_of(frame) for frame in reader.frames_at([0, len(reader) - 20, len(reader) - 1]).numpy()]
    assert shown == [0, 100, 119]


@pytest.mark.parametrize("place", [0.3, 0.35, 0.4, 0.45, 0.5])
def test_times_keep_the_gap_that_damage_leaves(tmp_path, place):
    """Behind some of it the demuxer flags packets, and the decoder gives frames out of turn."""
    path = encode(tmp_path, Kind("a.ts", frames=120, between=6, options=(("b-pyramid", "normal"), ("b-adapt", "0"))))
    with open_reader(path) as reader:
        start, stop = float(reader.times[0]), float(reader.times[-1])
    whole = bytearray(path.read_bytes())
    first = int(len(whole) * place)
    whole[first : first + len(whole) // 50] = bytes(len(whole) // 50)
    path.write_bytes(whole)
    with open_reader(path) as reader:
        assert len(reader) < 120
        assert (float(reader.times[0]), float(reader.times[-1])) == (start, stop)
        failing = reader.failing(120)
        for number in failing[:3]:
            with pytest.raises(BadSample, match="does not decode"):
                reader.frames_at([number])
        assert max(failing, default=0) < len(reader) - 20
        for place in range(len(reader) - 20, len(reader)):
            number = round((float(reader.times[place]) - start) / 0.04)
            assert number_of(reader.frames_at([place])[0].numpy()) == number


class Failing:
    """A container whose packets cannot be read for so many times after the first thirty."""

    def __init__(self, container, failures):
        self.container, self.failures, self.given = container, failures, 0
        self.packets = None

    def demux(self, stream):
        self.packets = self.packets or self.container.demux(stream)
        while self.given < 30 or not self.failures:
            packet = next(self.packets, None)
            if packet is None:
                return
            self.given += 1
            yield packet
        self.failures -= 1
        raise av.error.InvalidDataError(1, "damage")


@pytest.mark.parametrize(("failures", "packets"), [(0, 60), (1, 60), (15, 60), (16, 30)])
def test_a_packet_that_cannot_be_read_does_not_end_the_file(videos, failures, packets):
    with PyavReader(videos(KINDS[0])) as reader:
        reader._open()
        container, reader._container = reader._container, Failing(reader._container, failures)
        given = list(reader._rest())
        reader._container = container
    assert [packet.size > 0 for packet in given] == [True] * packets + [False], "the last one empties the decoder"
    assert given[-1].stream == given[0].stream


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(path, name, opens):
    for _ in range(opens // 5):
        with open_reader(path, name) as reader:
            reader.frames_at([0, 30, 59])
    before = resident()
    for _ in range(opens):
        with open_reader(path, name) as reader:
            reader.frames_at([0, 30, 59])
    return resident() - before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("name", READERS)
def test_memory_stays_flat(videos, name):
    """8 KiB lost by each open would show."""
    assert growth(videos(KINDS[0]), name, 1000) < 8


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_bad_files_leak_nothing(videos, tmp_path):
    paths = bad_files(tmp_path, videos)

    def rounds(count):
        for path in paths * count:
            with pytest.raises(BadSample):
                open_reader(path)

    rounds(10)
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    rounds(40)
    assert resident() - before < 8
    assert len(os.listdir("/proc/self/fd")) <= files


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("name", READERS)
def test_readers_open_inside_workers(videos, name, start):
    if start == "fork":  # in a process of its own: this one has threads by now
        script = (
            "import sys; sys.path.insert(0, sys.argv[1]); import reading_workers; reading_workers.main(sys.argv[2:])"
        )
        command = [sys.executable, "-c", script, str(Path(__file__).parent), str(videos(KINDS[1])), name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.stdout.split() == ["59", "0", "7", "30"], done.stderr
    else:
        assert read_in_workers(Numbers(videos(KINDS[1]), name, (59, 0, 7, 30)), "spawn") == [59, 0, 7, 30]


def test_reading_in_another_process_than_opened_is_an_error(videos, monkeypatch):
    for name in READERS:
        with open_reader(videos(KINDS[0]), name) as reader:
            monkeypatch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(MimError, match="open videos in the worker"):
                reader.frames_at([0])
            monkeypatch.undo()


# ---- colours and sizes -----------------------------------------------------------------------------------------------

COLOUR = (200, 40, 90)
LIMITED, FULL = 1, 2
BT709, BT601, YCGCO, BT2020 = 1, 5, 8, 9


def painted(path, codec, pixels, matrix=None, span=None, size=(64, 96), colour=COLOUR, count=3):
    """A clip of one colour."""
    options = {"profile": "dnxhr_hq"} if codec == "dnxhd" else {}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if matrix is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, span
        for _ in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), colour, np.uint8), "rgb24")
            there = matrix if matrix != YCGCO else None
            file.mux(stream.encode(frame.reformat(format=pixels, dst_colorspace=there, dst_color_range=span)))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "matrix", "span"),
    [
        ("a.mp4", "libx264", "yuv420p", BT709, LIMITED),
        ("a.mp4", "libx264", "yuv420p", BT601, FULL),
        ("a.mkv", "libx264", "yuv420p10le", BT2020, LIMITED),
        ("a.mkv", "ffv1", "yuv444p12le", BT709, FULL),
        ("a.mkv", "ffv1", "gbrp16le", None, None),
        ("a.mkv", "ffv1", "bgra", None, None),
        ("a.mov", "png", "rgba64be", None, None),
        ("a.mov", "prores_ks", "yuva444p10le", None, None),
        ("a.avi", "rawvideo", "rgb555le", None, None),
        ("a.mov", "dnxhd", "yuv422p", BT709, LIMITED),
    ],
)
def test_colours_are_those_that_were_painted(tmp_path, name, codec, pixels, matrix, span):
    with open_reader(painted(tmp_path / name, codec, pixels, matrix, span, size=(128, 256))) as reader:
        found = reader.frames_at([0, 2]).float().mean((0, 1, 2))
    assert (found - torch.tensor(COLOUR)).abs().max() <= 5


def test_colours_that_cannot_be_turned_into_rgb_are_refused_by_name(tmp_path):
    path = painted(tmp_path / "a.mp4", "libx264", "yuv444p", YCGCO, LIMITED)
    for opening in (open_reader, header):
        with pytest.raises(BadSample, match=r"its colours \(YCgCo\) cannot be turned into RGB; write it anew"):
            opening(path)


def test_frames_that_change_their_shape_are_refused_where_they_do(tmp_path):
    """A stream of two sizes; of one shape they are scaled."""
    for name, second in (("other", (96, 64)), ("same", (128, 192))):
        parts = []
        for size, colour in (((64, 96), COLOUR), (second, (20, 200, 40))):
            part = painted(tmp_path / f"{name}{size[0]}.h264", "libx264", "yuv420p", size=size, colour=colour)
            parts.append(part.read_bytes())
            part.unlink()
        (tmp_path / f"{name}.h264").write_bytes(b"".join(parts))
    with open_reader(tmp_path / "same.h264") as reader:
        assert len(reader) == 6
        assert (reader.frames_at([5])[0].float().mean((0, 1)) - torch.tensor([20.0, 200, 40])).abs().max() < 5
    with open_reader(tmp_path / "other.h264") as reader:
        assert reader.frames_at([0, 2]).shape == (2, 64, 96, 3)
        with pytest.raises(BadSample, match="its frames change from 96 x 64 to 64 x 96 pixels"):
            reader.frames_at([2, 4])


@pytest.mark.parametrize(
    ("pixel", "turned", "size"),
    [
        (Fraction(4, 3), 0, (48, 85)),
        (Fraction(8, 9), 0, (48, 57)),
        (Fraction(4, 3), 90, (85, 48)),
        (Fraction(136, 135), 0, (48, 64)),
    ],
)
@pytest.mark.parametrize("name", READERS)
def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path, name, pixel, turned, size):
    if turned and name != "pyav":
        pytest.skip("decord 0.6 refuses small files that are turned by a quarter, of square pixels too")
    path = anamorphic(tmp_path / "a.mp4", pixel, turned)
    with open_reader(path, name) as reader:
        assert reader.size == size
        bright = reader.frames_at([2])[0, :, :, 0] > 128
        small = reader.frames_at([2], (size[0] // 2, size[1] // 2))
    across, down = (1, 0) if turned else (0, 1)  # along a row of the file, and along a column
    wide = 32 * (float(pixel) if 48 in size and 64 not in size else 1)  # half of each row is bright
    assert abs(int(bright.any(across).sum()) - wide) <= 1
    assert abs(int(bright.any(down).sum()) - 24) <= 1
    assert small.shape == (1, size[0] // 2, size[1] // 2, 3)


def test_what_is_prepared_has_square_pixels(tmp_path):
    made = encode_video(anamorphic(tmp_path / "a.mp4", Fraction(4, 3)), tmp_path / "b.mp4", Encoding())
    with PyavReader(tmp_path / "b.mp4") as reader:
        assert made["size"] == [48, 84]
        assert (reader.size, reader.facts()["pixel_shape"]) == ((48, 84), "square")


def test_pixels_beyond_all_shape_are_refused_by_name(tmp_path):
    with pytest.raises(BadSample, match=r"it says that its pixels are 8:1.*-aspect"):
        open_reader(anamorphic(tmp_path / "a.mp4", Fraction(8)))


def anamorphic(path, pixel, turned=0):
    """64 x 48 pixels of a shape of their own, of which the upper left quarter is bright."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel
        if turned:
            stream.set_display_rotation(turned)
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:24, :32] = 250
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())
    return path
