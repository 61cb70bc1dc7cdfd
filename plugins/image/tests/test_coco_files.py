"""COCO's json as people have it: layouts, splits, what is cut, left out or refused."""

import json

import pytest
from mim_core import BadSample, MimError
from mim_image.coco_data import BoxSource, CocoImages
from mim_image.coco_files import read_instances
from PIL import Image

SQUARE = [[2, 2, 10, 2, 10, 8, 2, 8]]


def content(pictures=6, size=(20, 16), names=("cat", "dog"), **changes):
    """A json in which picture i has one box of class i % 2."""
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": size[0], "height": size[1]} for i in range(pictures)]
    rows = [
        {"id": i, "image_id": 10 + i, "category_id": 3 + i % 2, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0}
        for i in range(pictures)
    ]
    for row in rows:
        row["segmentation"] = SQUARE
    categories = [{"id": 3 + i, "name": name} for i, name in enumerate(names)]
    return {"images": images, "annotations": rows, "categories": categories, **changes}


@pytest.fixture
def coco(tmp_path):
    """Writes a json and its pictures; gives the json's path."""

    def make(path="instances.json", folder=".", made=None, size=(20, 16)):
        made = content() if made is None else made
        for image in made.get("images", []):
            file = tmp_path / folder / image["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (200, 100, 50)).save(file)
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(made))
        return file

    return make


def opened(root, **options):
    return CocoImages(CocoImages.Config(root=root, **options), {"image": (3, 16, 16)})


def only(made, **change):
    """The json with its first annotation changed."""
    first, *others = made["annotations"]
    return {**made, "annotations": [{**first, **change}, *others]}


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held"),
    [
        (("annotations/instances_train2017.json", "train2017"), ("annotations/instances_val2017.json", "val2017")),
        (("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")),
        (("boxes_train.json", "images/train"), ("boxes_test.json", "images/test")),
    ],
)
def test_layouts_with_splits(coco, tmp_path, train, held):
    coco(*train)
    coco(*held, content(4))
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations/captions_train2017.json").write_text('{"images": []}')
    source = BoxSource(opened(tmp_path), masks=True)
    assert (len(source), len(source.pictures("test").labels)) == (6, 4)
    assert source.name_of(1) == f"{train[1]}/1.png"
    assert dict(source.inner.categories) == {3: "cat", 4: "dog"}
    assert source.read(0, 5)["image"].shape == (3, 16, 16)
    assert "train 6 objects; test 4 objects" in source.contents()["objects"]
    for split, (name, folder) in (("train", train), ("test", held)):  # boxes that change are data that change
        assert next(source.files_of(split)) == (f"{tmp_path}/{folder}/0.png", f"{tmp_path}/{name}")


def test_one_json_holds_a_fifth_out(coco, tmp_path):
    coco("labels.json", "images", content(10))
    source = BoxSource(opened(tmp_path), masks=False)
    assert source.pictures("test").names == ("images/4.png", "images/9.png")
    assert len(source) == 8
    assert "held out" in source.split.note
    coco("labels.json", "images", content(3))
    with pytest.raises(MimError, match="at least 5"):
        opened(tmp_path)


def test_files_that_are_named(coco, tmp_path):
    one, other = coco("a.json"), coco("b.json", made=content(3))
    with pytest.raises(MimError, match=r"several json files .* a\.json, b\.json. Name one: --data.annotations"):
        opened(tmp_path)
    source = BoxSource(opened(tmp_path, annotations=one, test_annotations=other), masks=False)
    assert (len(source), len(source.pictures("test").labels)) == (6, 3)


def test_held_out_categories_go_by_name(coco, tmp_path):
    coco("instances_train.json")
    test = content(2, names=("dog", "cat"))
    held = coco("instances_val.json", made=test)
    found = opened(tmp_path).coco.instances["test"]
    assert [each.category for each in found.objects()] == [4, 3]
    held.write_text(json.dumps(content(2, names=("dog", "bird"))))
    with pytest.raises(MimError, match="objects of bird, which"):
        opened(tmp_path)


def test_a_share_of_the_pictures(coco, tmp_path):
    coco(made=content(25))
    source = BoxSource(opened(tmp_path, labels=5), masks=False)
    assert len(source) == 5
    assert "5 pictures of 20" in source.plan()["labels"]


def test_a_folder_without_a_json(coco, tmp_path):
    coco("other.json", made={"images": [], "annotations": []})
    with pytest.raises(MimError, match="categories"):
        opened(tmp_path)
    (tmp_path / "other.json").unlink()
    with pytest.raises(MimError, match=r"no json of instances .* name it: --data.annotations"):
        opened(tmp_path)


# ---- what is cut, left out, or kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "kept", "said"),
    [
        ([15, 10, 30, 2], (15, 10, 20, 12), "reaching beyond their picture cut at its edge (annotation 0 of 0.png)"),
        ([-4, -4, 6, 6], (0, 0, 2, 2), "cut at its edge"),
        ([12.5, 8, 8, 8.4], (12.5, 8, 20, 16), ""),
        ([25, 2, 8, 6], None, "1 box outside their picture left out"),
        ([2, 2, 0, 6], None, "1 box without area left out"),
        ([2, 2, 8, -1], None, "without area"),
    ],
)
def test_boxes_at_the_edge(coco, box, kept, said):
    found = read_instances(coco(made=only(content(), bbox=box)))
    first = found.pictures[0].objects
    assert [each.box for each in first] == ([] if kept is None else [kept])
    assert said in " ".join(found.advice)
    assert bool(said) == bool(found.advice)
    assert len(list(found.objects())) == (5 if kept is None else 6)


