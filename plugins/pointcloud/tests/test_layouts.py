"""Shapes as they lie on disk: folders, ShapeNet, ModelNet, ScanObjectNN, ShapeNetPart, as small real trees laid out
so."""

import json

import h5py
import numpy as np
import pytest
import torch
from mim_core.errors import BadSample, MimError
from mim_pointcloud.data import Clouds
from mim_pointcloud.layouts import LAYOUTS, find_shapes, recognise
from mim_pointcloud.layouts_modelnet import SCAN_CLASSES
from mim_pointcloud.layouts_shapenet import PARTS, SYNSETS
from mim_pointcloud.prepare import Sampling, source_of
from mim_pointcloud.segmentation import owners_of

CUBE = """OFF
8 6 0
0 0 0
1 0 0
1 1 0
0 1 0
0 0 2
1 0 2
1 1 2
0 1 2
4 0 1 2 3
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""
CUBE_OBJ = "".join(
    f"{'v' if i < 8 else 'f'} {' '.join(str(int(n) + (i >= 8)) for n in line.split()[i >= 8 :])}\n"
    for i, line in enumerate(CUBE.splitlines()[2:])
)
PLANE, CHAIR = "02691156", "03001627"


@pytest.fixture
def put(tmp_path):
    """``put("a/b.npy", points=20)`` writes a cloud below the test's folder; with ``text`` that text."""

    def make(name, points=20, text=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
        else:
            np.save(path, np.random.default_rng(sum(name.encode())).normal(size=(points, 3)).astype(np.float32))
        return path

    return make


def source(root, points=16, **options):
    return Clouds(Clouds.Config(root=root, **options), {"points": (points, 3 * len(options.get("channels", "x")))})


def readable(clouds):
    """Every shape of every split is read."""
    for i in range(len(clouds)):
        assert clouds.read(i, 5)["points"].shape == clouds.shapes["points"]
    for split in ("train", "test"):
        labelled = clouds.labelled(split)
        assert len(labelled.labels)
        for i in range(len(labelled.labels)):
            assert labelled.items[i]["points"].isfinite().all()


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_fifth_of_each_class_is_held_out_by_name(put, tmp_path):
    for label, count in (("chair", 10), ("table", 6), ("lamp", 2), ("rug", 1)):
        for i in range(count):
            put(f"{label}/deep/{i}.npy")
    put("chair/.hidden.npy")
    put("readme.txt", text="chairs, tables and more\n")
    found = find_shapes(tmp_path)
    assert found.kind == "folder"
    assert found.train.classes == ("chair", "lamp", "rug", "table")
    assert [found.test.labels.count(i) for i in range(4)] == [2, 1, 0, 1]
    assert set(found.train.files).isdisjoint(found.test.files)
    assert len(found.train) + len(found.test) == 19
    assert found.pretrain.files == found.train.files
    assert "held out" in found.test.note
    assert "hash of the name" in found.test.note
    before = set(found.test.files)
    for i in range(10):
        put(f"table/more/{i}.npy")
    again = find_shapes(tmp_path)
    assert {file for file in before if not file.startswith("table")} <= set(again.test.files)
    readable(source(tmp_path))


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_own_splits_are_kept(put, tmp_path, held_out):
    for label in ("chair", "table"):
        put(f"train/{label}/a.npy")
        put(f"train/{label}/b.off", text=CUBE)
        put(f"{held_out}/{label}/c.obj", text=CUBE_OBJ)
    clouds = source(tmp_path)
    assert [clouds.name_of(i) for i in range(4)] == [
        f"train/{label}/{name}" for label in ("chair", "table") for name in ("a.npy", "b.off")
    ]
    assert clouds.labelled("train").labels.tolist() == [0, 0, 1, 1]
    assert clouds.labelled("test").labels.tolist() == [0, 1]
    assert clouds.labelled("test").note.startswith("The raw input is 45")
    readable(clouds)
    assert len(source(tmp_path, whole=True)) == 6
    assert "without labels" in source(tmp_path, whole=True).labelled("test").note


def test_splits_with_other_classes_are_refused(put, tmp_path):
    for name in ("train/chair/0.npy", "train/table/0.npy", "test/chair/0.npy", "test/rug/0.npy"):
        put(name)
    with pytest.raises(MimError, match="differ, in: rug, table"):
        find_shapes(tmp_path)


def test_without_classes_there_is_pre_training_only(put, tmp_path):
    put("a.npy")
    put("deep/b.npy")
    clouds = source(tmp_path)
    assert len(clouds) == 2
    assert clouds.read(1, 0)["points"].shape == (16, 3)
    assert "no classes" in clouds.plan()["data"]
    with pytest.raises(MimError, match="one folder per class"):
        clouds.labelled("train")
    with pytest.raises(MimError, match="one folder per class"):
        clouds.read_labelled(0, 0)


def test_what_was_looked_for_and_what_is_there(put, tmp_path):
    put("chairs/a.fbx", text="x")
    with pytest.raises(MimError, match=r"\.off.*found 1 x \.fbx"):
        find_shapes(tmp_path)
    with pytest.raises(MimError, match=f"Did you mean {tmp_path}/chairs"):
        source(tmp_path / "chair")
    with pytest.raises(MimError, match=r"--data\.root FOLDER"):
        source(None)
    with pytest.raises(MimError, match="Did you mean 'shapenet55'"):
        find_shapes(tmp_path, "shapenet-55")
    with pytest.raises(MimError, match="has no variants"):
        find_shapes(tmp_path, "folder", "obj_bg")


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"folder"}))
def test_an_asked_layout_that_is_not_there_says_what_it_needs(put, tmp_path, layout):
    put("chair/a.npy")
    with pytest.raises(MimError, match=r"Looked for .*; found chair"):
        find_shapes(tmp_path, layout)


