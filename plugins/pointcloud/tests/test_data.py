"""Clouds by key: points, the unit sphere, augmentation, bad files, workers forked and spawned; and the bundled
sample."""

import csv
import io
import pickle
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
from mim_core.data.loading import KeyedBatches, KeyedDataset, collate, loader
from mim_core.errors import BadSample, MimError
from mim_pointcloud.augmentation import choose_points, rotate, scale_and_shift, to_unit_sphere
from mim_pointcloud.data import SAMPLE, Clouds, Plain
from mim_pointcloud.description import describe
from PIL import Image
from torch.utils.data import DataLoader


@pytest.fixture
def put(tmp_path):
    """``put("a.npy", array)`` writes a cloud below the test's folder; without array, 40 normal points."""

    def make(name, points=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(sum(name.encode()))
        np.save(path, draw.normal(size=(40, 3)).astype(np.float32) if points is None else points)
        return path

    return make


@pytest.fixture
def source(tmp_path):
    """``source(points=16, **options)``: the data on the test's own folder."""

    def make(points=16, root=tmp_path, **options):
        width = 3 * len(options.get("channels", ("xyz",)))
        return Clouds(Clouds.Config(root=root, **options), {"points": (points, width)})

    return make


def sample(points=128, **options):
    from pathlib import Path

    return Clouds(Clouds.Config(root=Path("sample"), **options), {"points": (points, 3)})


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"rotate": True}, {"choose": "farthest", "candidates": 30}, {"augment": False}]
)
def test_same_key_same_cloud_other_key_other_cloud(put, source, options):
    put("a.npy")
    clouds = source(**options)
    first = clouds.read(0, 11)["points"]
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(clouds.read(0, 11)["points"], first)
    assert torch.equal(torch.rand(3), undisturbed)
    assert first.dtype == torch.float32
    assert first.shape == (16, 3)
    assert len({clouds.read(0, key)["points"].numpy().tobytes() for key in range(12)}) > 10


def test_an_item_without_augmentation_is_always_the_same(put, source):
    for label in "ab":
        for i in range(5):
            put(f"{label}/{i}.npy")
    first, again = (source(points=8).labelled("train").items for _ in range(2))
    assert torch.equal(first[2]["points"], again[2]["points"])
    assert torch.equal(
        first[2]["points"], Plain(source(points=8, augment=False), source().collection.train)[2]["points"]
    )
    assert float(first[2]["points"].norm(dim=1).max()) == pytest.approx(1, abs=1e-6)


def test_points_are_the_file_s_without_repeats(put, source):
    put("a.npy", np.arange(60, dtype=np.float32).reshape(20, 3))
    clouds = source(points=20, augment=False, normalise=False)
    got = clouds.read(0, 3)["points"]
    assert sorted(got[:, 0].tolist()) == list(range(0, 60, 3))
    assert got[:, 0].tolist() != sorted(got[:, 0].tolist())
    assert len(source(points=7, augment=False, normalise=False).read(0, 3)["points"].unique(dim=0)) == 7


def test_too_few_points_are_all_there_and_some_again(put, source):
    put("a.npy", np.arange(15, dtype=np.float32).reshape(5, 3))
    got = source(points=12, augment=False, normalise=False).read(0, 3)["points"]
    assert set(got[:, 0].tolist()) == {0, 3, 6, 9, 12}
    assert len({tuple(choose_points(5, 12, key).tolist()) for key in range(20)}) == 20
    assert set(choose_points(5, 12, 1).tolist()) == set(range(5))
    with pytest.raises(BadSample, match="no points"):
        choose_points(0, 12, 1)


def test_every_point_is_chosen_equally_often():
    counts = torch.zeros(50)
    for key in range(2000):
        counts[choose_points(50, 10, key)] += 1
    assert abs(counts / 2000 - 0.2).max() < 0.05


def test_the_farthest_cover_more(put, source):
    put("a.npy")
    near = source(augment=False).read(0, 4)["points"]
    far = source(augment=False, choose="farthest", candidates=40).read(0, 4)["points"]

    def closest(points):
        return (torch.cdist(points, points) + 10 * torch.eye(len(points))).amin(1).min()

    assert closest(far) > 1.5 * closest(near)


# ---- the unit sphere and augmentation --------------------------------------------------------------------------------