def test_crowds_are_judged_and_not_learned(coco, tmp_path):
    made = only(content(), iscrowd=1, segmentation={"counts": [0, 320], "size": [16, 20]})
    coco("instances_train.json", made=made)
    coco("instances_val.json", made=made)
    source = BoxSource(opened(tmp_path), masks=True)
    assert "6 objects, 1 of them crowds" in source.contents()["objects"]
    assert (source.read(0, 1)["classes"] >= 0).sum() == 0
    assert source.inner.coco.instances["test"].as_coco()["annotations"][0]["iscrowd"] == 1


def test_empty_pictures_are_kept(coco, tmp_path):
    made = content(10)
    made["annotations"] = made["annotations"][:5]
    coco(made=made)
    source = BoxSource(opened(tmp_path), masks=True)
    assert len(source) == 8
    item = source.read(7, 1)
    assert item["boxes"].shape == (1, 4)
    assert item["classes"].tolist() == [-1]
    assert not item["masks"].any()
    coco(made={**made, "annotations": []})
    with pytest.raises(MimError, match="no object to learn from"):
        BoxSource(opened(tmp_path), masks=True)


def test_pictures_that_are_not_there_or_of_another_size(coco, tmp_path):
    coco("instances_train.json", "train")
    coco("instances_val.json", "val")
    (tmp_path / "train/2.png").unlink()
    Image.new("RGB", (16, 20)).save(tmp_path / "train/3.png")
    Image.new("RGB", (16, 20)).save(tmp_path / "val/3.png")
    source = BoxSource(opened(tmp_path), masks=True)
    assert "1 picture of 6 not on disk" in " ".join(source.advice())
    with pytest.raises(BadSample, match=r"2\.png"):
        source.read(2, 0)
    with pytest.raises(BadSample, match="it is 16 x 20, and its json says 20 x 16"):
        source.read(3, 0)
    with pytest.raises(BadSample, match="16 x 20"):
        source.pictures("test").items[3]
    for i in range(6):
        (tmp_path / f"train/{i}.png").unlink(missing_ok=True)
    with pytest.raises(MimError, match=r"None of the first 6 pictures .* Looked in: "):
        opened(tmp_path)


def test_a_json_that_says_no_sizes(coco, tmp_path):
    made = only(content(), bbox=[15, 2, 30, 6], segmentation={"counts": [0, 4], "size": [2, 2]})
    made["images"] = [{"id": image["id"], "file_name": image["file_name"]} for image in made["images"]]
    coco(made=made)
    source = BoxSource(opened(tmp_path), masks=True)
    with pytest.raises(BadSample, match="a segmentation is of 2 x 2 pixels, the picture of 20 x 16"):
        source.read(0, 0)
    whole = BoxSource(opened(tmp_path, scale=(1, 1), flip=0), masks=False).read(0, 0)
    assert whole["boxes"][0, 2] <= 16
    assert source.read(1, 0)["masks"].any()


def test_objects_without_masks(coco, tmp_path):
    coco(made=only(content(), segmentation=[]))
    assert len(BoxSource(opened(tmp_path), masks=False)) == 5
    with pytest.raises(MimError, match=r"1 of 5 objects .*annotation 0.* --method.head faster-rcnn"):
        BoxSource(opened(tmp_path), masks=True)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category_id": 9}, "annotation 0 has category 9, which categories does not list. It lists: 3 cat, 4 dog"),
        ({"image_id": 99}, "annotation 0 is of image 99"),
        ({"bbox": [1, 2, 3]}, "left, top, width, height"),
        ({"bbox": [1, 2, 3, float("nan")]}, "four numbers"),
        ({"segmentation": [[1, 2, 3, 4]]}, "at least three points"),
        ({"segmentation": {"counts": [0, 4], "size": [2, 2]}}, "of 2 x 2 pixels, and its picture 0.png of 20 x 16"),
        ({"segmentation": {"counts": [0, 319], "size": [16, 20]}}, "do not add up to the 20 x 16 pixels"),
        ({"segmentation": "all"}, "neither polygons nor run lengths"),
    ],
)
def test_annotations_that_are_refused(coco, change, said):
    path = coco(made=only(content(), **change))
    with pytest.raises(MimError) as caught:
        read_instances(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": None}, "has no images. A json of instances"),
        ({"images": []}, "list of images is empty"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "two categories have the id 3: a and b"),
        ({"categories": [{"id": "3", "name": "a"}]}, "a whole number, and a name"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "two images have the id 1"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 0, "height": 3}]}, "width and height of image 1"),
    ],
)
def test_files_that_are_refused(tmp_path, change, said):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**content(), **change}))
    with pytest.raises(MimError, match=said):
        read_instances(path)


def test_no_json_at_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"images": [')
    with pytest.raises(MimError, match=r"a\.json cannot be read as json: .*line 1"):
        read_instances(path)


def test_names_that_are_alike_are_told_apart(coco):
    assert list(read_instances(coco(made=content(names=("cat", "cat")))).categories.values()) == [
        "cat (id 3)",
        "cat (id 4)",
    ]


def test_options_of_classes_are_refused(coco, tmp_path):
    coco()
    with pytest.raises(MimError, match=r"--data\.rand-augment is for classes"):
        opened(tmp_path, rand_augment="rand-m9")
    with pytest.raises(MimError, match="--use method=image:detector"):
        opened(tmp_path).labelled("train")
