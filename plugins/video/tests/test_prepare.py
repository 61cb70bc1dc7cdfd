"""mim-video prepare and probe, on small real files."""

import json
import os
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mim_video.plugin import main
from mim_video.prepare import Encoding, new_size, prepare_collection
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
    root = tmp_path / "twice"
    encode(root, Kind("a.mp4", frames=3))
    encode(root, Kind("a.mkv", frames=3))
    code, said = run(monkeypatch, capsys, "prepare", root, tmp_path / "out")
    assert code == 2
    assert "same name: a.mkv, a.mp4" in said.err
    (root / "a.mkv").unlink()


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
    assert "96 128" in said.out
    assert "90 degrees" in said.out
    code, said = run(monkeypatch, capsys, "probe", collection / "empty.mp4")
    assert code == 1
    assert "the file is empty" in said.out