def test_the_unit_sphere():
    points = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * 7 + 1000
    got = to_unit_sphere(points)
    assert got[:, :3].mean(0).abs().max() < 1e-5
    assert float(got[:, :3].norm(dim=1).max()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(got[:, 3:], points[:, 3:])
    ratios = (got[1:, :3] - got[:1, :3]) / (points[1:, :3] - points[:1, :3])
    assert ratios.std() < 1e-3 * ratios.mean()


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.0), (1e6, -3.1, 0.1), (0.1, 0.1, 0.1)])
def test_a_cloud_of_one_place_is_bad(put, source, place):
    put("dot.npy", np.tile(np.float32(place), (30, 1)))
    put("one.npy", np.float32([place]))
    put("good.npy")
    clouds = source()
    for index, name in ((0, "dot.npy"), (2, "one.npy")):
        with pytest.raises(BadSample, match="at one place") as caught:
            clouds.read(index, 0)
        assert caught.value.path == name
    line = to_unit_sphere(torch.tensor([[5.0, 1, 1], [5.0, 1, 1], [6.0, 1, 1]]))
    assert line[2].tolist() == pytest.approx([1, 0, 0])


def test_scale_and_shift_are_of_each_axis_and_in_range():
    points = torch.tensor([[0.0, 0, 0], [1.0, 1, 1]])
    found = torch.stack([scale_and_shift(points, (2 / 3, 3 / 2), 0.2, key) for key in range(500)])
    factors, shifts = found[:, 1] - found[:, 0], found[:, 0]
    assert factors.min() > 0.66
    assert factors.max() < 1.51
    assert shifts.abs().max() < 0.2001
    for values, low, high in ((factors, 2 / 3, 3 / 2), (shifts, -0.2, 0.2)):
        assert (values.mean(0) - (low + high) / 2).abs().max() < 0.05 * (high - low)
        assert values.std(0).min() > 0.25 * (high - low)
        assert torch.corrcoef(values.T).fill_diagonal_(0).abs().max() < 0.15


def test_augmentation_is_the_only_difference_in_training(put, source):
    put("a.npy")
    plain, changed = source(augment=False).read(0, 9)["points"], source().read(0, 9)["points"]
    assert torch.equal(changed, scale_and_shift(plain, (2 / 3, 3 / 2), 0.2, 9))
    still = source(scale=(1.0, 1.0), shift=0.0).read(0, 9)["points"]
    assert torch.equal(still, plain)
    assert torch.allclose(source(scale=(2.0, 2.0), shift=0.0).read(0, 9)["points"], 2 * plain)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotation_keeps_heights_and_lengths(axis):
    points = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    turned = rotate(points, axis, 5, normals=3)
    up = "xyz".index(axis)
    for start in (0, 3):
        before, after = points[:, start : start + 3], turned[:, start : start + 3]
        assert torch.allclose(before[:, up], after[:, up], atol=1e-6)
        assert torch.allclose(before @ before.T, after @ after.T, atol=1e-5)
    assert not torch.allclose(points, turned, atol=0.1)
    turn = torch.linalg.lstsq(points[:, :3], turned[:, :3]).solution
    assert float(torch.det(turn)) == pytest.approx(1, abs=1e-4)


def test_normals_stay_perpendicular_to_a_scaled_surface():
    draw = torch.Generator().manual_seed(3)
    first, second = torch.randn(30, 3, generator=draw), torch.randn(30, 3, generator=draw)
    normal = torch.nn.functional.normalize(torch.linalg.cross(first, second), dim=1)
    changed = scale_and_shift(torch.cat([first, normal], 1), (0.5, 2), 0.0, 4, normals=3)
    origin = scale_and_shift(torch.cat([second, normal], 1), (0.5, 2), 0.0, 4, normals=3)
    for tangent in (changed[:, :3], origin[:, :3]):
        assert (tangent * changed[:, 3:]).sum(1).abs().max() < 1e-5
    assert torch.allclose(changed[:, 3:].norm(dim=1), torch.ones(30))


# ---- bad files and options -------------------------------------------------------------------------------------------


def test_bad_files_are_named_with_their_reason(put, source, tmp_path):
    points = np.ones((30, 3), np.float32) * np.arange(30, dtype=np.float32)[:, None]
    put("1-nan.npy", np.where(points == 3, np.nan, points))
    put("2-inf.npy", np.where(points == 3, np.inf, points))
    put("3-none.npy", points[:0])
    put("4-flat.npy", points[:, :2])
    (tmp_path / "5-empty.npy").write_bytes(b"")
    (tmp_path / "6-broken.off").write_text("OFF\n3 1 0\n0 0 0\n")
    put("7-good.npy", points)
    clouds = source()
    for index in range(6):
        with pytest.raises(BadSample) as caught:
            clouds.read(index, 1)
        assert caught.value.path == clouds.name_of(index)
        assert len(caught.value.reason) > 5
    assert clouds.read(6, 1)["points"].isfinite().all()
    (tmp_path / "7-good.npy").unlink()
    with pytest.raises(BadSample):
        clouds.read(6, 1)


