"""Clips that are folders of numbered pictures, lists of paths and labels, and labels of clips from a table."""

import numpy as np
import pytest
import torch
from mim_core import BadSample, MimError
from mim_video.data import Clips
from mim_video.layouts import find_clips
from mim_video.reader_frames import FrameFolder
from mim_video.readers import Reader, open_reader
from PIL import Image

SHAPES = {"video": (3, 4, 16, 16)}


def frames(folder, numbers=range(8), size=(24, 20), name="{:04}.png", mode="RGB"):
    """Pictures of one grey value each, ten times their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", size, (10 * number,) * 3).convert(mode).save(folder / name.format(number))
    return folder


@pytest.fixture
def clips(tmp_path):
    """Ten clips of 8 frames, in two classes."""
    for number in range(10):
        frames(tmp_path / "clips" / "ab"[number % 2] / f"v{number}.x")
    return tmp_path / "clips"


def source(root, **options):
    return Clips(Clips.Config(root=root, stride=1, crop="centre", **options), SHAPES)


def test_a_reader_of_frames(tmp_path):
    folder = frames(tmp_path / "v", numbers=[9, 10, 11, 8], name="img_{}.png")
    with open_reader(folder, rate=10.0) as reader:
        assert isinstance(reader, Reader)
        assert (len(reader), reader.size, reader.times.tolist()) == (4, (20, 24), [0.0, 0.1, 0.2, 0.3])
        found = reader.frames_at([3, 0, 0])
        assert found.shape == (3, 20, 24, 3)
        assert found[:, 0, 0, 0].tolist() == [110, 80, 80], "in the order of their numbers, not of their names"
        assert reader.frames_at([1], (10, 12)).shape == (1, 10, 12, 3)
        with pytest.raises(IndexError):
            reader.frames_at([4])


def test_every_fifth_frame_is_a_sequence_too(tmp_path):
    assert len(FrameFolder(frames(tmp_path / "v", numbers=range(0, 25, 5)))) == 5


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_kinds_of_frames(tmp_path, mode):
    folder = frames(tmp_path / "v", numbers=[0, 1], mode=mode, name="{}.tif")
    assert FrameFolder(folder).frames_at([0]).shape == (1, 20, 24, 3)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "0003.png").unlink(), "frames are missing between 0002.png and 0004.png"),
        (lambda f: frames(f, [3], name="{}.jpg"), "two frames have one number: 0003.png and 3.jpg"),
        (lambda f: frames(f, [0, 1], name="flow_{}.png"), r"frames of 2 kinds \(0000.png, flow_0.png\)"),
        (lambda f: frames(f, [0], (30, 20)), "its frame 0001.png has 24 x 20 pixels, and 0000.png 30 x 20"),
        (lambda f: (f / "0001.png").write_bytes(b"no picture"), "its frame 0001.png cannot be read"),
        (lambda f: Image.new("I;16", (24, 20)).save(f / "0001.png"), "it is of the mode I;16"),
    ],
)
def test_folders_that_are_no_sequence(clips, spoil, said):
    spoil(clips / "a" / "v0.x")
    data = Clips(Clips.Config(root=clips, stride=1), {"video": (3, 8, 16, 16)})
    with pytest.raises(BadSample, match=said) as caught:
        data.read(0, 1)
    assert caught.value.path == "a/v0.x"
    assert data.read(1, 1)["video"].shape == (3, 8, 16, 16)


def test_a_folder_of_folders_of_frames(clips):
    data = source(clips)
    assert (len(data), data.name_of(0)) == (10, "a/v0.x")
    assert data.labelled("train").classes == ("a", "b")
    held = data.labelled("test")
    assert held.names == ("a/v8.x", "b/v9.x")
    assert held.items[0]["video"].shape == (3, 4, 16, 16)
    assert torch.equal(data.read(2, 7)["video"], source(clips).read(2, 7)["video"])
    assert data.plan()["reader"].startswith("folders of frames, their rate is not stated")
    assert "folders of frames (.png); 24 x 20 pixels" in data.contents()["files hold"]
    files = list(data.files_of())
    assert len(files[0]) == 9
    assert files[0][0].endswith("a/v0.x")
    assert files[0][1].endswith("0000.png")


def test_times_need_a_rate(clips):
    with pytest.raises(MimError, match=r"--data.frame-rate 25"):
        source(clips, fps=4)
    data = source(clips, fps=2, frame_rate=4)
    values = data.labelled("test").items[0]["video"][0, :, 0, 0].tolist()
    assert np.diff(values).tolist() == [20, 20, 20], "every second frame"
    assert "4 per second" in data.plan()["reader"]


def test_pictures_beside_videos_are_no_clips(tmp_path):
    frames(tmp_path / "thumbs")
    (tmp_path / "a.mp4").write_bytes(b"x")
    found = find_clips(tmp_path)
    assert (found.pretrain.files, found.others[".png"]) == (("a.mp4",), 8)


def test_single_pictures_are_no_clips(tmp_path):
    for number in range(3):
        frames(tmp_path / "ab"[number % 2] / str(number), [0])
    with pytest.raises(MimError, match=r"A clip may be a folder of pictures whose names end in numbers.*mim-image"):
        find_clips(tmp_path)


# ---- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["{} {}", "{} 8 {}", "{},{}"], ids=["videos", "frames", "commas"])
@pytest.mark.parametrize("whole", [False, True], ids=["below", "absolute"])
def test_lists_of_paths_and_labels(clips, line, whole):
    rows = [line.format(f"{clips}/" * whole + f"{'ab'[i % 2]}/v{i}.x", [3, 12][i % 2]) for i in range(10)]
    (clips / "train.csv").write_text("\n".join(rows[:6]))
    (clips / "val.csv").write_text("\n".join([*rows[6:9], line.format("gone/v99.x", 3)]))
    data = source(clips)
    assert (data.clips.kind, len(data)) == ("lists", 6)
    assert data.labelled("train").classes == ("3", "12"), "in the order of the numbers"
    assert sorted(data.labelled("test").names) == ["a/v6.x", "a/v8.x", "b/v7.x"]
    assert data.plan()["missing clips"] == "1 that the lists name: gone/v99.x"
    assert data.contents()["splits"] == "train.csv for training (6), val.csv held out (3)"


def test_lists_without_classes_or_without_clips(clips):
    (clips / "train.csv").write_text("\n".join(f"{'ab'[i % 2]}/v{i}.x 0 -1" for i in range(6)))
    data = source(clips)
    assert len(data) == 6
    with pytest.raises(MimError, match="no classes"):
        data.labelled("train")
    (clips / "train.csv").write_text("elsewhere/w1 0\nelsewhere/w2 1")
    assert source(clips).clips.kind == "folder", "a list of nothing that is there is another data set's"
    with pytest.raises(MimError, match=r"None of the 2 clips of .*train.csv is in"):
        source(clips, layout="lists")


def test_lists_that_contradict_each_other(clips):
    (clips / "train.csv").write_text("a/v0.x 0\nb/v1.x 1\na/v2.x 0")
    (clips / "val.csv").write_text("a/v0.x 0\nb/v3.x 1")
    data = source(clips)
    assert len(data) == 2
    assert any("never trained on" in line for line in data.advice())
    (clips / "val.csv").write_text("a/v4.x 0\nb/v3.x 7")
    with pytest.raises(MimError, match=r"has classes that train.csv lacks: 7"):
        source(clips)
    (clips / "train.csv").write_text("a/v0.x 0\na/v0.x 1")
    with pytest.raises(MimError, match="a file has one label here"):
        source(clips)


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path):
    """Ten clips in one folder."""
    for number in range(10):
        frames(tmp_path / "clips" / f"v{number}")
    return tmp_path / "clips"


def test_a_table_beside_clips(flat):
    rows = [f"v{i},{'xy'[i % 2]}" for i in range(9)]
    (flat / "labels.csv").write_text("\n".join(["path,label", *rows, "v77,x"]))
    data = source(flat)
    assert data.labelled("train").classes == ("x", "y")
    assert len(data) == 10
    assert len(data.labelled("train").labels) + len(data.labelled("test").labels) == 9
    said = " ".join(data.advice())
    assert "1 row of" in said
    assert "v77" in said
    assert "1 file have no label" in said
    assert int(data.read_labelled(0, 1)["label"]) == int(data.labelled("train").labels[0])


def test_a_named_table_with_splits(flat, tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text(
        "\n".join(["Clip\tkind\tset", *(f"v{i}\t{'xy'[i % 2]}\t{'val' if i > 7 else 'train'}" for i in range(10))])
    )
    data = source(flat, labels_from=table, labels_column="kind")
    assert (len(data), data.labelled("test").names) == (8, ("v8", "v9"))
    with pytest.raises(MimError, match="has no column 'sort'"):
        source(flat, labels_from=table, labels_column="sort")
    with pytest.raises(MimError, match=r"goes with --data.layout folder"):
        source(flat, labels_from=table, labels_column="kind", layout="kinetics")


def test_a_table_that_nobody_named_may_be_of_something_else(flat):
    (flat / "labels.csv").write_text("path,label\nother,1\nthing,2")
    data = source(flat)
    with pytest.raises(MimError, match=r"no classes.*none of its 2 rows names a file"):
        data.labelled("train")