# ---- ShapeNet --------------------------------------------------------------------------------------------------------


def test_the_tables_of_classes_and_parts():
    assert len(SYNSETS) == len(set(SYNSETS.values())) == 55
    assert list(SYNSETS) == sorted(SYNSETS)
    assert [part for parts in PARTS.values() for part in parts] == list(range(50))
    assert (PARTS["Airplane"], PARTS["Car"], PARTS["Earphone"]) == ((0, 1, 2, 3), (8, 9, 10, 11), (16, 17, 18))
    assert (PARTS["Motorbike"], PARTS["Rocket"], PARTS["Table"]) == (tuple(range(30, 36)), (41, 42, 43), (47, 48, 49))


@pytest.mark.parametrize("below", ["", "ShapeNet55-34/"])
def test_shapenet55(put, tmp_path, below):
    names = {"train": [f"{CHAIR}-a1.npy", f"{PLANE}-1a04.npy", f"{PLANE}-gone.npy"], "test": [f"{CHAIR}-b2.npy"]}
    for split, lines in names.items():
        put(f"{below}ShapeNet-55/{split}.txt", text="\n".join(lines) + "\n")
        for line in lines:
            if "gone" not in line:
                put(f"{below}shapenet_pc/{line}", 64)
    put(f"{below}shapenet_pc/{CHAIR}-unlisted.npy")
    assert recognise(tmp_path) == "shapenet55"
    clouds = source(tmp_path)
    assert clouds.collection.train.classes == ("airplane", "chair")
    assert clouds.labelled("train").labels.tolist() == [1, 0]
    assert [clouds.name_of(i) for i in range(len(clouds))] == names["train"][:2]
    assert len(source(tmp_path, whole=True)) == 3
    assert clouds.plan()["missing shapes"] == f"1 that the lists name: {PLANE}-gone.npy"
    assert "1 of 3 listed train shapes" in clouds.labelled("train").note
    readable(clouds)
    assert recognise(tmp_path / below / "ShapeNet-55") == "shapenet55"
    with pytest.raises(MimError, match=r"normals.*have xyz only"):
        source(tmp_path, channels=("xyz", "normals"))


def test_shapenet55_without_its_files(put, tmp_path):
    put("ShapeNet-55/train.txt", text=f"{CHAIR}-a1.npy\n")
    put("ShapeNet-55/test.txt", text=f"{CHAIR}-b2.npy\n")
    put(f"shapenet_pc/{CHAIR}-a2.npy")
    with pytest.raises(MimError, match=f"None of the 1 listed.*The nearest that exists is {CHAIR}-a2.npy"):
        find_shapes(tmp_path)
    put("ShapeNet-55/train.txt", text="chair.npy\n")
    with pytest.raises(MimError, match=r"is not SYNSET-MODEL\.npy"):
        find_shapes(tmp_path)
    (tmp_path / "ShapeNet-55/test.txt").rename(tmp_path / "ShapeNet-55/tests.txt")
    put("ShapeNet-55/train.txt", text=f"{CHAIR}-a2.npy\n")
    with pytest.raises(MimError, match=r"test\.txt is missing.*'tests.txt'"):
        find_shapes(tmp_path)