def test_nan_in_packed_rows_is_bad(tmp_path):
    folder = tmp_path / "main_split"
    folder.mkdir()
    data = np.random.default_rng(0).normal(size=(3, 32, 3))
    data[1, 5] = np.nan
    data[2] = 4
    for split in ("training", "test"):
        with h5py.File(folder / f"{split}_objectdataset.h5", "w") as file:
            file["data"], file["label"] = data, np.arange(3)
    clouds = Clouds(Clouds.Config(root=tmp_path), {"points": (32, 3)})
    assert clouds.read(0, 0)["points"].shape == (32, 3)
    for row, reason in ((1, "not finite"), (2, "one place")):
        with pytest.raises(BadSample, match=reason) as caught:
            clouds.read(row, 0)
        assert caught.value.path.endswith(f"(row {row})")


def test_duplicate_points_stay(put, source):
    put("a.npy", np.repeat(np.eye(3, dtype=np.float32), 10, axis=0))
    got = source(points=30, augment=False).read(0, 0)["points"]
    assert len(got.unique(dim=0)) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": ("xyz", "normals")}, "--tokenizer.channels 6"),
        ({"channels": ("normals",)}, "start with xyz"),
        ({"choose": "farthest", "candidates": 8}, "at least the 16 points"),
        ({"scale": (1.5, 0.5)}, "rising"),
        ({"shift": -0.1}, "negative"),
        ({"max_bad": 2.0}, "max_bad"),
    ],
)
def test_options_that_make_no_sense(put, tmp_path, options, said):
    put("a.npy")
    with pytest.raises(ValueError, match=said):
        Clouds(Clouds.Config(root=tmp_path, **options), {"points": (16, 3)})


def test_other_shapes_than_points_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gives 'points' \[P, C\]"):
        Clouds(Clouds.Config(root=tmp_path), {"voxels": (4, 4, 4)})


# ---- workers ---------------------------------------------------------------------------------------------------------


def batches(source, workers, context=None):
    order = KeyedBatches(len(source), 4, seed=3, first=0, last=24)
    if context is None:
        made = loader(KeyedDataset(source), order, workers, collate)
    else:
        made = DataLoader(
            KeyedDataset(source),
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            multiprocessing_context=context,
        )
    return list(made)


@pytest.mark.parametrize("context", [None, "spawn"])
def test_workers_make_no_difference(tmp_path, context):
    """Rows of h5 files, opened in each worker; also after the parent has read some."""
    folder = tmp_path / "main_split"
    folder.mkdir()
    for split in ("training", "test"):
        with h5py.File(folder / f"{split}_objectdataset.h5", "w") as file:
            file["data"] = np.random.default_rng(1).normal(size=(9, 40, 3)).astype(np.float32)
            file["label"] = np.arange(9)
    clouds = Clouds(Clouds.Config(root=tmp_path), {"points": (16, 3)})
    alone, shared = batches(clouds, 0), batches(clouds, 2, context)
    assert len(alone) == len(shared) == 6
    for one, two in zip(alone, shared, strict=True):
        assert torch.equal(one.sample["points"], two.sample["points"])
        assert torch.equal(one.sample["index"], two.sample["index"])


def test_a_bad_file_is_replaced_and_reported(put, source):
    put("bad.npy", np.zeros((0, 3), np.float32))
    put("good.npy")
    made = batches(source(), 2)
    assert {name for batch in made for name, _ in batch.skipped} == {"bad.npy"}
    assert all(int(batch.sample["index"].min()) == 1 for batch in made)


def test_it_pickles_small(put, source):
    put("a.npy")
    clouds = source()
    again = pickle.loads(pickle.dumps(clouds))
    assert torch.equal(again.read(0, 5)["points"], clouds.read(0, 5)["points"])
    assert len(pickle.dumps(sample())) < 200_000


# ---- descriptions and pictures ---------------------------------------------------------------------------------------


