"""A prepared collection is read as its source was: layout, splits, classes, names, and which way is up."""

import json

import h5py
import numpy as np
import pytest
from mim_pointcloud.data import Clouds
from mim_pointcloud.layouts import find_shapes, recognise
from mim_pointcloud.layouts_store import stem_of
from mim_pointcloud.prepare import Sampling, prepare_collection

OFF = "OFF 4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 2\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 2\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
PLANE, CHAIR = "02691156", "03001627"


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(count, more=""):
    draw = np.random.default_rng(count)
    return "".join(" ".join(f"{x:.4f}" for x in (*draw.normal(size=3), 0, 1, 0)) + more + "\n" for _ in range(count))


def modelnet_meshes(root):
    for name in ("chair", "night_stand"):
        for split, numbers in (("train", "123"), ("test", "45")):
            for number in numbers:
                put(root / f"ModelNet40/{name}/{split}/{name}_000{number}.off", OFF)


def modelnet_clouds(root):
    put(root / "modelnet40_shape_names.txt", "chair\nsofa\n")
    for split, number in (("train", "0001"), ("test", "0900")):
        put(root / f"modelnet40_{split}.txt", f"chair_{number}\nsofa_{number}\n")
        for name in ("chair", "sofa"):
            put(root / f"{name}/{name}_{number}.txt", lines(20).replace(" ", ","))


def shapenet55(root):
    for split, names in (("train", (f"{CHAIR}-a", f"{PLANE}-b")), ("test", (f"{CHAIR}-c",))):
        put(root / f"ShapeNet-55/{split}.txt", "".join(f"{name}.npy\n" for name in names))
        for name in names:
            (root / "shapenet_pc").mkdir(exist_ok=True)
            np.save(root / f"shapenet_pc/{name}.npy", np.random.default_rng(1).normal(size=(30, 3)))


def shapenetcore(root):
    for synset, models in ((PLANE, "abcdefghijkl"), (CHAIR, "mnopqrs")):
        for model in models:
            put(root / f"{synset}/{model}/models/model_normalized.obj", OBJ)


def shapenetpart(root):
    put(root / "synsetoffset2category.txt", f"Airplane\t{PLANE}\nChair\t{CHAIR}\n")
    lists = {"train": [f"{PLANE}/a", f"{CHAIR}/b"], "val": [f"{CHAIR}/c"], "test": [f"{PLANE}/d", f"{CHAIR}/e"]}
    for split, names in lists.items():
        text = json.dumps([f"shape_data/{name}" for name in names])
        put(root / f"train_test_split/shuffled_{split}_file_list.json", text)
        for name in names:
            put(root / f"{name}.txt", lines(20, " 1" if PLANE in name else " 13"))


def scanobjectnn(root):
    (root / "main_split").mkdir()
    for split in ("training", "test"):
        with h5py.File(root / f"main_split/{split}_objectdataset.h5", "w") as file:
            file["data"], file["label"] = np.random.default_rng(0).normal(size=(4, 30, 3)), np.arange(4)


def sample(root):
    np.save(root / "points.npy", np.random.default_rng(0).normal(size=(3, 30, 3)).astype(np.float16))
    put(root / "shapes.csv", "name,class,split\na,x,train\nb,y,train\nc,x,test\n")


def folder(root):
    for name in ("chair", "table"):
        for number in range(12):
            put(root / f"{name}/{number}.{'obj' if number % 2 else 'off'}", OBJ if number % 2 else OFF)


def folder_like_modelnet(root):
    """Somebody's own meshes, y up, laid out as ModelNet's are: not ModelNet before, so not after."""
    for name in ("chair", "table"):
        for split in ("train", "test"):
            put(root / f"{name}/{split}/1.obj", OBJ)


LAYOUTS = [
    modelnet_meshes,
    modelnet_clouds,
    shapenet55,
    shapenetcore,
    shapenetpart,
    scanobjectnn,
    sample,
    folder,
    folder_like_modelnet,
]


def told(shapes):
    stores = [shapes.pretrain, shapes.train, shapes.test]
    of = [[*map(stem_of, map(store.name, range(len(store))))] for store in stores]
    return shapes.kind, shapes.up, of, [(list(store.labels), store.classes) for store in stores], dict(shapes.parts)


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_prepared_layout_stays_what_it_was(make, tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    make(root)
    statuses = {line["status"] for line in prepare_collection(root, out, Sampling(25), 1)}
    assert statuses <= {"done", "copied"}
    before, after = find_shapes(root), find_shapes(out)
    assert told(after) == told(before)
    assert after.up == ("z" if make is modelnet_meshes else "y")
    clouds = Clouds(Clouds.Config(root=out), {"points": (16, 3)})
    for index in range(len(clouds)):
        assert clouds.read(index, 1)["points"].shape == (16, 3)
    for split in ("train", "test"):
        for item in clouds.labelled(split).items:
            assert ("parts" in item) == (make is shapenetpart)
    again = tmp_path / "again"
    list(prepare_collection(out, again, Sampling(20), 1))
    assert told(find_shapes(again)) == told(before)


def test_a_part_of_a_prepared_modelnet(tmp_path):
    (tmp_path / "in").mkdir()
    modelnet_meshes(tmp_path / "in")
    list(prepare_collection(tmp_path / "in", tmp_path / "out", Sampling(25), 1))
    found = find_shapes(tmp_path / "out/ModelNet40")
    assert (found.kind, found.up, len(found.train), len(found.test)) == ("modelnet40", "z", 6, 4)
    (tmp_path / "out/prepared.json").unlink()
    assert recognise(tmp_path / "out") == "folder"
    assert find_shapes(tmp_path / "out", "modelnet40").up == "z"


def test_normals_that_were_not_prepared_are_not_promised(tmp_path):
    (tmp_path / "in").mkdir()
    modelnet_clouds(tmp_path / "in")
    list(prepare_collection(tmp_path / "in", tmp_path / "out", Sampling(25), 1))
    assert find_shapes(tmp_path / "in").channels == ("xyz", "normals")
    assert find_shapes(tmp_path / "out").channels == ("xyz",)
    list(prepare_collection(tmp_path / "in", tmp_path / "both", Sampling(25, ("xyz", "normals")), 1))
    clouds = Clouds(Clouds.Config(root=tmp_path / "both", channels=("xyz", "normals")), {"points": (16, 6)})
    assert clouds.read(0, 1)["points"].shape == (16, 6)


def test_a_name_that_is_not_utf_8_is_read_and_shown(tmp_path):
    for name in ("chair", "table"):
        for file in ("a", "b", "x\udce9", "y\udce9"):
            put(tmp_path / f"{name}/{file}.obj", OBJ)
    clouds = Clouds(Clouds.Config(root=tmp_path), {"points": (16, 3)})
    names = [clouds.name_of(index) for index in range(len(clouds))] + list(clouds.labelled("test").names)
    assert any(name.endswith("x\\udce9.obj") for name in names)
    assert "".join(names).encode("ascii")
    for index in range(len(clouds)):
        assert clouds.read(index, 1)["points"].shape == (16, 3)
