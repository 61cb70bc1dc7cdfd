"""mim-video prepare and probe, on small real files."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mim_core.errors import BadSample
from mim_video.plugin import main
from mim_video.prepare import Encoding, new_size, prepare_collection
from mim_video.reader_pyav import PyavReader
from mim_video.readers import open_reader

sys.path.insert(0, str(Path(__file__).parent))

from numbered_videos import KINDS, Kind, encode, number_of

TAKEN = ("variable.mp4", "xvid-b.avi", "turned-90.mp4", "odd.webm", "late.mp4", "trimmed.mp4", "ten-bit.mp4")
CHOSEN = [kind for kind in KINDS if kind.name in TAKEN]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A folder of videos of all kinds, a list, an empty file."""
    root = tmp_path_factory.mktemp("in")
    for kind in CHOSEN:
        encode(root / "some" / "class", kind)
    (root / "lists").mkdir()
    (root / "lists" / "train.csv").write_text("a,b\n")
    (root / "empty.mp4").write_bytes(b"")
    return root


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["mim-video", *map(str, arguments)])
    code = main()
    return code, capsys.readouterr()


def manifest(out):
    return {line["file"]: line for line in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}


def test_prepare_keeps_frames_times_and_layout(collection, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    code, said = run(monkeypatch, capsys, "prepare", collection, out, "--short-side", 64, "--workers", 2)
    assert code == 1  # the empty file
    assert "failed: empty.mp4: the file is empty" in said.out
    assert f"{len(CHOSEN)} done, 1 copied, 0 skipped, 1 failed" in said.out
    assert (out / "lists/train.csv").read_text() == "a,b\n"
    assert not list(out.rglob("*.partial"))
    for kind in CHOSEN:
        path = (out / "some/class" / kind.name).with_suffix(".mp4")
        with open_reader(collection / "some/class" / kind.name) as before, open_reader(path) as after:
            assert torch.allclose(before.times, after.times, rtol=0, atol=1e-6)
            assert min(after.size) == 64
            assert after.facts()["key_frame_distance"] <= 12
            assert after.facts()["turn"] == "none"
            frames = after.frames_at(range(len(after)))
            assert [number_of(frame) - kind.hidden for frame in frames.numpy()] == list(range(len(before)))
            assert (before.frames_at([20], after.size).float() - frames[20].float()).abs().mean() < 12
    lines = manifest(out)
    assert lines["empty.mp4"] == {"file": "empty.mp4", "status": "failed", "reason": "the file is empty"}
    assert lines["some/class/variable.mp4"]["frames"] == 60
    assert len(lines) == len(CHOSEN) + 2


def test_prepare_goes_on(collection, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for line in prepare_collection(collection, out, Encoding(short_side=64), 1):
        if line["status"] == "done":
            break  # as when it is killed
    (out / "some/class/variable.mp4.partial").write_bytes(b"half a file")
    done = next(out.glob("some/class/*.mp4"))
    stamp = done.stat().st_mtime_ns
    code, said = run(monkeypatch, capsys, "prepare", collection, out, "--short-side", 64, "--workers", 1)
    assert code == 1
    assert f"{len(CHOSEN) - 1} done" in said.out
    assert done.stat().st_mtime_ns == stamp
    assert not list(out.rglob("*.partial"))
    (collection / "empty.mp4").unlink()
    code, said = run(monkeypatch, capsys, "prepare", collection, out, "--short-side", 64)
    (collection / "empty.mp4").touch()
    assert code == 0
    assert f"0 done, 0 copied, {len(CHOSEN) + 1} skipped, 0 failed" in said.out
    assert manifest(out)["some/class/variable.mp4"]["frames"] == 60  # as the run that made it said


def test_prepare_refuses_what_would_go_wrong(collection, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, capsys, "prepare", collection, collection)[0] == 2
    assert run(monkeypatch, capsys, "prepare", tmp_path / "nowhere", tmp_path / "out")[0] == 2
    assert run(monkeypatch, capsys, "prepare", collection, tmp_path / "out", "--crf", "-1")[0] == 2


def test_equal_stems_keep_their_endings(tmp_path, monkeypatch, capsys):
    root, out = tmp_path / "in", tmp_path / "out"
    for frames, name in enumerate(("a.mkv", "a.mp4", "b.mkv", "b.mov"), 3):
        encode(root, Kind(name, frames=frames))
    code, said = run(monkeypatch, capsys, "prepare", root, out, "--workers", "1")
    assert code == 0
    assert "a.mkv.mp4: 3 frames" in said.out
    assert "(from a.mkv: a.mp4 is made of a.mp4)" in said.out
    made = {name: line["out"] for name, line in manifest(out).items()}
    assert made == {"a.mkv": "a.mkv.mp4", "a.mp4": "a.mp4", "b.mkv": "b.mp4", "b.mov": "b.mov.mp4"}
    for name, frames in (("a.mkv.mp4", 3), ("a.mp4", 4), ("b.mp4", 5), ("b.mov.mp4", 6)):
        with open_reader(out / name) as reader:
            assert len(reader) == frames
    assert "4 skipped" in run(monkeypatch, capsys, "prepare", root, out)[1].out
    encode(root, Kind("b.mp4", frames=7))  # it takes the name; what had it is written again under another
    code, said = run(monkeypatch, capsys, "prepare", root, out, "--workers", "1")
    assert code == 0
    assert manifest(out)["b.mkv"]["out"] == "b.mkv.mp4"
    with open_reader(out / "b.mp4") as reader, open_reader(out / "b.mkv.mp4") as other:
        assert (len(reader), len(other)) == (7, 5)


def test_what_is_left_out_is_told(tmp_path, monkeypatch, capsys):
    """Hidden files and folders, and a manifest of IN; a link back to IN adds nothing."""
    root, out = tmp_path / "in", tmp_path / "out"
    encode(root / "deep", Kind("a.mp4", frames=3))
    encode(root / ".thumbs", Kind("b.mp4", frames=3))
    (root / ".DS_Store").touch()
    (root / "manifest.jsonl").write_text("mine")
    (root / "deep/manifest.jsonl").write_text("also mine")
    (root / "deep/up").symlink_to("..")
    for counts in ("1 done, 1 copied, 0 skipped", "0 done, 0 copied, 2 skipped"):
        code, said = run(monkeypatch, capsys, "prepare", root, out, "--workers", "1")
        assert code == 0
        assert f"{counts}, 0 failed, 3 left out" in said.out
        assert "left out: manifest.jsonl: OUT/manifest.jsonl is written here" in said.out
        assert "left out: .thumbs/: it is hidden" in said.out
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "a.mp4",
        "manifest.jsonl",
        "manifest.jsonl",
    ]
    assert (out / "deep/manifest.jsonl").read_text() == "also mine"
    assert set(manifest(out)) == {"deep/a.mp4", "deep/manifest.jsonl", "manifest.jsonl", ".DS_Store", ".thumbs/"}


def test_what_has_changed_is_done_again(tmp_path, monkeypatch, capsys):
    root, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.mp4", "b.mp4"):
        encode(root, Kind(name, frames=3))
    (root / "list.csv").write_text("a\n")

    def counts(*options):
        code, said = run(monkeypatch, capsys, "prepare", root, out, "--short-side", "64", *options, "--workers", "1")
        assert code == 0
        return said.out, {line["file"]: line for line in manifest(out).values()}

    assert "2 done, 1 copied, 0 skipped" in counts()[0]
    assert "0 done, 0 copied, 3 skipped" in counts()[0]
    encode(root, Kind("a.mp4", frames=5))
    (root / "list.csv").write_text("b\n")
    said, lines = counts()
    assert "1 done, 1 copied, 1 skipped" in said
    assert "a.mp4: 5 frames" in said
    assert "(again: its source has changed)" in said
    assert (lines["a.mp4"]["frames"], lines["b.mp4"]["frames"]) == (5, 3)
    assert (out / "list.csv").read_text() == "b\n"
    os.utime(root / "b.mp4", ns=(0, 0))  # as large as before, written at another time
    assert "1 done, 0 copied, 2 skipped" in counts()[0]
    said, lines = counts("--keyint", "16", "--crf", "30")
    assert "2 done, 0 copied, 1 skipped" in said
    assert "(again: keyint 16, was 12; crf 30, was 23)" in said
    assert lines["b.mp4"]["encoding"]["keyint"] == 16
    assert "0 done, 0 copied, 3 skipped" in counts("--keyint", "16", "--crf", "30")[0]
    (root / "a.mp4").write_bytes(b"no video")
    code, said = run(monkeypatch, capsys, "prepare", root, out, "--short-side", "64", "--keyint", "16", "--crf", "30")
    assert code == 1
    assert "the one written before stays" in said.out
    assert (out / "a.mp4").is_file()


def tone(path, codec, container_codec="mpeg4", seconds=2.0, start=0):
    """Grey pictures at 10 per second and a tone that starts after half of the time."""
    rate = 48000
    with av.open(str(path), "w") as out:
        picture, sound = out.add_stream(container_codec, rate=10), out.add_stream(codec, rate=rate)
        picture.height, picture.width, picture.pix_fmt = 64, 64, "yuv420p"
        sound.layout = "mono"
        wave = np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * 440 / rate) * 0.5
        wave[: len(wave) // 2] = 0
        resampler = av.AudioResampler(sound.codec_context.format, "mono", rate, sound.codec_context.frame_size or 1024)
        for number in range(int(10 * seconds)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 100, np.uint8), "rgb24")
            frame.pts = number
            out.mux(picture.encode(frame))
            samples = wave[number * rate // 10 : (number + 1) * rate // 10].astype(np.float32)[None]
            piece = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            piece.sample_rate, piece.pts = rate, number * rate // 10
            for part in resampler.resample(piece):
                out.mux(sound.encode(part))
        for part in resampler.resample(None):
            out.mux(sound.encode(part))
        out.mux(picture.encode(None))
        out.mux(sound.encode(None))


def heard(path):
    """(codec, seconds of sound, second at which the tone starts) of a file's first audio track."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        resampler = av.AudioResampler("fltp", "mono", 48000)
        first, found = None, []
        for frame in [*file.decode(stream), None]:
            first = frame.time if first is None else first
            found += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        wave = np.concatenate(found)
        return stream.codec_context.name, first + len(wave) / 48000, first + np.argmax(np.abs(wave) > 0.2) / 48000


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("b.avi", "pcm_s16le"), ("c.mkv", "flac")])
def test_sound_is_kept_when_asked(tmp_path, monkeypatch, capsys, name, codec):
    root = tmp_path / "in"
    root.mkdir()
    tone(root / name, codec)
    encode(root, Kind("silent.mp4", frames=3))
    before, kept = heard(root / name), "flac" if codec == "flac" else "aac"
    assert run(monkeypatch, capsys, "prepare", root, tmp_path / "out", "--workers", "1")[0] == 0
    target = (tmp_path / "out" / name).with_suffix(".mp4")
    with av.open(str(target)) as file:
        assert not file.streams.audio
    code, said = run(monkeypatch, capsys, "prepare", root, tmp_path / "out", "--workers", "1", "--sound", "keep")
    assert code == 0
    assert "(again: sound keep, was drop)" in said.out
    after = heard(target)
    assert after[0] == kept
    assert after[1] == pytest.approx(before[1], abs=0.06)
    assert after[2] == pytest.approx(before[2], abs=0.03), "the tone stays where it was"
    lines = manifest(tmp_path / "out")
    assert (lines[name]["sound"], "sound" in lines["silent.mp4"]) == (kept, False)
    with open_reader(root / name) as one, open_reader(target) as other:
        assert torch.allclose(one.times, other.times, atol=1e-4)


def test_out_may_lie_in_the_collection(tmp_path, monkeypatch, capsys):
    encode(tmp_path, Kind("a.mp4", frames=3))
    for skipped in (0, 1):
        code, said = run(monkeypatch, capsys, "prepare", tmp_path, tmp_path / "small")
        assert code == 0
        assert f"{skipped} skipped" in said.out
    assert not (tmp_path / "small/small").exists()


@pytest.mark.parametrize("line", [b"7\n", b"{}\n", b"\xff\xfe\n", b'{"file": "a.mp4"}\n', b"[" * 9000 + b"\n"])
def test_a_damaged_manifest_does_not_stop_it(tmp_path, line):
    encode(tmp_path / "in", Kind("a.mp4", frames=4))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_bytes(line)
    for status in ("done", "skipped"):
        assert [each["status"] for each in prepare_collection(tmp_path / "in", tmp_path / "out", Encoding(), 1)] == [
            status
        ]


@pytest.mark.parametrize("slow", ["opening", "a frame"])
def test_a_file_that_takes_too_long_is_named(tmp_path, monkeypatch, slow):
    for name in ("a.mp4", "b.mp4"):
        encode(tmp_path / "in", Kind(name))
    open_it, walk = PyavReader.__init__, PyavReader.walk

    def opened(reader, path):
        while slow == "opening" and path == tmp_path / "in" / "b.mp4":
            pass
        open_it(reader, path)

    def walked(reader, size=None):
        for number, found in enumerate(walk(reader, size)):
            while slow == "a frame" and number == 5 and reader.path.name == "b.mp4":
                pass
            yield found

    monkeypatch.setattr("mim_video.prepare.ITEM_SECONDS", 1)
    monkeypatch.setattr(PyavReader, "__init__", opened)
    monkeypatch.setattr(PyavReader, "walk", walked)
    lines = {line["file"]: line for line in prepare_collection(tmp_path / "in", tmp_path / "out", Encoding(), 1)}
    assert lines["a.mp4"]["status"] == "done"
    assert lines["b.mp4"]["status"] == "failed"
    assert "longer than 1" in lines["b.mp4"]["reason"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.mp4", "manifest.jsonl"]


def test_new_sizes_are_even_and_never_larger():
    assert new_size((360, 640), 320) == (320, 568)
    assert new_size((97, 131), 320) == (96, 132)
    assert new_size((1920, 1080), 256) == (456, 256)


def test_probe(collection, monkeypatch, capsys):
    code, said = run(monkeypatch, capsys, "probe", collection / "some/class/variable.mp4", "--json")
    assert code == 0
    seen = json.loads(said.out)["readers"]["pyav"]
    assert seen["frames"] == 60
    assert seen["codec"] == "h264"
    assert seen["key_frame_distance"] == 12
    assert seen["rate"]["max"] > 2 * seen["rate"]["mean"] > 4 * seen["rate"]["min"]
    code, said = run(monkeypatch, capsys, "probe", collection / "some/class/turned-90.mp4")
    assert code == 0
    assert "128 x 96 pixels" in " ".join(said.out.split())
    assert "90 degrees" in said.out
    assert "do not decode 0" in " ".join(said.out.split())
    code, said = run(monkeypatch, capsys, "probe", collection / "empty.mp4")
    assert code == 1
    assert "the file is empty" in said.out


def damaged(folder, name):
    """A video with a tenth of its bytes overwritten, in the middle."""
    path = encode(folder, Kind(name, frames=120))
    whole = bytearray(path.read_bytes())
    start, stop = int(len(whole) * 0.4), int(len(whole) * 0.5)
    whole[start:stop] = bytes(stop - start)
    path.write_bytes(whole)
    return path


def test_probe_counts_the_frames_that_do_not_decode(tmp_path, monkeypatch, capsys):
    path = damaged(tmp_path, "damaged.mp4")
    code, said = run(monkeypatch, capsys, "probe", path, "--json")
    assert code == 0
    seen = json.loads(said.out)["readers"]["pyav"]
    with open_reader(path) as reader:
        bad = []
        for number in range(len(reader)):
            try:
                reader.frames_at([number])
            except BadSample:
                bad.append(number)
    assert 0 < len(bad) < 60
    assert (seen["frames"], seen["decoded"], seen["do_not_decode"]) == (120, 120 - len(bad), len(bad))
    assert seen["the_first_of_them"] == bad[:5]
    code, said = run(monkeypatch, capsys, "probe", path, "--frames", bad[0])
    words = " ".join(said.out.split())
    assert f"decoded {bad[0]} do not decode 0 not looked at {120 - bad[0]}" in words
    assert run(monkeypatch, capsys, "probe", path, "--frames", "-1")[0] == 2
    code, said = run(monkeypatch, capsys, "prepare", tmp_path, tmp_path / "out", "--workers", "1")
    assert f"damaged.mp4: {120 - len(bad)} frames" in said.out
    assert f"({len(bad)} more do not decode)" in said.out
    assert manifest(tmp_path / "out")["damaged.mp4"]["lost"] == len(bad)


def test_probe_names_missing_readers_below(collection, monkeypatch, capsys):
    monkeypatch.setattr("mim_video.commands.known_readers", lambda: {"pyav": "18", "torchcodec": None, "decord": None})
    monkeypatch.chdir(collection / "some/class")
    lines = run(monkeypatch, capsys, "probe", "late.mp4")[1].out.splitlines()
    assert lines[1].split() == ["pyav"]
    assert lines[-1] == 'decord is not installed: pip install "mim-video[decord]"'


def test_a_full_disk_ends_it_and_another_process_keeps_it_out(tmp_path, monkeypatch, capsys):
    encode(tmp_path / "in", next(kind for kind in CHOSEN if kind.name == "odd.webm"))
    given = ["prepare", tmp_path / "in", tmp_path / "out", "--workers", 1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # a disk with as much room
    try:
        code, said = run(monkeypatch, capsys, *given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "a file may not be so large there (ulimit -f)" in said.err
    assert not manifest(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.jsonl"]
    lock = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", lock, str(tmp_path / "out/.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    other.stdout.readline()
    code, said = run(monkeypatch, capsys, *given)
    other.communicate("")
    assert code == 2
    assert f"Another process writes into {tmp_path / 'out'} (" in " ".join(said.err.split())