def test_the_description_by_hand():
    clouds = sample(256)
    points = torch.stack([clouds.read(i, 1)["points"] for i in range(4)])
    got = clouds.raw({"points": points})
    assert got.shape == (4, 45)
    assert torch.allclose(got[:, 3:].reshape(4, 3, 14).sum(2), torch.ones(4, 3), atol=1e-5)
    assert torch.allclose(describe(points * 3 + 5), got, atol=0.02)
    assert not torch.allclose(describe(points, "x"), got, atol=0.02)
    assert describe(torch.zeros(1, 8, 3)).isfinite().all()
    assert "45 histogram features" in clouds.labelled("test").note


def test_picture_and_page():
    clouds = sample(256)
    points = clouds.read(3, 0)["points"]
    picture = clouds.picture("points", points)
    assert Image.open(io.BytesIO(picture.content)).convert("L").getextrema()[0] < 200
    masked = points.clone()
    masked[:100] = float("nan")
    page = clouds.page("points", {"input": points[None], "masked": masked[None], "rebuilt": points[None]})
    assert "plotly" in page


# ---- the sample ------------------------------------------------------------------------------------------------------


def rows():
    with open(SAMPLE / "shapes.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_sample_s_counts():
    found = rows()
    points = np.load(SAMPLE / "points.npy")
    assert points.shape == (820, 1024, 3)
    assert points.dtype == np.float16
    assert np.isfinite(points).all()
    assert len({row["name"] for row in found}) == len(found) == 820
    norms = np.linalg.norm(points.astype(np.float32), axis=2)
    assert abs(norms.max(1) - 1).max() < 2e-3
    assert abs(points.astype(np.float32).mean(1)).max() < 1e-3
    classes = Counter(row["class"] for row in found)
    unlabelled = classes.pop("")
    assert len(classes) == 17
    assert min(classes.values()) >= 12
    assert sum(classes.values()) == 820 - unlabelled > 440


def test_test_shapes_are_held_out_and_stratified():
    found = rows()
    held = Counter(row["class"] for row in found if row["split"] == "test")
    all_of = Counter(row["class"] for row in found)
    assert held[""] == 0
    for label, count in all_of.items():
        if label:
            assert 0.1 <= held[label] / count <= 0.25
    clouds = sample()
    seen = {clouds.name_of(i) for i in range(len(clouds))}
    test = {row["name"] for row in found if row["split"] == "test"}
    assert set(clouds.collection.test.names) == test
    assert seen == {row["name"] for row in found} - test
    assert set(clouds.collection.train.names) <= seen
    whole = sample(whole=True)
    assert len(whole) == 820
    assert "seen these shapes" in whole.labelled("test").note


def test_the_sample_s_rows_and_labels_agree():
    found, points = {row["name"]: (i, row) for i, row in enumerate(rows())}, np.load(SAMPLE / "points.npy")
    clouds = sample(1024, augment=False, normalise=False)
    for split in ("train", "test"):
        labelled = clouds.labelled(split)
        store = clouds.collection.train if split == "train" else clouds.collection.test
        for i in range(0, len(store), 20):
            place, row = found[store.name(i)]
            assert labelled.classes[int(labelled.labels[i])] == row["class"]
            got = labelled.items[i]["points"]
            right = torch.from_numpy(points[place].astype(np.float32))
            assert torch.equal(got[got[:, 0].argsort(stable=True), 0], right[:, 0].sort().values)
    assert "names" in clouds.labelled("test").note


def test_every_shape_has_a_licence_and_its_author():
    for row in rows():
        assert row["licence"] in ("CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US")
        assert row["author"]
        assert row["title"]
    text = (SAMPLE / "LICENSE").read_text(encoding="utf-8")
    for author in sorted({row["author"] for row in rows() if row["licence"] != "CC0-1.0"}):
        assert author in text
    for link in ("creativecommons.org/licenses/by/3.0/", "creativecommons.org/publicdomain/zero/1.0"):
        assert link in text


def test_the_sample_is_small():
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 7_000_000


def test_a_sample_whose_files_do_not_fit(tmp_path):
    np.save(tmp_path / "points.npy", np.zeros((3, 8, 3)))
    (tmp_path / "shapes.csv").write_text("name,class,split\na,x,train\n")
    with pytest.raises(MimError, match="3 clouds and 1 rows do not fit"):
        Clouds(Clouds.Config(root=tmp_path), {"points": (8, 3)})
    (tmp_path / "shapes.csv").write_text("name,label,split\n" + "a,x,train\n" * 3)
    with pytest.raises(MimError, match="columns name, class, split"):
        Clouds(Clouds.Config(root=tmp_path), {"points": (8, 3)})
