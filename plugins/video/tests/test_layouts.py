"""Clips as they lie on disk: folders, UCF101, Kinetics, Something-Something v2, as small real files laid out so."""

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mim_core.errors import BadSample, MimError
from mim_video.data import SAMPLE, Clips
from mim_video.layouts import find_clips, recognise

CODECS = {".mp4": "libx264", ".avi": "mpeg4", ".webm": "libvpx"}


@pytest.fixture
def film(tmp_path):
    """``film("deep/a.mp4", frames=10)`` encodes a clip below the test's folder: grey that gets brighter, 10 a
    second."""

    def make(name, frames=10, size=(32, 32)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as file:
            stream = file.add_stream(CODECS[path.suffix], rate=10)
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            for i in range(frames):
                grey = np.full((*size, 3), 20 + 200 * i // max(1, frames - 1), np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            file.mux(stream.encode())
        return path

    return make


def source(root, **options):
    return Clips(Clips.Config(root=root, stride=1, **options), {"video": (3, 4, 16, 16)})


def stems(store):
    return [Path(file).stem for file in store.files]


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_fifth_of_each_class_is_held_out(film, tmp_path):
    for label, count in (("run", 6), ("jump", 4)):
        for i in range(count):
            film(f"{label}/deep/{i}.mp4", 2)
    film("run/deep/.hidden.mp4", 2)
    found = find_clips(tmp_path)
    assert found.kind == "folder"
    assert found.pretrain.classes == ("jump", "run")
    assert found.test.files == ("run/deep/4.mp4",)
    assert len(found.pretrain) == 10
    assert set(found.train.files) | set(found.test.files) == set(found.pretrain.files)
    assert "has seen them, without labels" in found.test.note


@pytest.mark.parametrize("held_out", ["test", "val", "validation", "validate"])
def test_own_splits_are_kept(film, tmp_path, held_out):
    for label in ("run", "jump"):
        film(f"train/{label}/a.mp4", 2)
        film(f"train/{label}/b.avi", 2)
        film(f"{held_out}/{label}/c.webm", 2)
    clips = source(tmp_path)
    assert len(clips) == 4
    assert clips.labelled("train").labels.tolist() == [0, 0, 1, 1]
    assert clips.labelled("test").labels.tolist() == [0, 1]
    assert clips.labelled("test").note == ""
    for i in range(2):
        assert clips.labelled("test").items[i]["video"].shape == (3, 4, 16, 16)


def test_splits_with_other_classes_are_refused(film, tmp_path):
    for name in ("train/run/0.mp4", "train/jump/0.mp4", "test/run/0.mp4", "test/swim/0.mp4"):
        film(name, 2)
    with pytest.raises(MimError, match=r"the classes of train and test differ, in: jump, swim\."):
        find_clips(tmp_path)


@pytest.mark.parametrize("layout", ["auto", "folder"])
def test_no_videos(tmp_path, layout):
    (tmp_path / "a.png").write_text("")
    with pytest.raises(MimError, match=r"No videos in .*Looked for \.mp4, .*found 1 x \.png"):
        find_clips(tmp_path, layout)


@pytest.mark.parametrize(
    ("layout", "said"),
    [("ucf101", "trainlist01.txt"), ("ssv2", "labels.json"), ("kinetics", "youtube_id, .*found no csv files")],
)
def test_no_lists(film, tmp_path, layout, said):
    film("a.mp4", 2)
    with pytest.raises(MimError, match=f"{tmp_path}. Looked for .*{said}"):
        find_clips(tmp_path, layout)


def test_no_classes(film, tmp_path):
    film("one/a.mp4", 2)
    with pytest.raises(MimError, match="has no classes to evaluate with: clips should lie in one folder per class"):
        source(tmp_path).labelled("test")


@pytest.mark.parametrize(
    ("root", "said"), [(None, "Which clips"), ("nowhere", "does not exist"), ("a", "not a folder")]
)
def test_no_folder(tmp_path, root, said):
    (tmp_path / "a").write_text("")
    with pytest.raises(MimError, match=said):
        source(root and tmp_path / root)


def test_bundled_clips():
    found = find_clips(SAMPLE, "folder")
    assert (len(found.pretrain), len(found.test)) == (360, 120)
    assert torch.tensor(found.train.labels).bincount().tolist() == [30] * 12
    assert torch.tensor(found.test.labels).bincount().tolist() == [10] * 12
    assert not set(stems(found.train)) & set(stems(found.test))  # the names are the seeds
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*")) < 4_000_000
    assert "MIT License" in (SAMPLE / "LICENSE").read_text()


# ---- UCF101 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ucf(film, tmp_path):
    """Two classes of three groups; group k of a class is tested in split k."""
    names = {1: "ApplyEyeMakeup", 2: "HandstandPushups"}
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\r\n" for i, name in names.items()))
    for split in (1, 2, 3):
        train, test = "", ""
        for i, name in names.items():
            for group in (1, 2, 3):
                line = f"{name}/v_{name}_g{group:02}_c01.avi"
                train += f"{line} {i}\n" if group != split else ""
                test += f"{line}\n" if group == split else ""
        (lists / f"trainlist{split:02}.txt").write_text(train)
        (lists / f"testlist{split:02}.txt").write_text(test)
    for name in names.values():
        for group in (1, 2, 3):
            film(f"UCF-101/{name}/v_{name}_g{group:02}_c01.avi")
    return tmp_path


def test_the_lists_of_ucf101_are_not_left_out(ucf):
    (ucf / "notes.txt").write_text("mine")
    assert find_clips(ucf, "ucf101").others == {".txt": 1}


@pytest.mark.parametrize("split", [1, 2, 3])
def test_ucf101(ucf, split):
    assert recognise(ucf) == "ucf101"
    clips = source(ucf, split=split)
    assert clips.clips.test.classes == ("ApplyEyeMakeup", "HandstandPushups")
    assert stems(clips.clips.test) == [f"v_{c}_g0{split}_c01" for c in ("ApplyEyeMakeup", "HandstandPushups")]
    assert clips.labelled("test").labels.tolist() == [0, 1]
    assert clips.labelled("train").labels.tolist() == [0, 0, 1, 1]
    assert len(clips) == 4
    assert clips.read(0, 1)["video"].shape == (3, 4, 16, 16)


def test_ucf101_from_its_own_folder(ucf):
    assert recognise(ucf / "UCF-101") == "ucf101"
    assert len(find_clips(ucf / "UCF-101").pretrain) == 4


def test_ucf101_with_missing_clips(ucf):
    (ucf / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi").unlink()
    clips = source(ucf)
    assert clips.plan()["missing clips"] == "1 that the lists name: v_ApplyEyeMakeup_g02_c01"
    assert clips.labelled("train").note == "1 of 4 listed train clips are missing."
    assert clips.labelled("train").labels.tolist() == [0, 1, 1]
    with pytest.raises(MimError, match="splits 1, 2 and 3, not 4"):
        source(ucf, split=4)


@pytest.mark.parametrize("link", ["up", "beside"])
def test_links_back_change_nothing(film, tmp_path, link):
    """A link to the folder above it, and one to another class."""
    for label in ("hop", "run", "up"):
        film(f"clips/{label}/1.mp4", 2)
    before = find_clips(tmp_path / "clips").pretrain
    (tmp_path / "clips/hop" / link).symlink_to({"up": "..", "beside": "../run"}[link])
    assert find_clips(tmp_path / "clips").pretrain == before
    film("elsewhere/2.mp4", 2)
    (tmp_path / "clips/hop/more").symlink_to(tmp_path / "elsewhere")
    assert find_clips(tmp_path / "clips").pretrain.files == ("hop/1.mp4", "hop/more/2.mp4", "run/1.mp4", "up/1.mp4")


def test_lists_with_a_byte_order_mark(ucf):
    before = find_clips(ucf)
    for path in ucf.rglob("*.txt"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert find_clips(ucf) == before


# ---- Kinetics --------------------------------------------------------------------------------------------------------


def listing(path, split, rows, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        writer.writerows([*row, split] for row in rows)


def test_kinetics(film, tmp_path):
    """Trimmed clips in class folders, one whole video with its part in seconds, one that is missing."""
    rows = [("riding a bike", "-a_B0c1D2e3", 10, 20), ("zumba", "ZZ_zzz00000", 2, 4), ("zumba", "gone0000000", 5, 15)]
    listing(tmp_path / "train.csv", "train", rows)
    listing(tmp_path / "val.csv", "val", [("zumba", "vvvvvvvvvvv", 1, 11)])
    film("train/riding_a_bike/-a_B0c1D2e3_000010_000020.mp4")
    film("train/zumba/ZZ_zzz00000.mp4", frames=60)
    film("val/zumba/vvvvvvvvvvv_000001_000011.mp4")
    assert recognise(tmp_path) == "kinetics"
    clips = source(tmp_path, crop="centre")
    assert clips.clips.train.classes == ("riding a bike", "zumba")
    assert clips.labelled("train").labels.tolist() == [0, 1]
    assert clips.labelled("test").labels.tolist() == [1]
    assert clips.clips.missing == ("gone0000000",)
    assert clips.name_of(0) == "train/riding_a_bike/-a_B0c1D2e3_000010_000020.mp4"
    assert clips.name_of(1) == "train/zumba/ZZ_zzz00000.mp4 (2 to 4 s)"
    seen = torch.stack([clips.read(1, key)["video"].float().mean((0, 2, 3)) for key in range(20)])
    # frames 20 to 39 of 60, which are from 87 to 152 bright
    assert 80 < float(seen.min()) < 95
    assert 145 < float(seen.max()) < 160
    whole = torch.stack([clips.read(0, key)["video"].float().mean((0, 2, 3)) for key in range(20)])
    assert float(whole.max()) - float(whole.min()) > 190


def test_kinetics_with_a_byte_order_mark(film, tmp_path):
    rows = [("riding", "AA_aaa00000", 1, 2), ("zumba", "ZZ_zzz00000", 2, 4)]
    listing(tmp_path / "train.csv", "train", rows, "utf-8-sig")
    for _, stem, _, _ in rows:
        film(f"{stem}.mp4", 2)
    found = find_clips(tmp_path)
    assert (found.kind, found.train.classes, found.train.labels) == ("kinetics", ("riding", "zumba"), [0, 1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "youtube_id,time_start,time_end,split\nA,0,1,train\n",
            "column label is missing; there are youtube_id, ",
        ),
        ("label,youtube_id,time_start,time_end\nx,A,0,1\n,B,0,1\n", "line 3: B is for training .* label is empty"),
        ("label,youtube_id,time_start,time_end\nx,A,0,1\nx,B,,1\n", "line 3: the column time_start .* is ''"),
        ("label,youtube_id,time_start,time_end\nx,A,0,soon\n", "line 2: the column time_end .* is 'soon'"),
        ("label,youtube_id,time_start,time_end\nx,A,0\n", "line 2: the column time_end .* is ''"),
        ("label,youtube_id,time_start,time_end\nx,A,nan,1\n", "line 2: the column time_start .* is 'nan'"),
        ("label,youtube_id,time_start,time_end\nx,A,3,2\n", r"line 2: time_end \(2\) should be larger"),
        ("label,youtube_id,time_start,time_end\nx,,3,4\n", "line 2: the column youtube_id is empty"),
        (
            "label,id,time_start,time_end\nx,A,3,4\n",
            "No lists of Kinetics .* found train.csv with label, id, ",
        ),
    ],
)
def test_kinetics_lists_that_cannot_be_used(film, tmp_path, text, said):
    film("A.mp4", 2)
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(MimError, match=said) as caught:
        find_clips(tmp_path, "kinetics")
    assert "train.csv" in str(caught.value)


def test_kinetics_part_beyond_the_file(film, tmp_path):
    listing(tmp_path / "train.csv", "train", [("zumba", "ZZ_zzz00000", 2, 4), ("yoga", "YY_yyy00000", 0, 1)])
    film("ZZ_zzz00000.mp4")
    film("YY_yyy00000.mp4")
    clips = source(tmp_path)
    assert clips.read(1, 0)["video"].shape == (3, 4, 16, 16)
    with pytest.raises(BadSample) as caught:
        clips.read(0, 0)
    assert (caught.value.path, caught.value.reason) == (
        "ZZ_zzz00000.mp4 (2 to 4 s)",
        "it has no frames in that part: its frames are from 0 to 0.9 s (has it been trimmed already?)",
    )


def test_kinetics_same_video_in_two_classes(film, tmp_path):
    rows = [("zumba", "same0000000", 0, 10), ("yoga", "same0000000", 10, 20), ("yoga", "both0000000", 0, 10)]
    listing(tmp_path / "train.csv", "train", [*rows, ("zumba", "both0000000", 0, 10)])
    for name in ("zumba/same0000000_000000_000010", "yoga/same0000000_000010_000020"):
        film(f"train/{name}.mp4", 2)
    for label in ("yoga", "zumba"):
        film(f"train/{label}/both0000000_000000_000010.mp4", 2)
    found = find_clips(tmp_path)
    assert [file.split("/")[1] for file in found.train.files] == ["zumba", "yoga", "yoga", "zumba"]
    assert found.train.labels == [1, 0, 0, 1]


def test_kinetics_without_labelled_test(film, tmp_path):
    """The official test csv has no column of labels."""
    listing(tmp_path / "train.csv", "train", [("zumba", "ZZ_zzz00000", 2, 4)])
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\nTT_ttt00000,0,10,test\n")
    film("ZZ_zzz00000.mp4")
    found = find_clips(tmp_path)
    assert (len(found.train), len(found.test)) == (1, 0)
    listing(tmp_path / "val.csv", "val", [("yoga", "gone0000000", 0, 10)])
    with pytest.raises(MimError, match=r"\(kinetics\) has no test clips .* 1 of 1 listed test clips are missing\."):
        source(tmp_path).labelled("test")


def test_kinetics_lists_in_two_places_count_once(film, tmp_path):
    for folder in (tmp_path, tmp_path / "annotations"):
        folder.mkdir(exist_ok=True)
        listing(folder / "train.csv", "train", [("zumba", "ZZ_zzz00000", 2, 4), ("yoga", "YY_yyy00000", 0, 1)])
        listing(folder / "val.csv", "val", [("zumba", "vvvvvvvvvvv", 1, 11)])
    for stem in ("ZZ_zzz00000_000002_000004", "YY_yyy00000_000000_000001", "vvvvvvvvvvv_000001_000011"):
        film(f"{stem}.mp4", 2)
    found = find_clips(tmp_path)
    assert (len(found.train), len(found.test), found.missing) == (2, 1, ())


def test_kinetics_nothing_downloaded(film, tmp_path):
    listing(tmp_path / "train.csv", "train", [("zumba", "ZZ_zzz00000", 2, 4)])
    film("other.mp4", 2)
    with pytest.raises(MimError, match=r"None of the 1 listed training clips is in .*: ZZ_zzz00000, .* ID\.mp4"):
        find_clips(tmp_path)


# ---- Something-Something v2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "folder"), [("", "labels/"), ("something-something-v2-", "")])
def test_ssv2(film, tmp_path, prefix, folder):
    lists = tmp_path / folder
    lists.mkdir(exist_ok=True)
    numbers = {"Pushing something from left to right": "1", "Holding something": "0"}
    (lists / f"{prefix}labels.json").write_text(json.dumps(numbers))
    train = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "42326", "label": "pushing a cup from left to right",
         "template": "Pushing [something] from left to right", "placeholders": ["a cup"]},
        {"id": "999", "label": "holding air", "template": "Holding [something]", "placeholders": ["air"]},
    ]  # fmt: skip
    (lists / f"{prefix}train.json").write_text(json.dumps(train))
    (lists / f"{prefix}validation.json").write_text(json.dumps([{**train[1], "id": "7"}]))
    (lists / f"{prefix}test.json").write_text(json.dumps([{"id": "8"}]))
    for name in ("78687", "42326", "7", "8"):
        film(f"20bn-something-something-v2/{name}.webm")
    assert recognise(tmp_path) == "ssv2"
    clips = source(tmp_path, segments=True)
    assert clips.clips.test.classes == ("Holding something", "Pushing something from left to right")
    assert clips.labelled("train").labels.tolist() == [0, 1]
    assert clips.labelled("test").labels.tolist() == [1]
    assert clips.clips.missing == ("999",)
    assert clips.read(1, 5)["video"].shape == (3, 4, 16, 16)


def test_ssv2_with_a_byte_order_mark(film, tmp_path):
    for name, content in (("labels", {"Holding something": "0"}), ("train", []), ("validation", [])):
        rows = [{"id": "1", "template": "Holding [something]"}] if name == "train" else content
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    film("1.webm", 2)
    assert find_clips(tmp_path).train.labels == [0]


def test_ssv2_unknown_template(film, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "0"}))
    (tmp_path / "train.json").write_text(json.dumps([{"id": "1", "template": "Eating [something]"}]))
    (tmp_path / "validation.json").write_text("[]")
    film("1.webm", 2)
    with pytest.raises(MimError, match=r"the clip 1 has the template 'Eating \[something\]', which is no label"):
        find_clips(tmp_path)
    (tmp_path / "train.json").write_text("[")
    with pytest.raises(MimError, match=r"train.json cannot be read: Expecting"):
        find_clips(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("labels.json", '["Holding something"]', "labels.json should be an object of label to number"),
        ("labels.json", '{"Holding something": "zero"}', "labels.json should be an object of label to number"),
        ("train.json", '{"1": {"template": "x"}}', "train.json should be a list of objects, each with id and template"),
        ("train.json", '[{"template": "Holding [something]"}]', "train.json should be a list of objects"),
    ],
)
def test_ssv2_lists_of_another_form(film, tmp_path, name, text, said):
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "0"}))
    (tmp_path / "train.json").write_text(json.dumps([{"id": "1", "template": "Holding [something]"}]))
    (tmp_path / "validation.json").write_text("[]")
    film("1.webm", 2)
    assert find_clips(tmp_path).train.files == ("1.webm",)
    (tmp_path / name).write_text(text)
    with pytest.raises(MimError, match=said):
        find_clips(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1 ApplyEyeMakeup\r\n2\r\n", r"classInd.txt, line 2 should be a number and a class and is '2'"),
        ("1 ApplyEyeMakeup".encode("utf-16"), r"classInd.txt is no text in UTF-8"),
    ],
)
def test_ucf101_classes_of_another_form(ucf, content, said):
    next(ucf.rglob("classInd.txt")).write_bytes(content)
    with pytest.raises(MimError, match=said):
        find_clips(ucf)


def test_clips_that_are_listed_twice_count_once_and_held_out_ones_are_never_trained_on(film, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"Holding": "0", "Pushing": "1"}))
    train = [("1", "Holding"), ("2", "Pushing"), ("1", "Holding"), ("2", "Holding"), ("3", "Pushing"), ("4", "Holding")]
    for name, rows in (("train", train), ("validation", [("3", "Pushing"), ("5", "Holding")])):
        rows = [{"id": number, "template": label} for number, label in rows]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    for number in range(1, 6):
        film(f"{number}.webm", 2)
    clips = source(tmp_path)
    assert stems(clips.clips.pretrain) == ["1", "2", "4"]
    assert clips.labelled("train").labels.tolist() == [0, 1, 0]
    assert stems(clips.clips.test) == ["3", "5"]
    said = clips.advice()
    assert any("1 clip of" in line and "never trained on (3.webm)" in line for line in said)
    assert any("listed more than once in train: counted once (1.webm)" in line for line in said)
    assert any("with more than one class: the first is taken (2.webm)" in line for line in said)