@pytest.mark.parametrize("mesh", ["models/model_normalized.obj", "model.obj"])
def test_shapenetcore(put, tmp_path, mesh):
    for synset, models in ((PLANE, "abcdef"), (CHAIR, "ghijk"), ("99999999", "z")):
        for model in models:
            put(f"ShapeNetCore.v2/{synset}/{model}/{mesh}", text=CUBE_OBJ)
    put("ShapeNetCore.v2/taxonomy.json", text="[]")
    assert recognise(tmp_path) == "shapenetcore"
    found = find_shapes(tmp_path)
    assert found.train.classes == ("airplane", "chair", "99999999")
    assert [found.test.labels.count(i) for i in range(3)] == [1, 1, 0]
    assert "hash of the name" in found.test.note
    rows = [("train", PLANE, "a"), ("val", PLANE, "b"), ("test", CHAIR, "g"), ("train", CHAIR, "lost")]
    text = "id,synsetId,subSynsetId,modelId,split\n" + "".join(f"1,{s},2,{m},{split}\n" for split, s, m in rows)
    put("ShapeNetCore.v2/all.csv", text=text)
    clouds = source(tmp_path)
    assert [clouds.name_of(i) for i in range(len(clouds))] == [f"{PLANE}/{m}/{mesh}" for m in "ab"]
    assert clouds.collection.test.files == (f"{CHAIR}/g/{mesh}",)
    assert clouds.collection.missing == (f"{CHAIR}/lost",)
    readable(clouds)


def part_lines(count, parts):
    draw = np.random.default_rng(count)
    return "".join(
        " ".join(f"{x:.5f}" for x in (*draw.normal(size=3), 0, 1, 0)) + f" {parts[i % len(parts)]:.6f}\n"
        for i in range(count)
    )


@pytest.fixture
def parts_tree(put, tmp_path):
    root = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    put(f"{root}/synsetoffset2category.txt", text=f"Airplane\t{PLANE}\nChair\t{CHAIR}\n")
    lists = {"train": [f"{PLANE}/a", f"{CHAIR}/b"], "val": [f"{CHAIR}/c"], "test": [f"{PLANE}/d", f"{CHAIR}/e"]}
    for split, names in lists.items():
        text = json.dumps([f"shape_data/{name}" for name in names])
        put(f"{root}/train_test_split/shuffled_{split}_file_list.json", text=text)
        for name in names:
            put(f"{root}/{name}.txt", text=part_lines(30, (0, 2) if PLANE in name else (12, 13, 15)))
    return tmp_path / root


def test_shapenetpart(parts_tree, tmp_path):
    assert recognise(tmp_path) == recognise(parts_tree) == "shapenetpart"
    clouds = source(tmp_path)
    assert clouds.collection.train.classes == ("Airplane", "Chair")
    assert clouds.labelled("train").labels.tolist() == [0, 1, 1]
    assert clouds.parts == {"Airplane": (0, 1, 2, 3), "Chair": (12, 13, 14, 15)}
    assert set(clouds.read(0, 1)) == {"points"}
    readable(clouds)
    item = clouds.labelled("test").items[1]
    assert item["parts"].dtype == torch.int64
    assert set(item["parts"].tolist()) <= {12, 13, 15}
    item = clouds.read_labelled(1, 3)
    assert item["label"].dtype == torch.int64
    assert int(item["label"]) == 1
    assert item["points"].shape == (16, 3)
    assert item["parts"].shape == (16,)
    both = source(tmp_path, channels=("xyz", "normals")).read(0, 1)["points"]
    assert both.shape == (16, 6)


def test_parts_stay_with_their_points(parts_tree, tmp_path):
    """Every part is where its own points are, also after the farthest are chosen."""
    lines = "".join(f"{x} {y} 0.5 0 1 0 {12 + (x > 0)}\n" for x in (-1.0, 1.0) for y in range(20))
    (parts_tree / CHAIR / "b.txt").write_text(lines)
    for options in ({}, {"choose": "farthest", "candidates": 60}):
        item = source(tmp_path, augment=False, **options).read_labelled(1, 7)
        assert item["parts"].tolist() == [12 + int(x > 0) for x in item["points"][:, 0]]
        assert set(item["parts"].tolist()) == {12, 13}


