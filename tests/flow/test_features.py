"""Features of samples that are shown by several views: their mean, by sample, for every row; nothing where a view is
missing."""

import os
from types import SimpleNamespace

import pytest
import torch
from mim_core.data.labelled import LabelledSource
from mim_core.data.source import DataSource, Labelled
from mim_core.errors import BadSample, MimError
from mim_core.evaluation.features import extract
from mim_core.evaluation.online import OnlineProbe
from mim_core.methods.method import Features, Method
from mim_core.recipes.config import EvaluateConfig
from mim_core.runs import inventory
from PIL import Image
from torch.utils.data import Dataset

CPU = torch.device("cpu")


class Items(Dataset):
    """Item i is [i, i squared]; some cannot be read."""

    def __init__(self, bad=()):
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise BadSample(str(index), "it is bad")
        return {"numbers": torch.tensor([float(index), float(index) ** 2])}


class Doubled(Method):
    """Its tokens are the numbers, and twice the numbers."""

    def encode(self, sample):
        tokens = torch.stack([sample["numbers"], 2 * sample["numbers"]], dim=1)
        return Features(tokens, tokens.mean(dim=1), tokens[:, :0])


@pytest.fixture
def source():
    return DataSource(None, {"numbers": (2,)})


def split(samples, views, bad=()):
    return Labelled("test", torch.arange(samples), tuple("abcdefgh"[:samples]), Items(bad), views=views)


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
@pytest.mark.parametrize("views", [1, 3])
def test_the_mean_over_a_samples_views(source, views, batch):
    items = torch.arange(4.0 * views).reshape(4, views)
    expected = torch.stack([items.mean(1), items.square().mean(1)], dim=1)
    config = EvaluateConfig(batch_size=batch)
    assert torch.equal(extract(None, source, split(4, views), config, CPU), expected)
    assert torch.equal(extract(Doubled(), source, split(4, views), config, CPU), 1.5 * expected)
    chosen = torch.tensor([3, 0, 3])
    assert torch.equal(extract(None, source, split(4, views), config, CPU, chosen), expected[chosen])


def test_a_sample_counts_when_all_its_views_can_be_read(source):
    found = extract(None, source, split(3, 2, bad=(3,)), EvaluateConfig(batch_size=2), CPU)
    assert found.isnan().any(dim=1).tolist() == [False, True, False]
    assert found[2].tolist() == [4.5, (16 + 25) / 2]
    with pytest.raises(MimError, match="None of the 2 labelled test samples"):
        extract(None, source, split(2, 2, bad=range(4)), EvaluateConfig(), CPU)


def test_controls_are_told_the_item(source):
    """So that two views of a sample may be shuffled in two ways."""
    seen = []

    def note(sample):
        seen.extend(sample["index"].tolist())
        return sample

    extract(None, source, split(3, 2), EvaluateConfig(batch_size=4), CPU, torch.tensor([2, 0]), note)
    assert seen == [0, 1, 4, 5]


def test_the_middle_view_stands_for_a_sample(source):
    assert [split(2, views).middle(1) for views in (1, 2, 3, 15)] == [1, 3, 4, 22]
    source.labelled = lambda name: split(3, 3)
    item = source.read_labelled(2, key=0)
    assert (item["numbers"][0], item["label"]) == (7, 2)


def test_online_probes_draw_samples_not_views(source, tmp_path):
    source.labelled = lambda name: split(4, 3)
    world = SimpleNamespace(rank=0, size=1, sum=lambda *tensors: None)
    config = SimpleNamespace(evaluate=EvaluateConfig(every=1.0, online_samples=3))
    probe = OnlineProbe(SimpleNamespace(config=config, source=source, world=world, device=CPU, folder=tmp_path))
    assert [len(chosen) for chosen in probe.chosen] == [3, 3]
    features = probe._both(None)
    assert torch.equal(features.test[:, 0], 3.0 * probe.chosen[1] + 1)


def test_files_that_changed_places_are_other_data(tmp_path):
    """Of equal size and equal time, as files from one archive have."""
    images = pytest.importorskip("mim_image.data")
    for number, name in enumerate(("cat/1.bmp", "cat/2.bmp", "dog/1.bmp", "dog/2.bmp")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 40 * number).save(tmp_path / name)
        os.utime(tmp_path / name, (1e9, 1e9))
    source = images.Images(images.Images.Config(root=tmp_path), {"image": (1, 8, 8)})
    before = inventory.digest_of(source, ())
    assert inventory.digest_of(source, ()) == before
    (tmp_path / "cat/1.bmp").rename(tmp_path / "x.tmp")
    (tmp_path / "dog/1.bmp").rename(tmp_path / "cat/1.bmp")
    (tmp_path / "x.tmp").rename(tmp_path / "dog/1.bmp")
    assert {os.stat(path).st_mtime for path in tmp_path.glob("*/*.bmp")} == {1e9}
    assert inventory.digest_of(source, ()) != before


def test_labels_that_changed_are_said_when_a_run_goes_on(tmp_path, capfd):
    images = pytest.importorskip("mim_image.data")
    for number in range(12):
        Image.new("L", (8, 8), 9 * number).save(tmp_path / f"{number}.png")

    def source(labels):
        (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{i}.png,{x}\n" for i, x in enumerate(labels)))
        found = images.Images(images.Images.Config(root=tmp_path), {"image": (1, 8, 8)})
        return LabelledSource(found)

    run = tmp_path / "run"
    run.mkdir()
    inventory.record(run, source("ab" * 6))
    inventory.check_items(run, {}, source("ab" * 6))
    assert capfd.readouterr().err == ""
    inventory.check_items(run, {}, source("abba" * 3))
    assert "the labels are not those that the run" in capfd.readouterr().err
