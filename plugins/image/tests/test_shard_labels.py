"""Classes and splits of shards that stand in JSON members, by a named key or one of the usual names."""

import io
import json
import tarfile

import pytest
from mim_core import MimError
from mim_image.data import Images
from PIL import Image

SHAPES = {"image": (1, 8, 8)}


def shard(path, notes, classes=None):
    """A tar file of an image and a JSON text for each, and of a .cls where ``classes`` has one."""
    with tarfile.open(path, "w") as file:
        for number, note in enumerate(notes):
            content = io.BytesIO()
            Image.new("L", (8, 8), number).save(content, "png")
            members = {
                "png": content.getvalue(),
                "json": note if isinstance(note, bytes) else json.dumps(note).encode(),
            }
            if classes:
                members["cls"] = classes[number].encode()
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{number:03}.{ending}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path.parent


def images(root, **options):
    return Images(Images.Config(root=root, **options), SHAPES)


NOTES = [{"caption": "a picture", "label": ["cat", "dog"][i % 2], "kind": i % 3} for i in range(20)]


def test_a_key_of_the_usual_names(tmp_path):
    found = images(shard(tmp_path / "a.tar", NOTES)).labelled("train")
    assert found.classes == ("cat", "dog")
    assert all(found.classes[label] == NOTES[int(name[6:9])]["label"]
               for name, label in zip(found.names, found.labels, strict=True))  # fmt: skip


def test_a_named_key_counts_before_cls(tmp_path):
    root = shard(tmp_path / "a.tar", NOTES, ["xy"[i % 2] for i in range(20)])
    assert images(root).labelled("train").classes == ("x", "y")
    found = images(root, labels_column="kind").labelled("test")
    assert found.classes == ("0", "1", "2")
    assert all(int(label) == int(name[6:9]) % 3 for name, label in zip(found.names, found.labels, strict=True))
    one = images(tmp_path / "a.tar", labels_column="kind")
    assert one.labelled("train").classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ({"label": "cat"}, "000.json has no 'kind' .--data.labels-column.; it has label"),
        (b"[1]", "is no JSON object"),
        (b"{broken", "is no JSON object"),
        (b"[" * 100_000, "is no JSON object"),
        (b"\xff\xfe{}", "is no JSON object"),
        ({"kind": ["a", "b"]}, "should be one name or number and is"),
        ({"kind": None}, "should be one name or number and is null"),
    ],
)
def test_members_that_lack_a_named_key(tmp_path, note, said):
    with pytest.raises(MimError, match=said):
        images(shard(tmp_path / "a.tar", [note, *NOTES]), labels_column="kind")


def test_json_that_nobody_named_is_no_error(tmp_path):
    for notes in ([b"{broken", *NOTES], [{"caption": "x"}] * 30, [{"label": [1]}, *NOTES]):
        source = images(shard(tmp_path / "a.tar", notes))
        assert len(source) == len(notes)
        with pytest.raises(MimError, match=r"has no classes.*A .json was seen: name its key with --data.labels-column"):
            source.labelled("train")


@pytest.mark.parametrize("label", [True, False])
def test_a_split_in_json_holds_images_out(tmp_path, label):
    """Also where there are no classes; words that name no split are told."""
    notes = [
        {"split": "Testing" if i % 5 == 0 else "train", **({"label": "ab"[i % 2]} if label else {})} for i in range(20)
    ]
    notes[7]["split"] = "whatever"
    source = images(shard(tmp_path / "a.tar", notes))
    assert [source.name_of(i) for i in range(len(source))] == [f"a.tar/{i:03}.png" for i in range(20) if i % 5]
    assert source.contents()["splits"] == "as .json members say: test held out (4), all others for training (16)"
    assert "words for a split that name none: whatever; ignored" in " ".join(source.advice())
    if label:
        assert list(source.labelled("test").names) == [f"a.tar/{i:03}.png" for i in range(0, 20, 5)]


def test_a_held_out_image_in_a_shard_for_training_is_left_out(tmp_path):
    shard(tmp_path / "train-0.tar", [{"split": "val" if i == 3 else "train"} for i in range(6)])
    source = images(shard(tmp_path / "test-0.tar", [{"split": "test"}] * 4))
    assert [source.name_of(i)[-7:] for i in range(len(source))] == [f"{i:03}.png" for i in range(6) if i != 3]
    assert "1 image left out" in " ".join(source.advice())