def test_wrong_parts_and_wrong_lines_are_bad(parts_tree, tmp_path):
    (parts_tree / PLANE / "a.txt").write_text(part_lines(9, (0, 49)))
    (parts_tree / CHAIR / "b.txt").write_text("1 2 3\n4 5 6\n")
    (parts_tree / CHAIR / "c.txt").write_text("")
    clouds = source(tmp_path)
    for i, reason in enumerate((r"parts \[49\], but a Airplane has", "7 numbers a line", "file is empty")):
        with pytest.raises(BadSample, match=reason) as caught:
            clouds.read_labelled(i, 0)
        assert caught.value.path.endswith(f"{'abc'[i]}.txt")


@pytest.fixture
def own_parts(put, tmp_path):
    """Boxes with the parts 0 and 2, cones with 0 and 1, as x y z part."""

    def write(names=("box", "cone"), cones=(0, 1), width=4):
        put("synsetoffset2category.txt", text="".join(f"{name} {name}\n" for name in names))
        lists = {split: [f"{name}/{split}" for name in names] for split in ("train", "val", "test")}
        for split, listed in lists.items():
            text = json.dumps([f"shape_data/{name}" for name in listed])
            put(f"train_test_split/shuffled_{split}_file_list.json", text=text)
            for name in listed:
                rows = part_lines(30, cones if "cone" in name else (0, 2)).splitlines()
                lines = [" ".join(row.split()[:3] + row.split()[10 - width :]) for row in rows]
                put(f"{name}.txt", text="x y z part\n" * (width == 4) + "\n".join(lines) + "\n")

    return write


def test_own_categories_have_the_parts_of_their_training_files(own_parts, put, tmp_path):
    own_parts()
    clouds = source(tmp_path)
    assert clouds.parts == {"box": (0, 1), "cone": (2, 3)}
    assert owners_of(clouds) == (0, 0, 1, 1)
    assert "box 0 1 (0 2 in its files); cone 2 3 (0 1 in its files)" in clouds.contents()["parts"]
    assert set(clouds.labelled("train").items[0]["parts"].tolist()) == {0, 1}
    assert set(clouds.labelled("test").items[1]["parts"].tolist()) == {2, 3}
    with pytest.raises(MimError, match="xyz only"):
        source(tmp_path, channels=("xyz", "normals"))
    put("box/test.txt", text="1 2 3 0\n" * 200 + "1 2 4 1\n")
    with pytest.raises(BadSample, match=r"parts \[1\], but the training files of box have \[0, 2\]") as caught:
        source(tmp_path).labelled("test").items[0]
    assert caught.value.path == "box/test.txt"
    put("box/test.txt", text="1 2 3 0.5\n1 2 4 0\n")
    with pytest.raises(BadSample, match="whole numbers from 0"):
        source(tmp_path).labelled("test").items[0]


def test_own_ids_that_tell_categories_apart_are_kept(own_parts, tmp_path):
    own_parts(cones=(7, 9), width=7)
    clouds = source(tmp_path, channels=("xyz", "normals"))
    assert clouds.parts == {"box": (0, 2), "cone": (7, 9)}
    assert owners_of(clouds) == (0, -1, 0, -1, -1, -1, -1, 1, -1, 1)
    item = clouds.labelled("test").items[1]
    assert item["points"].shape == (16, 6)
    assert set(item["parts"].tolist()) == {7, 9}


def test_own_categories_do_not_mix_with_shapenetparts(own_parts, put, tmp_path):
    own_parts(("box", "Chair"))
    with pytest.raises(MimError, match=r"mixes categories of ShapeNetPart.*\(Chair\).*\(box\).*my-chair"):
        source(tmp_path)
    own_parts(("box", "cone"))
    for name in ("box/train", "box/val", "cone/train", "cone/val"):
        put(f"{name}.txt", text="1 2 3\n")
    with pytest.raises(MimError, match=r"None of the 4 training shapes .* x y z part"):
        source(tmp_path)


def test_a_column_of_parts_elsewhere_is_told_where_it_is_read(put, tmp_path):
    for name in ("train/box/a", "train/cone/b", "test/box/c", "test/cone/d"):
        put(f"{name}.txt", text="x y z part\n0 0 1 0\n0 1 0 1\n1 0 0 1\n")
    with pytest.raises(MimError, match=r"column named part.*synsetoffset2category\.txt.*x y z part.*README"):
        owners_of(source(tmp_path))


