"""Tar files of images as webdataset names them: what is found, what is refused, and that nothing else changes."""

import gzip
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.data.collections import split_in
from mim_core.data.loading import KeyedBatches, KeyedDataset, collate, loader
from mim_core.errors import BadSample, MimError
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe, override
from mim_core.testing import DataContract
from mim_core.training import loop
from mim_image.data import Images
from PIL import Image


def picture(seed=0, size=(40, 30), kind="png"):
    """Noise, as the content of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def add(file, name, content=b"", **facts):
    """One member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for fact, value in facts.items():
        setattr(member, fact, value)
    file.addfile(member, io.BytesIO(content))


def write(path, members, **options):
    """A tar file of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members:
            add(file, name, content)
    return path


def samples(numbers, classes=2):
    """A picture and a class for each number."""
    for i in numbers:
        yield f"{i:03}.png", picture(i)
        if classes:
            yield f"{i:03}.cls", str(i % classes).encode()


def names(source):
    return [source.name_of(i) for i in range(len(source))]


class TestShardContract(DataContract):
    part = "image:images"
    shapes = {"image": (3, 24, 20)}

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        for shard in range(2):
            write(tmp_path / f"{shard}.tar", samples(range(shard * 10, shard * 10 + 10)))
        self.root, self.options = tmp_path, {"root": tmp_path}

    def make_broken(self):
        write(self.root / "2.tar", [("a.png", picture()[:300]), ("a.cls", b"1")])
        return Images(Images.Config(root=self.root), self.shapes), 20, "2.tar/a.png"


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_the_same_pixels_as_loose_files(tmp_path, images):
    """Whatever the format, the names and the mode, large JPEGs too, which are decoded small."""
    kinds = {"a.png": "png", "deep/b.JPG": "jpeg", "c.webp": "webp", "d.tif": "tiff"}
    contents = {name: picture(i, (1300, 900), kind) for i, (name, kind) in enumerate(kinds.items())}
    write(tmp_path / "tars/x.tar", contents.items())
    for name, content in contents.items():
        path = tmp_path / "loose/x.tar" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tars, loose = images(root=tmp_path / "tars"), images(root=tmp_path / "loose")
    assert sorted(names(tars)) == sorted(names(loose)) == sorted(f"x.tar/{name}" for name in kinds)
    for i, name in enumerate(names(tars)):
        other = names(loose).index(name)
        assert torch.equal(tars.read(i, 7)["image"], loose.read(other, 7)["image"])


def test_large_jpegs_are_decoded_small(tmp_path, images, monkeypatch):
    write(tmp_path / "x.tar", [("a.jpg", picture(0, (2048, 2048), "jpeg"))])
    sizes = []
    source = images(size=(64, 64), crop=(0.25, 1.0))
    monkeypatch.setattr(
        "mim_image.data.convert_mode", lambda image, *rest: sizes.append(image.size) or image.convert("RGB")
    )
    source.read(0, 1)
    assert sizes == [(256, 256)]


def test_nested_shards_in_the_order_of_names_and_members(tmp_path, images):
    write(tmp_path / "b.tar", [("2.png", picture()), ("1.png", picture())])
    write(tmp_path / "a/z.TAR", [("./x/1.png", picture()), ("/1.v2/2.png", picture())])
    write(tmp_path / "empty.tar", [])
    write(tmp_path / ".hidden.tar", [("1.png", picture())])
    source = images()
    assert names(source) == ["a/z.TAR/x/1.png", "a/z.TAR/1.v2/2.png", "b.tar/2.png", "b.tar/1.png"]
    assert source.plan()["data"] == f"{tmp_path}: 4 images in 3 shards for training, no classes"
    (said,) = source.advice()
    assert "without any file in it, though perhaps of the right size (empty.tar)" in said


def test_one_tar_file_as_the_root(tmp_path, images):
    path = write(tmp_path / "one.tar", samples(range(10)))
    write(tmp_path / "other.tar", samples(range(3)))
    source = images(root=path)
    assert names(source) == [f"one.tar/{i:03}.png" for i in range(10)]
    assert source.plan()["data"] == f"{path}: 10 images in 1 shard for training, 2 classes"
    assert source.read(9, 1)["image"].shape == (3, 8, 8)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_kind(tmp_path, images, kind):
    long = "d" * 90 + "/" + "n" * 90 if kind == tarfile.USTAR_FORMAT else "é" * 40 + "n" * 150
    write(tmp_path / "x.tar", [(f"{long}.png", picture(1)), ("2.png", picture(2))], format=kind)
    write(tmp_path / "y.tar", [(f"{long}.png", picture(1))], format=kind)
    source = images(size=(30, 40), crop=(1.0, 1.0))
    assert names(source) == [f"x.tar/{long}.png", "x.tar/2.png", f"y.tar/{long}.png"]  # equal keys both count
    assert torch.equal(source.read(0, 1)["image"], source.read(2, 1)["image"])


def test_folders_hidden_members_links_and_other_files(tmp_path, images):
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        add(file, "deep", type=tarfile.DIRTYPE)
        add(file, "folder.png", type=tarfile.DIRTYPE)
        add(file, "deep/1.png", picture(1))
        add(file, "deep/._1.png", b"a Mac's")
        add(file, ".thumbs/1.png", picture(2))
        add(file, "hard.png", type=tarfile.LNKTYPE, linkname="deep/1.png")
        add(file, "soft.png", type=tarfile.SYMTYPE, linkname="deep/1.png")
        add(file, "holes.png", picture(3), pax_headers={"GNU.sparse.map": "0,512"})
        add(file, "text.txt", type=tarfile.SYMTYPE, linkname="deep/1.png")
        add(file, "deep/1.json", b"{}")
        add(file, "readme.txt", b"none")
    source = images()
    assert names(source) == ["x.tar/deep/1.png"]
    (said,) = source.advice()
    assert said == (
        f"left out of the shards in {tmp_path}: 3 links and sparse files (the first: x.tar/hard.png), "
        "1 sample without an image (the first: x.tar/readme)."
    )


def test_of_several_images_the_shortest_ending(tmp_path, images):
    members = [("1.seg.png", picture(1)), ("1.jpg", picture(2, kind="jpeg")), ("1.webp", picture(3, kind="webp"))]
    write(tmp_path / "x.tar", [*members, ("2.b.png", picture(4)), ("3.png", picture(5)), ("3.png", picture(6))])
    source = images(size=(30, 40), crop=(1.0, 1.0), flip=0.0)
    assert names(source) == ["x.tar/1.jpg", "x.tar/2.b.png", "x.tar/3.png"]
    assert "3 second images of a sample (the first: x.tar/1.seg.png)" in source.advice()[0]
    later = np.asarray(Image.open(io.BytesIO(picture(6)))).transpose(2, 0, 1)
    assert np.array_equal(source.read(2, 1)["image"], later)  # as unpacking would leave it


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_numbers_are_sorted_as_numbers(tmp_path, images):
    texts = ["10", "9", "2\n", "9", "010"]
    write(
        tmp_path / "x.tar",
        [m for i, t in enumerate(texts) for m in ((f"{i}.png", picture()), (f"{i}.CLS", t.encode()))],
    )
    train = images().splits.pretrain
    assert train.classes == ("2", "9", "10")
    assert list(train.labels) == [2, 1, 0, 1, 2]


def test_words_are_sorted_as_words(tmp_path, images):
    members = [("1.cls", b"10"), ("1.png", picture()), ("2.png", picture()), ("2.cls", "zwölf".encode())]
    write(tmp_path / "x.tar", [*members, ("3.cls", b"9"), ("4.cls", b"other")])  # samples without an image
    source = images()
    assert source.splits.pretrain.classes == ("10", "zwölf")
    assert "2 samples without an image (the first: x.tar/3)" in source.advice()[0]


def test_a_fifth_of_each_class_is_held_out(tmp_path, images):
    write(tmp_path / "a.tar", samples(range(13)))
    write(tmp_path / "b.tar", samples(range(13, 20)))
    source = images(size=(30, 40), evaluate_crop=1.0)
    test, train = source.labelled("test"), source.labelled("train")
    assert source.splits.test.files == ("a.tar/008.png", "a.tar/009.png", "b.tar/018.png", "b.tar/019.png")
    assert (test.labels.tolist(), len(train.labels), len(source)) == ([0, 1, 0, 1], 16, 20)
    for number, item in ((8, 0), (19, 3)):  # the pixels are those of the names
        wanted = np.asarray(Image.open(io.BytesIO(picture(number)))).transpose(2, 0, 1)
        assert np.array_equal(test.items[item]["image"], wanted)
    assert source.read_labelled(15, 3)["label"] == train.labels[15]


def test_without_classes(tmp_path, images):
    write(tmp_path / "x.tar", samples(range(6), classes=0))
    assert len(images()) == 6
    with pytest.raises(
        MimError, match=r"no classes to evaluate with: looked in its shards for a \.cls beside each image"
    ):
        images().labelled("test")
    write(tmp_path / "x.tar", samples(range(6), classes=1))
    with pytest.raises(MimError, match="at least two classes"):
        images().labelled("test")


def test_some_without_a_class_are_refused(tmp_path, images):
    write(tmp_path / "x.tar", samples(range(4)))
    write(tmp_path / "y.tar", samples(range(4, 7), classes=0))
    with pytest.raises(
        MimError, match=r"3 images of 7 without a class; the first is y\.tar/004\.png, which has no \.cls"
    ):
        images()


@pytest.mark.parametrize("content", [b"", b" \n", b"1\n2", b"\xff\xfe", b"1" * 2000])
def test_a_class_is_one_line_of_text(tmp_path, images, content):
    write(tmp_path / "x.tar", [("1.png", picture()), ("1.cls", content)])
    with pytest.raises(MimError, match=r"x\.tar/1\.cls holds no class: it should be one line"):
        images()


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_folders_of_shards_are_splits(tmp_path, images, held_out):
    write(tmp_path / "train/0.tar", samples(range(6)))
    write(tmp_path / held_out / "0.tar", samples(range(6, 10)))
    source = images()
    assert names(source) == [f"train/0.tar/{i:03}.png" for i in range(6)]
    assert source.labelled("test").labels.tolist() == [0, 1, 0, 1]
    assert source.labelled("test").note == ""


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("in1k-train-{}.tar", "in1k-validation-{}.tar"), ("TRAIN{}.tar", "val_{}.tar"), ("a.train.{}.tar", "{}-test.tar")],
)
def test_names_of_shards_are_splits(tmp_path, images, train, held_out):
    write(tmp_path / train.format(0), samples(range(4)))
    write(tmp_path / train.format(1), samples(range(4, 6)))
    write(tmp_path / held_out.format(0), samples(range(6, 10)))
    source = images()
    assert names(source) == [f"{train.format(i // 4)}/{i:03}.png" for i in range(6)]
    assert "6 images in 2 shards for training" in source.plan()["data"]
    assert source.labelled("test").labels.tolist() == [0, 1, 0, 1]
    assert source.advice() == []


def test_words_within_words_are_no_splits():
    tars = [
        "strain-0.tar",
        "value.tar",
        "a_train2017.tar",
        "pre-train/x.tar",
        "train-of-val-3.tar",
        "trainé.tar",
        "étrain.tar",
    ]
    said = [split_in(tar.rpartition("/")[2]) for tar in tars]
    assert said == [None, None, "train", None, "val", None, None]


def test_shards_of_a_third_split_are_said(tmp_path, images):
    for name, numbers in (
        ("train-0", range(4)),
        ("test-0", range(4, 6)),
        ("val-0", range(6, 9)),
        ("more", range(9, 11)),
    ):
        write(tmp_path / f"{name}.tar", samples(numbers))
    source = images()
    assert len(source) == 6  # those of no split are trained on
    assert len(source.labelled("test").labels) == 2
    assert source.advice() == [f"1 shard of {tmp_path} not used: test is what is held out (val-0.tar)."]


def test_one_split_alone_is_a_collection(tmp_path, images):
    write(tmp_path / "val-0.tar", samples(range(10)))
    source = images()
    assert (len(source), len(source.labelled("test").labels)) == (10, 2)


def test_splits_with_other_classes_are_refused(tmp_path, images):
    write(tmp_path / "train-0.tar", samples(range(4)))
    write(tmp_path / "test-0.tar", samples(range(6), classes=3))
    with pytest.raises(MimError, match=r"the classes of train and test differ, in: 2\."):
        images()


# ---- what is refused or said -----------------------------------------------------------------------------------------


def test_loose_images_stand_before_shards(tmp_path, photo, images):
    photo("a.png")
    write(tmp_path / "train-x.tar", samples(range(4)))
    write(tmp_path / "y/val-y.tar", samples(range(4)))
    source = images()
    assert names(source) == ["a.png"]
    assert source.advice() == [
        f"{tmp_path} holds loose images, which are used, and 2 tar files left out (train-x.tar)."
    ]


@pytest.mark.parametrize(
    ("ending", "mode", "command"),
    [
        (".tar.gz", "w:gz", "gunzip"),
        (".tgz", "w:gz", "gunzip"),
        (".tar.zst", "w", "zstd -d --rm"),
        (".tar.xz", "w:xz", "unxz"),
    ],
)
def test_compressed_shards_are_refused_with_the_command(tmp_path, images, ending, mode, command):
    folder = tmp_path / "my set"
    folder.mkdir()
    with tarfile.open(folder / f"x{ending}", mode) as file:
        add(file, "1.png", picture())
    said = f"find '{folder}' -iname '*{ending}' -exec {command} {{}} +"
    with pytest.raises(MimError, match="are compressed") as error:
        images(root=folder)
    assert said in str(error.value)
    with pytest.raises(MimError, match="are compressed"):
        images(root=folder / f"x{ending}")
    if command == "gunzip" and os.path.exists("/bin/gunzip"):
        assert os.system(said) == 0
        assert names(images(root=folder)) == ["x.tar/1.png"]


def test_compressed_shards_beside_others_are_said(tmp_path, images):
    write(tmp_path / "x.tar", samples(range(4)))
    (tmp_path / "y.tar.gz").write_bytes(b"")
    said = f"1 compressed shard of {tmp_path} left out (y.tar.gz): only .tar files can be read."
    assert images().advice() == [said]


def test_shards_without_images_say_what_is_there(tmp_path, images):
    write(tmp_path / "x.tar", [("1.npy", b"1"), ("1.txt", b"2"), ("2.npy", b"3"), ("LICENSE", b"")])
    write(tmp_path / "y.tar", [])
    with pytest.raises(
        MimError, match=r"No images in the 2 shards of .*\.jpg, .*found 2 x \.npy, 1 x \.txt, 1 x no ending\."
    ):
        images()


def test_a_folder_of_nothing_says_that_tar_files_were_looked_for(tmp_path, images):
    with pytest.raises(
        MimError, match=r"No images in .*\.tiff, .*, and for \.tar files of them, in it and below; found nothing"
    ):
        images()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_cut_anywhere_is_noticed(tmp_path, images, kind):
    """At every 64th byte and around all blocks; but not between two members, where no file can tell, which is said."""
    contents = [(f"{'n' * 120 * (kind != tarfile.USTAR_FORMAT)}{i}.png", picture(i, (8, 8))) for i in range(3)]
    whole = write(tmp_path / "x.tar", contents, format=kind).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as file:
        members = file.getmembers()
        starts, end = {member.offset for member in members} - {0}, file.offset
    blocks = range(0, end, 512)
    for cut in sorted({*range(0, end, 64), *(at + near for at in blocks for near in (1, 511)), end - 1}):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        if cut in starts:
            assert "1 shard of" in images().advice()[0]
            assert "without a mark of the end, perhaps cut short (x.tar)" in images().advice()[0]
            continue
        with pytest.raises(MimError, match=r"The shard .*x\.tar cannot be read to its end: ") as error:
            images()
        before = sum(-(-(m.offset_data + m.size) // 512) * 512 <= cut for m in members)
        assert f"Before that place it has {before or 'no'} image{'s' * (before != 1)}. Copy" in str(error.value)
    for cut in (end + 100, end + 512, len(whole)):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        assert len(images()) == 3
    assert images().advice() == []


def test_damaged_shards_are_named(tmp_path, images):
    path = write(tmp_path / "x.tar", samples(range(3), classes=0))
    whole = path.read_bytes()
    with tarfile.open(path) as file:
        second = file.getmembers()[1].offset
    header = bytearray(whole)
    header[second + 20] ^= 1
    hole = whole[:second] + bytes(1024) + whole[second + 1024 :]
    for content, reason, images_before in (
        (b"I am a text." * 100, "invalid header|bad checksum|truncated", "no images"),
        (b"", "empty file", "no images"),
        (bytes(header), f"the header at byte {second:,} is damaged", "1 image"),
        (hole, f"more follows its end at byte {second:,}", "1 image"),
        (whole + whole, "joined by cat", "3 images"),
    ):
        path.write_bytes(content)
        with pytest.raises(MimError, match=rf"The shard .*x\.tar cannot .*({reason}).* it has {images_before}\. Copy"):
            images()


def test_a_pipe_is_no_shard(tmp_path, images):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(MimError, match=r"x\.tar cannot be read: it is no regular file"):
        images()


def test_a_link_to_nothing_is_no_shard(tmp_path, images):
    (tmp_path / "x.tar").symlink_to("../gone.tar")
    with pytest.raises(MimError, match=r"x\.tar cannot be read: it is a link to \.\./gone\.tar, where nothing is"):
        images()


def test_a_compressed_shard_under_a_plain_name(tmp_path, images):
    path = write(tmp_path / "x.tar", samples(range(3), classes=0))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(MimError, match=r"x\.tar is compressed by gzip, whatever its name says.*Unpack it"):
        images()


def test_bad_members_are_named_and_a_shard_that_went_too(tmp_path, images):
    path = write(
        tmp_path / "x.tar",
        [("1.png", b"I am a text."), ("2.png", b""), ("3.png", picture()[:500]), ("4.png", picture())],
    )
    source = images()
    for i, reason in ((0, "not an image of a kind"), (1, "not an image of a kind"), (2, "truncated")):
        with pytest.raises(BadSample, match=reason) as error:
            source.read(i, 1)
        assert error.value.path == f"x.tar/{i + 1}.png"
    source.read(3, 1)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadSample, match="shorter since the run started"):
        source.read(3, 1)
    path.unlink()
    with pytest.raises(BadSample, match="FileNotFoundError"):
        source.read(3, 1)


# ---- workers and runs ------------------------------------------------------------------------------------------------


def test_the_store_is_small_and_holds_no_file(tmp_path, images):
    write(tmp_path / "x.tar", samples(range(200)))
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    source = images()
    source.read(3, 1)
    content = pickle.dumps(source.splits.pretrain)
    assert len(content) < 200 * 64
    assert pickle.loads(content).open(7).size == (40, 30)
    assert source.splits.pretrain.shards.places.dtype == np.int64
    assert not before or set(os.listdir("/proc/self/fd")) <= before


def test_workers_change_nothing(tmp_path, images):
    for shard in range(3):
        write(tmp_path / f"{shard}.tar", samples(range(shard * 5, shard * 5 + 5)))
    write(tmp_path / "3.tar", [("bad.png", b"none"), ("bad.cls", b"1")])
    source = images()

    def batches(count):
        sampler = KeyedBatches(len(source), 4, seed=1, first=0, last=48)
        return list(loader(KeyedDataset(source), sampler, count, collate))

    one, other = batches(0), batches(2)
    assert len(one) == 12
    assert {file for batch in one for file, _ in batch.skipped} == {"3.tar/bad.png"}
    for a, b in zip(one, other, strict=True):
        assert a.skipped == b.skipped
        assert all(torch.equal(value, b.sample[name]) for name, value in a.sample.items())


def run(folder, root, **train):
    """Six steps of mae-vit-tiny's twin, from where the folder's run stands: whether it is complete, its losses and
    weights."""
    registry = installed()
    config = load_recipe("image:mae-vit-tiny", registry, twin=True)
    options = {"data": {"root": str(root)}, "train": {"epochs": 6 * 16 / 21, "workers": 0, **train}}
    under_way = loop.start(override(config, options, "the test", registry), folder, registry)
    complete = loop.train(under_way, quiet=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return complete, [json.loads(line)["loss"] for line in lines], under_way.method.state_dict()


def test_a_run_goes_on_to_the_bit(tmp_path):
    """Over shards in two formats, with a bad member, stopped twice and gone on with other workers; and as over the
    loose files in the same order."""
    root, loose = tmp_path / "tars", tmp_path / "loose"
    write(root / "a.tar", samples(range(10)))
    write(root / "b.tar", [*samples(range(10, 20)), ("020.png", b"none"), ("020.cls", b"1")], format=tarfile.GNU_FORMAT)
    for i in range(21):
        path = loose / ("a.tar" if i < 10 else "b.tar") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i) if i < 20 else b"none")
    complete, losses, weights = run(tmp_path / "whole", root)
    assert complete
    assert len(losses) == 6
    for step in (1, 2):
        complete, found, _ = run(tmp_path / "parts", root, max_hours=0.0, workers=2 * (step - 1))
        assert not complete
        assert found == losses[:step]
    for complete, found, other in (run(tmp_path / "parts", root), run(tmp_path / "loose run", loose)):
        assert complete
        assert found == losses
        assert all(torch.equal(value, other[name]) for name, value in weights.items())
    lines = (tmp_path / "parts/skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["b.tar/020.png"]


def test_the_command_line_says_shards_and_what_is_left_out(tmp_path, capsys):
    write(tmp_path / "x.tar", [*samples(range(20)), ("3.a.png", picture()), ("3.b.png", picture())])
    arguments = [
        "pretrain",
        "mae-vit-tiny",
        "--twin",
        "--data.root",
        str(tmp_path),
        "--train.epochs",
        "20",
        "--dry-run",
    ]
    assert main(arguments, plugin="image") == 2  # of the last key
    assert "1 image of 21 without a class; the first is x.tar/3.a.png" in " ".join(capsys.readouterr().err.split())
    write(tmp_path / "x.tar", [*samples(range(20)), ("003.a.png", picture())])
    assert main(arguments, plugin="image") == 0
    told = capsys.readouterr()
    assert "20 images in 1 shard for training, 2 classes" in " ".join(told.out.split())
    assert "warning: left out of the shards in" in told.err
    assert "1 second image of a sample (the first: x.tar/003.a.png)" in told.err


# ---- shards that are made to harm, or came in part -------------------------------------------------------------------


def header(kind, size, name=b"x"):
    """One header of a tar file, whatever it says."""
    member = tarfile.TarInfo(name.decode())
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def whole(path):
    """The content of a good shard, without its end."""
    write(path, samples(range(6)))
    with tarfile.open(path) as file:
        file.getmembers()
        end = file.offset
    return path.read_bytes()[:end]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_chains_of_headers_are_refused_by_name(tmp_path, images, kind):
    good = whole(tmp_path / "s.tar")
    block = b"11 path=ab\n".ljust(512, b"\0")
    (tmp_path / "s.tar").write_bytes(good + (header(kind, 11) + block) * 2000 + bytes(10240))
    with pytest.raises(MimError, match=r"The shard .*s\.tar cannot be read"):
        images()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE, tarfile.REGTYPE])
def test_headers_that_say_gigabytes_are_refused_by_name(tmp_path, images, kind):
    good = whole(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes(good + header(kind, 8 << 30) + bytes(10240))
    with pytest.raises(MimError, match=r"The shard .*s\.tar cannot be read"):
        images()


def test_shards_of_zeros_are_said(tmp_path, images):
    good = whole(tmp_path / "s-0.tar")
    (tmp_path / "s-1.tar").write_bytes(bytes(20480))
    (tmp_path / "s-2.tar").write_bytes(good + bytes(3 << 20))
    said = images().advice()
    assert any("1 shard of" in line and "without any file in it" in line and "(s-1.tar)" in line for line in said)
    assert any("MiB of zeros behind the last file (s-2.tar)" in line for line in said)


def test_members_with_other_endings_are_said(tmp_path, images):
    content = picture()
    write(tmp_path / "s.tar", [("1.png", content), ("1.json", b"{}"), ("2.png", content), ("3.heic", b"x")])
    source = images()
    assert "1 x .heic" in source.advice()[-1] or "1 x .heic" in source.advice()[0]
    assert "1 x .json" in source.contents()["left out"]
    with pytest.raises(MimError, match=r"A \.json beside an image was seen and is not read"):
        source.labelled("train")


def test_unlabelled_shards_are_trained_on(tmp_path, images):
    write(tmp_path / "train/0.tar", samples(range(6)))
    write(tmp_path / "val/0.tar", samples(range(6, 10)))
    write(tmp_path / "unlabeled/0.tar", [(f"{i}.png", picture()) for i in range(3)])
    source = images()
    assert len(source) == 9
    assert len(source.labelled("train").labels) == 6
    assert len(source.labelled("test").labels) == 4
