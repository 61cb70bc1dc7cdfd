"""Tar files of images that cannot be used, or not wholly: what is refused, and what is said of the others."""

import gzip
import os
import sys
import tarfile
from pathlib import Path

import pytest
from mim_core.errors import BadSample, MimError

sys.path.insert(0, str(Path(__file__).parent))

from shard_files import add, names, picture, samples, write

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
    with pytest.raises(MimError, match=r"A \.json was seen: name its key with --data.labels-column"):
        source.labelled("train")


def test_unlabelled_shards_are_trained_on(tmp_path, images):
    write(tmp_path / "train/0.tar", samples(range(6)))
    write(tmp_path / "val/0.tar", samples(range(6, 10)))
    write(tmp_path / "unlabeled/0.tar", [(f"{i}.png", picture()) for i in range(3)])
    source = images()
    assert len(source) == 9
    assert len(source.labelled("train").labels) == 6
    assert len(source.labelled("test").labels) == 4


def test_a_hole_behind_a_shard_is_passed_over(tmp_path, images):
    """A terabyte of zeros that takes no room on the disk; other bytes behind it are still seen."""
    path = tmp_path / "0.tar"
    write(path, samples(range(4)))
    os.truncate(path, 1 << 40)
    assert path.stat().st_blocks * 512 < 1 << 24
    source = images()
    assert len(source) == 4
    assert any("0.tar" in line for line in source.advice())
    with open(path, "r+b") as file:
        file.seek(1 << 39)
        file.write(b"more")
    with pytest.raises(MimError, match="more follows its end"):
        images()