# ---- ModelNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "ModelNet40/"])
def test_modelnet_meshes(put, tmp_path, below):
    for i, label in enumerate(("night_stand", "chair")):
        put(f"{below}{label}/train/{label}_0001.off", text=CUBE)
        put(f"{below}{label}/train/{label}_0002.off", text=CUBE.replace("OFF\n8", "OFF8"))
        put(f"{below}{label}/test/{label}_000{3 + i}.off", text=CUBE)
    assert recognise(tmp_path) == "modelnet40"
    clouds = source(tmp_path)
    assert clouds.collection.train.classes == ("chair", "night_stand")
    assert clouds.labelled("test").labels.tolist() == [0, 1]
    assert clouds.name_of(0) == "chair/train/chair_0001.off"
    assert clouds.up == "z"
    readable(clouds)
    with pytest.raises(MimError, match="no lists"):
        find_shapes(tmp_path, variant="modelnet10")


def test_modelnet_clouds_with_normals(put, tmp_path):
    line = "0.1,0.2,{i},0,1,0\n"
    for size, names in (("modelnet40", ("chair", "night_stand", "sofa")), ("modelnet10", ("chair", "sofa"))):
        put(f"{size}_shape_names.txt", text="\n".join(names) + "\n")
        put(f"{size}_train.txt", text="".join(f"{name}_0001\n" for name in names))
        put(f"{size}_test.txt", text="".join(f"{name}_0900\n" for name in names))
        for name in names:
            for number in ("0001", "0900"):
                put(f"{name}/{name}_{number}.txt", text="".join(line.format(i=i / 20) for i in range(20)))
    (tmp_path / "sofa/sofa_0900.txt").unlink()
    assert recognise(tmp_path) == "modelnet40"
    clouds = source(tmp_path, channels=("xyz", "normals"))
    assert clouds.collection.train.classes == ("chair", "night_stand", "sofa")
    assert clouds.collection.missing == ("sofa_0900",)
    assert clouds.up == "y"
    assert torch.allclose(clouds.read(0, 2)["points"][:, 3:].norm(dim=1), torch.ones(16))
    readable(clouds)
    assert find_shapes(tmp_path, variant="modelnet10").train.classes == ("chair", "sofa")
    with pytest.raises(MimError, match="Did you mean 'modelnet10'"):
        find_shapes(tmp_path, variant="modelnet11")


def test_shapes_of_both_lists_are_held_out(put, tmp_path):
    put("modelnet40_shape_names.txt", text="chair\nsofa\n")
    put("modelnet40_train.txt", text="chair_0001\nsofa_0001\nchair_0002\nchair_0001\n")
    put("modelnet40_test.txt", text="chair_0002\nsofa_0003\n")
    for name in ("chair_0001", "chair_0002", "sofa_0001", "sofa_0003"):
        put(f"{name[:-5]}/{name}.txt", text="0,0,0,0,1,0\n0,1,0,0,1,0\n")
    clouds = source(tmp_path)
    assert clouds.collection.pretrain.files == ("chair/chair_0001.txt", "sofa/sofa_0001.txt")
    assert clouds.collection.test.files == ("chair/chair_0002.txt", "sofa/sofa_0003.txt")
    said = clouds.advice()
    assert any("1 shape of" in line and "never trained on (chair/chair_0002.txt)" in line for line in said)
    assert any("listed more than once in the train list: counted once (chair/chair_0001.txt)" in line for line in said)


