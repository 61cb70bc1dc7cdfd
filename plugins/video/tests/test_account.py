"""What is said of a collection before a run begins, and files that are no clips."""

import json
import os
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from mim_core.cli import main
from mim_core.errors import BadSample, MimError
from mim_video import reader_index, reader_pyav, stated
from mim_video.commands import probe
from mim_video.data import Clips
from mim_video.layouts import find_clips
from mim_video.looking import header
from mim_video.prepare import plan
from mim_video.readers import open_reader
from mim_video.sampling import by_stride

FORMATS = {".mts": "mpegts", ".vob": "vob", ".gif": "gif", ".rm": "rm", ".y4m": "yuv4mpegpipe", ".divx": "avi"}
CODECS = dict.fromkeys(FORMATS, "mpeg4") | {
    ".mp4": "libx264",
    ".avi": "mpeg4",
    ".webm": "libvpx",
    ".gif": "gif",
    ".mts": "mpeg2video",
    ".vob": "mpeg2video",
    ".rm": "rv10",
    ".y4m": "wrapped_avframe",
}


def film(path, frames=10, size=(32, 48), rate=10, pixels="yuv420p", sound=False):
    """A clip that gets brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=FORMATS.get(path.suffix)) as file:
        stream = file.add_stream(CODECS[path.suffix], rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        track = file.add_stream("aac", rate=16000) if sound else None
        for i in range(frames):
            grey = np.full((*size, 3), 20 + 200 * i // max(1, frames - 1), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24").reformat(format=pixels)))
        file.mux(stream.encode())
        if track is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            file.mux([*track.encode(silence), *track.encode()])
    return path


def source(root, channels=3, frames=4, side=16, **options):
    options = {"stride": 1, **options}
    return Clips(Clips.Config(root=root, **options), {"video": (channels, frames, side, side)})


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held"), [("train", "valid"), ("Training", "Testing"), ("train_set", "val"), ("TRAIN", "Validation")]
)
def test_splits_in_any_words(tmp_path, train, held):
    for label in ("run", "jump"):
        film(tmp_path / train / label / "a.mp4", 2)
        film(tmp_path / held / label / "b.mp4", 2)
    clips = source(tmp_path)
    assert len(clips) == 2
    assert clips.labelled("test").classes == ("jump", "run")
    said = clips.contents()
    assert said["splits"] == f"{train}/ for training (2); {held}/ held out (2)"
    assert said["classes"] == "2: jump, run"


def test_splits_below_classes_and_clips_without_labels(tmp_path):
    for label in ("run", "jump"):
        film(tmp_path / label / "train" / "a.mp4", 2)
        film(tmp_path / label / "test" / "b.mp4", 2)
    film(tmp_path / "unlabelled" / "c.mp4", 2)
    clips = source(tmp_path)
    assert (len(clips), len(clips.labelled("train").labels), len(clips.labelled("test").labels)) == (3, 2, 2)
    assert "unlabelled/ without labels (1)" in clips.contents()["splits"]


def test_only_a_held_out_split_is_refused(tmp_path):
    film(tmp_path / "valid" / "run" / "a.mp4", 2)
    with pytest.raises(MimError, match="only held-out clips"):
        find_clips(tmp_path)


@pytest.mark.parametrize("word", ["validation", "Valid", "val_set", "TESTING"])
def test_splits_of_kinetics_in_any_words(tmp_path, word):
    head = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "a.csv").write_text(f"{head}zumba,AAA,0,1,Training\nyoga,BBB,0,1,train\n")
    (tmp_path / "b.csv").write_text(f"{head}zumba,CCC,0,1,{word}\n")
    (tmp_path / "c.csv").write_text(f"{head}zumba,DDD,0,1,later\n")
    for name in ("AAA", "BBB", "CCC", "extra"):
        film(tmp_path / f"{name}.mp4", 12)
    found = find_clips(tmp_path)
    assert (len(found.train), len(found.test), found.unlisted) == (2, 1, 1)
    said = source(tmp_path).contents()
    assert said["splits"].startswith("train for training (2), ")
    assert said["splits"].endswith("held out (1); not used: later (1 listed)")
    assert "1 video that the lists do not name" in said["left out"]


# ---- what is read, and what is left out ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FORMATS)
def test_other_containers_are_read(tmp_path, ending):
    film(tmp_path / f"a{ending}", 24, (96, 128), 25, "rgb8" if ending == ".gif" else "yuv420p")
    clips = source(tmp_path)
    assert clips.read(0, 1)["video"].shape == (3, 4, 16, 16)
    assert "left out" not in clips.contents()


def test_fields_and_pixels_of_another_shape_are_said(tmp_path):
    """H.264 says in its header that frames are two fields, DV in its frames alone."""
    film(tmp_path / "a.mp4", 8)
    for name, codec, size, options in (
        ("b.mkv", "libx264", (32, 48), {"x264-params": "tff=1:sar=16/15"}),
        ("c.avi", "dvvideo", (576, 720), {}),
    ):
        with av.open(str(tmp_path / name), "w") as file:
            stream = file.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for _ in range(8):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((*size, 3), np.uint8), "rgb24")))
            file.mux(stream.encode())
    clips = source(tmp_path)
    said = clips.contents()["files hold"]
    assert "pixels of 16:15 in 2, shown in their shape" in said
    assert "interlaced in 2, read with both fields in a frame" in said
    (advice,) = [line for line in clips.advice() if "interlaced" in line]
    assert advice.startswith("2 of 3 files looked at: marked as interlaced")
    assert "ffmpeg -i IN -vf bwdif" in advice


def test_files_of_other_endings_are_told(tmp_path):
    film(tmp_path / "run" / "a.mp4", 2)
    for name in ("b.WMVX", "c.wmvx", "notes.txt"):
        (tmp_path / "run" / name).write_text("x")
    clips = source(tmp_path)
    assert clips.contents()["left out"] == "3 files with endings that are not read: 2 x .wmvx, 1 x .txt"
    (text,) = (text for text in clips.advice() if "endings" in text)
    assert "2 x .wmvx. They are left out" in text
    assert ".txt" not in text


def test_folders_of_frames_need_no_preparing(tmp_path):
    folder = tmp_path / "clips" / "run" / "v0"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i:04}.jpg").write_text("x")
    with pytest.raises(MimError) as caught:
        plan(tmp_path / "clips", tmp_path / "out")
    text = str(caught.value)
    assert "found 3 x .jpg" in text
    assert "are read as clips as they are" in text
    assert f"ffmpeg -framerate 25 -pattern_type glob -i '{folder}/*.jpg'" in text
    assert f"{folder}.mp4" in text


def test_what_files_hold(tmp_path):
    film(tmp_path / "a.mp4", 30, (64, 96), 10, sound=True)
    film(tmp_path / "b.mp4", 3, (32, 48), 25, "yuv420p10le")
    (tmp_path / "c.mp4").write_bytes(b"no video")
    (tmp_path / "d.mp4").write_bytes(b"")
    said = source(tmp_path).contents()["files hold"]
    assert said.startswith("4 of 4 looked at: mov (h264); 48 x 32 to 96 x 64 pixels; 10 to 25 frames/s; ")
    for part in ("8 to 10 bits, read as 8", "1 file shorter than a clip of 4 frames", "sound in 1, not read"):
        assert part in said
    assert "2 files cannot be used (c.mp4: it cannot be read as a video" in said


def test_colour_read_as_grey_and_large_frames_read_small(tmp_path):
    film(tmp_path / "a.mp4", 8, (160, 192))
    grey, large = source(tmp_path, channels=1).advice()
    assert "in colour and are read as grey. In colour: --tokenizer.channels 3" in grey
    assert "160 pixels are read at 16 x 16" in large
    assert "--tokenizer.size 4 64 64" in large
    assert source(tmp_path, side=32).advice() == []


# ---- several clips of a file -----------------------------------------------------------------------------------------


def test_rates_and_lengths_that_repeat_frames_are_told(tmp_path):
    film(tmp_path / "a.mp4", frames=20, rate=2)  # 10 s
    film(tmp_path / "b.mp4", frames=10, rate=30)
    few, short = source(tmp_path, fps=4.0).advice()
    assert "1 of 2 files looked at: 2 frames per second at least, and --data.fps 4 asks for more" in few
    assert "1 of 2 files looked at: shorter than the 0.75 s of a clip" in short
    assert len(source(tmp_path, fps=4.0, short="refuse").advice()) == 1
    assert not [line for line in source(tmp_path, fps=2.0).advice() if "frames per second" in line]


def test_repeated_clips_of_a_long_file_start_at_different_places(tmp_path):
    film(tmp_path / "a.mp4", 300)
    clips = source(tmp_path, repeat=16)
    starts = clips.read(0, 1)["video"][:, :, 0].float().mean((1, 2, 3))
    assert len({round(float(start)) for start in starts}) > 10
    said = "16 clips of 1 file, each from its own place; a clip shows about 0.4 s of 30 s"
    assert clips.contents()["an epoch"] == said
    assert clips.advice() == []
    assert "2 of each of 1 file" not in source(tmp_path, repeat=2).contents()["an epoch"]
    (advice,) = source(tmp_path, repeat=2).advice()
    assert "an epoch sees 2 clips of each file. For more of them: --data.repeat 64" in advice


def test_the_same_frames_are_told(tmp_path):
    film(tmp_path / "a.mp4", 300)
    clips = source(tmp_path, repeat=16, repeat_start="same")
    assert "all of the same frames (--data.repeat-start same)" in clips.contents()["an epoch"]
    (advice,) = clips.advice()
    assert advice.endswith("For clips from different places: --data.repeat-start own")
    assert "of each file. For more of them: --data.repeat 64" in source(tmp_path).advice()[0]


# ---- files that are no clips -----------------------------------------------------------------------------------------


def test_pipes_and_devices_are_no_clips(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to("/dev/zero")
    for name in ("a.mp4", "b.mp4"):
        for opening in (open_reader, header):
            with pytest.raises(BadSample, match="it is no regular file"):
                opening(tmp_path / name)


def test_sound_alone_is_named(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        track = file.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        file.mux([*track.encode(silence), *track.encode()])
    with pytest.raises(BadSample, match="no video in it; there is only sound"):
        open_reader(tmp_path / "a.mp4")


def test_frames_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4", 2, (64, 64))
    monkeypatch.setattr(reader_pyav, "MOST_PIXELS", 64 * 63)
    for opening in (open_reader, header):
        with pytest.raises(BadSample, match="its frames of 64 x 64 pixels are larger than 8K"):
            opening(tmp_path / "a.mp4")


def test_files_of_gigabytes_of_nothing(tmp_path, monkeypatch):
    """Sparse: a whole clip and then zeros, in which no packet is found in time, and zeros alone, whose reading ends by
    itself, however long a busy machine takes for it."""
    film(tmp_path / "a.mp4", 4)
    film(tmp_path / "b.avi", 4)
    (tmp_path / "c.mpg").write_bytes(b"\0")
    (tmp_path / "d.mp4").write_bytes(b"\0")
    for path in tmp_path.iterdir():
        os.truncate(path, 4 << 30)
    with open_reader(tmp_path / "a.mp4") as reader:
        assert len(reader) == 4
    for name in ("c.mpg", "d.mp4"):
        with pytest.raises(BadSample, match="cannot be read"):
            open_reader(tmp_path / name)
    monkeypatch.setattr(reader_pyav, "PATIENCE", 0.2)  # no machine reads 4 GiB in it
    with pytest.raises(BadSample, match="takes too long"):
        open_reader(tmp_path / "b.avi")


def test_frames_that_are_only_stated_take_no_memory(tmp_path, monkeypatch):
    """A few hundred bytes that say millions of frames: FFmpeg would make a table of them all."""
    many = 30_000_000
    whole = bytearray(film(tmp_path / "a.mp4", 4).read_bytes())
    place = whole.find(b"stsz")
    struct.pack_into(">II", whole, place + 8, 1, many)
    struct.pack_into(">II", whole, whole.find(b"stts") + 12, many, 1024)
    (tmp_path / "a.mp4").write_bytes(whole)
    with av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "frag_keyframe+empty_moov"}) as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), "rgb24").reformat(format="yuv420p")
        file.mux([*stream.encode(frame), *stream.encode()])
    parts = bytearray((tmp_path / "b.mp4").read_bytes())
    struct.pack_into(">II", parts, parts.find(b"trun") + 4, 1, many)
    (tmp_path / "b.mp4").write_bytes(parts)
    moov = zlib.compress(bytes(whole[whole.find(b"moov") - 4 :]))
    packed = struct.pack(
        ">I4sI4s4sI4sI", 36 + len(moov), b"moov", 28 + len(moov), b"cmov", b"dcom", 12, b"cmvd", 1 << 20
    )
    (tmp_path / "c.mov").write_bytes(packed + moov)
    for name in ("a.mp4", "b.mp4", "c.mov"):
        for opening in (open_reader, header):
            with pytest.raises(BadSample, match=r"its tables say 30,000,0\d\d frames .* at most 8,000,000"):
                opening(tmp_path / name)
    film(tmp_path / "d.mp4", 4, sound=True)
    assert len(open_reader(tmp_path / "d.mp4")) == 4
    monkeypatch.setattr(reader_index, "MOST_FRAMES", 2)
    with pytest.raises(BadSample, match="it has more than 2 frames"):
        open_reader(tmp_path / "d.mp4")


def test_sound_that_is_not_compressed_is_no_bomb():
    """An hour of it has 172 million samples, which FFmpeg takes in pieces."""
    box = struct.pack(">4sII4s", b"hdlr", 0, 0, b"soun") + struct.pack(">4s5I", b"stts", 0, 1, 172_000_000, 1, 0)
    sizes = struct.pack(">4s3I", b"stsz", 0, 4, 172_000_000)
    assert stated._stated(Path("a.mov"), b"trak" + box + sizes) == 0
    assert stated._stated(Path("a.mov"), b"trak" + box.replace(b"soun", b"vide") + sizes) == 172_000_000


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.webm"])
def test_damaged_files_are_bad_samples_or_read(tmp_path, name):
    whole = film(tmp_path / name, 8).read_bytes()
    draw = np.random.default_rng(0)
    bad: list[BadSample] = []
    for _ in range(20):
        damaged = np.frombuffer(whole, np.uint8)[: draw.integers(1, len(whole) + 1)].copy()
        damaged[draw.integers(0, len(damaged), 5)] = draw.integers(0, 256, 5)
        (tmp_path / name).write_bytes(damaged.tobytes())
        try:
            assert source(tmp_path).read(0, 1)["video"].shape == (3, 4, 16, 16)
        except BadSample as error:
            bad.append(error)
    assert {error.path for error in bad} == {name}
    assert all(error.reason for error in bad)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_plan_tells_contents_and_time(tmp_path, capsys):
    for label in ("run", "jump"):
        film(tmp_path / "clips" / "train" / label / "a.mp4", 40)
        film(tmp_path / "clips" / "valid" / label / "b.mp4", 40)
    arguments = ["pretrain", "videomae-vit-small", "--twin", "--data.root", str(tmp_path / "clips"), "--dry-run"]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--train.epochs", "29.97551"], plugin="video") == 0
    said = capsys.readouterr()
    out = " ".join(said.out.split())
    for part in ("splits train/ for training (2); valid/ held out (2)", "classes 2: jump, run", "an epoch 2 clips"):
        assert part in out
    assert "30 epochs" in out
    assert "time about " in out
    assert "try --train.batch-size 2 --train.epochs 1000. That makes 1,000 steps." in " ".join(said.err.split())
    assert not (tmp_path / "run").exists()


def test_probe_says_what_numbers_are(tmp_path, capsys):
    film(tmp_path / "a.mp4", 10, (32, 48))
    assert probe("mim-video", "video", [str(tmp_path / "a.mp4")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "size 48 x 32 pixels (width x height)" in out
    assert "duration 0.9 s" in out
    assert "max 10 frames/s" in out
    assert probe("mim-video", "video", [str(tmp_path / "a.mp4"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["readers"]["pyav"]["size"] == [32, 48]


def test_an_export_says_which_frames_are_read(tmp_path):
    film(tmp_path / "a/x.mp4")
    source = Clips(Clips.Config(root=tmp_path, stride=4), {"video": (3, 8, 16, 16)})
    about = source.how_read()
    assert about["frames"] == "8: every 4th, the first one is frame (n - 28) // 2 of n, counted from 0"
    assert about["interpolation"].startswith("bilinear")
    for count in (29, 32, 33, 100):
        assert int(by_stride(count, 8, 4, 0.5)[0]) == (count - 28) // 2