@pytest.mark.parametrize("text", ["synsetId,modelId\n02691156,a\n", "id,synsetId,modelId,split\n0,02691156\n"])
def test_a_table_of_shapenet_without_its_columns_is_named(put, tmp_path, text):
    put("02691156/a/models/model_normalized.obj", text="v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    put("all.csv", text=text)
    with pytest.raises(MimError, match=r"all\.csv, line 2: each row needs synsetId, modelId, split"):
        find_shapes(tmp_path)


# ---- ModelNet40 in HDF5 ----------------------------------------------------------------------------------------------


def test_modelnet40_in_hdf5(tmp_path):
    """A row per shape, several files of a split, lists with the folders of their makers."""
    place = tmp_path / "modelnet40_ply_hdf5_2048"
    place.mkdir()
    draw = np.random.default_rng(0)
    for name, count in (("train0", 5), ("train1", 2), ("test0", 3)):
        with h5py.File(place / f"ply_data_{name}.h5", "w") as file:
            file["data"] = draw.normal(size=(count, 64, 3)).astype(np.float32)
            file["normal"] = draw.normal(size=(count, 64, 3)).astype(np.float32)
            file["label"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    made = "data/modelnet40_ply_hdf5_2048/ply_data_"
    (place / "train_files.txt").write_text(f"{made}train0.h5\n{made}train1.h5\n")
    (place / "test_files.txt").write_text(f"{made}test0.h5\n")
    (place / "shape_names.txt").write_text("airplane\nbathtub\n")
    assert recognise(tmp_path) == "modelnet40"
    clouds = source(tmp_path, 64, augment=False, normalise=False)
    assert (len(clouds), clouds.collection.up, clouds.labelled("test").classes) == (7, "y", ("airplane", "bathtub"))
    assert clouds.labelled("train").labels.tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert clouds.labelled("test").labels.tolist() == [0, 1, 0]
    assert clouds.name_of(6) == "ply_data_train1.h5 (row 1)"
    with h5py.File(place / "ply_data_train1.h5") as file:
        right = torch.from_numpy(file["data"][1])
    got = clouds.read(6, 9)["points"]
    assert torch.equal(got[got[:, 0].argsort()], right[right[:, 0].argsort()])
    assert "not read: normal" in clouds.contents()["files hold"]
    both = source(tmp_path, 64, channels=("xyz", "normals"), augment=False, normalise=False)
    with h5py.File(place / "ply_data_train1.h5") as file:
        right = torch.from_numpy(np.hstack([file["data"][1], file["normal"][1]]))
    got = both.read(6, 9)["points"]
    assert torch.equal(got[got[:, 0].argsort()], right[right[:, 0].argsort()])
    assert "not read" not in both.contents()["files hold"]
    assert source_of(tmp_path, Sampling()).channels is None
    (place / "ply_data_train1.h5").unlink()
    with pytest.raises(MimError, match=r"train_files\.txt names ply_data_train1\.h5, which is not in"):
        source(tmp_path)


# ---- ScanObjectNN ----------------------------------------------------------------------------------------------------


def scan(root, folder, ending, counts=(6, 4)):
    for split, count in zip(("training", "test"), counts, strict=True):
        path = root / folder / f"{split}_{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(len(str(path)) + count)
        with h5py.File(path, "w") as file:
            file["data"] = draw.normal(size=(count, 32, 3)).astype(np.float32)
            file["label"] = (np.arange(count) % 15).astype(np.int32)
            file["mask"] = np.zeros((count, 32))


def test_scanobjectnn(tmp_path):
    scan(tmp_path / "h5_files", "main_split", "objectdataset.h5")
    scan(tmp_path / "h5_files", "main_split_nobg", "objectdataset.h5", (5, 4))
    scan(tmp_path / "h5_files", "main_split", "objectdataset_augmentedrot_scale75.h5", (7, 4))
    assert recognise(tmp_path) == "scanobjectnn"
    counts = {"obj_bg": 6, "obj_only": 5, "pb_t50_rs": 7, None: 7}
    for variant, count in counts.items():
        clouds = source(tmp_path, variant=variant)
        assert len(clouds) == count
        assert clouds.collection.train.classes == SCAN_CLASSES
        assert clouds.labelled("train").labels.tolist() == list(range(count))
        readable(clouds)
    assert "obj_only" in source(tmp_path, variant="obj_only").labelled("test").note
    assert clouds.name_of(3) == "main_split/training_objectdataset_augmentedrot_scale75.h5 (row 3)"
    assert recognise(tmp_path / "h5_files/main_split") == "scanobjectnn"
    with pytest.raises(MimError, match="Did you mean 'obj_bg'"):
        source(tmp_path, variant="objbg")


def test_scanobjectnn_rows_are_the_file_s(tmp_path):
    scan(tmp_path, "main_split", "objectdataset.h5")
    with h5py.File(tmp_path / "main_split/training_objectdataset.h5") as file:
        right = torch.from_numpy(file["data"][4])
    clouds = source(tmp_path, 32, augment=False, normalise=False)
    got = clouds.read(4, 9)["points"]
    assert torch.equal(got[got[:, 0].argsort()], right[right[:, 0].argsort()])
    with pytest.raises(MimError, match="main_split_nobg"):
        source(tmp_path, variant="obj_only")


def test_scanobjectnn_that_is_something_else(tmp_path):
    scan(tmp_path, "main_split", "objectdataset.h5")
    path = tmp_path / "main_split/test_objectdataset.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((3, 8, 2))
        file["label"] = np.zeros(3)
    with pytest.raises(MimError, match=r"\[n, points, 3\]"):
        source(tmp_path)
    path.write_bytes(b"not h5")
    with pytest.raises(MimError, match="is not a file of ScanObjectNN"):
        source(tmp_path)
    path.unlink()
    with pytest.raises(MimError, match="complete split"):
        source(tmp_path)
