"""Part segmentation: what it is made of, that it learns, and what it refuses."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from mim_core import randomness
from mim_core.cli import main
from mim_core.data.source import DataSource, Labelled
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.parts.encoder import Encoder
from mim_core.recipes.config import ResolvedPart
from mim_core.recipes.resolve import load_recipe, swap
from mim_core.runs.load import load_run
from mim_core.training.loop import start, train
from mim_pointcloud import segmentation
from mim_pointcloud.segmentation import PartSegmenter, interpolation, owners_of, thirds
from torch.utils.data import Dataset

POINTS = 128
PARTS = {"slices": (0, 1, 2), "halves": (3, 4)}


class Sliced(DataSource):
    """Points in a box: shapes of the first category are cut across z in three, the others across x in two."""

    parts = PARTS

    @dataclass(frozen=True)
    class Config:
        """None."""

    def __len__(self):
        return 64

    def item(self, number, salt):
        key = randomness.make_key(salt, 0, torch.tensor([number]))
        points = randomness.uniform(key, "points", POINTS * 3).reshape(POINTS, 3) * 2 - 1
        points = points.float() * torch.tensor([0.6, 0.8, 1.0])
        category = number % 2
        z, x = points[:, 2], points[:, 0]
        parts = 3 + (x > 0).long() if category else (z > -0.5).long() + (z > 0.2).long()
        return {"points": points, "parts": parts}

    def read_labelled(self, index, key):
        return {**self.item(index, key % 1000), "label": torch.tensor(index % 2)}

    def labelled(self, split):
        source, salt = self, 1 if split == "train" else 2

        class Items(Dataset):
            def __getitem__(self, index):
                return source.item(index, salt)

        count = 64 if split == "train" else 20
        return Labelled(split, torch.arange(count) % 2, tuple(PARTS), Items())


def segmenter(**options):
    """The twin's tokenizer and an encoder of three blocks, under a small head."""
    registry = installed()
    run = load_recipe("pointcloud:point-mae-vit-tiny", registry, twin=True)
    run = swap(run, "method", "pointcloud:part-segmenter", registry)
    small = {"owners": (0, 0, 0, 1, 1), "propagation": (64, 32), "hidden": (64, 32), "category": 8, "dropout": 0.1}
    changes = {"method": {**small, **options}, "encoder": {"depth": 3}}
    parts = {
        role: replace(part, options=replace(part.options, **changes.get(role, {})))
        for role, part in run.parts.items()
        if role in ("method", "tokenizer", "encoder")
    }
    parts["data"] = ResolvedPart("core:noise", Sliced, Sliced.Config())
    return replace(run, parts=parts, train=replace(run.train, epochs=15, batch_size=16, warmup_epochs=1, base_lr=2e-3))


def batch(count=4):
    source = Sliced(Sliced.Config(), {"points": (POINTS, 3)})
    items = [source.read_labelled(index, 7) for index in range(count)]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


# ---- what it is made of ----------------------------------------------------------------------------------------------


def test_interpolation_is_by_inverse_squared_distances():
    centres = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [9, 9, 9]]])
    points = torch.tensor([[[0.25, 0.0, 0.0], [0, 2, 0]]])
    near, share = interpolation(points, centres)
    assert near.tolist()[0][0] == [0, 1, 2]
    weights = torch.tensor([1 / 0.0625, 1 / 0.5625, 1 / 4.0625])
    torch.testing.assert_close(share[0, 0], weights / weights.sum())
    assert near[0, 1, 0] == 2
    torch.testing.assert_close(share[0, 1], torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)
    assert interpolation(points, centres[:, :2])[1].shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("depth", "levels"), [(12, (4, 8, 12)), (4, (1, 3, 4)), (3, (1, 2, 3)), (2, (1, 2)), (1, (1,))]
)
def test_thirds(depth, levels):
    encoder = Encoder()
    encoder.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(depth))
    assert thirds(encoder) == levels


def test_the_levels_are_the_outputs_of_their_blocks():
    method = build_method(segmenter(levels=(1, 3))).eval()
    sample = batch()
    found = []
    for block in (method.encoder.blocks[0], method.encoder.blocks[2]):
        block.register_forward_hook(lambda module, given, out: found.append(out))
    encoded = method.encoded(method.prepare(sample))
    assert len(encoded.levels) == len(found) == 2
    assert all(torch.equal(a, method.encoder.norm(b)) for a, b in zip(encoded.levels, found, strict=True))
    assert torch.equal(encoded.tokens, encoded.levels[1])


def test_the_loss_is_the_mean_over_the_points_and_reaches_every_weight():
    method = build_method(segmenter())
    sample = batch()
    outcome = method(method.prepare(sample))
    logits = outcome.predictions["part"]
    assert logits.shape == (4, POINTS, 5)
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), sample["parts"])
    torch.testing.assert_close(outcome.loss, expected)
    outcome.loss.backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_points_in_another_order_get_the_same_parts():
    method = build_method(segmenter()).eval()
    sample, order = batch(2), torch.randperm(POINTS, generator=torch.Generator().manual_seed(3))
    order = torch.cat([torch.zeros(1, dtype=torch.int64), order[order != 0]])  # the first point starts the centres
    moved = {**sample, "points": sample["points"][:, order], "parts": sample["parts"][:, order]}
    one, other = (method(method.prepare(each)).predictions["part"] for each in (sample, moved))
    torch.testing.assert_close(other, one[:, order], atol=1e-5, rtol=1e-4)


# ---- that it learns --------------------------------------------------------------------------------------------------


def test_it_learns_parts(tmp_path):
    run = start(segmenter(), tmp_path / "run", installed())
    assert train(run, quiet=True)
    loss = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert loss[-1] < 0.5 * loss[0]
    notes = []
    found = {(s.row, s.column): s.value for s in run.method.test(run.source, torch.device("cpu"), notes=notes)}
    assert 0.15 < found["majority part", "instance mIoU"] < 0.4
    assert found["fine-tuned", "instance mIoU"] > found["majority part", "instance mIoU"] + 0.3
    assert found["fine-tuned", "class mIoU"] > found["majority part", "class mIoU"] + 0.3
    assert any("20 test shapes, 2 categories, 5 parts" in note for note in notes)


def test_only_the_parts_of_the_given_category_compete(monkeypatch):
    method = build_method(segmenter())
    seen = []

    def predicted(*given):
        for sample, _ in PartSegmenter.predicted(method, *given):
            yield sample, {"part": torch.arange(5.0).expand(*sample["parts"].shape, 5)}  # always part 4

    def note(predicted, truth, categories, parts_of):
        seen.append(predicted)
        return 0.0, 0.0, {}

    monkeypatch.setattr(method, "predicted", predicted)
    monkeypatch.setattr(segmentation.metrics, "part_iou", note)
    method.test(Sliced(Sliced.Config(), {"points": (POINTS, 3)}), torch.device("cpu"))
    assert seen[1][::2].unique().tolist() == [2]
    assert seen[1][1::2].unique().tolist() == [4]


def shapenetpart(root):
    """A tree of bags (parts 4 and 5) and caps (6 and 7): the lower and the upper half of boxes."""
    (root / "train_test_split").mkdir(parents=True)
    (root / "synsetoffset2category.txt").write_text("Bag\t02773838\nCap\t02954340\n")
    for split, count in (("train", 12), ("val", 2), ("test", 6)):
        listed = []
        for number in range(count):
            synset, first = (("02773838", 4), ("02954340", 6))[number % 2]
            key = randomness.make_key(count, 0, torch.tensor([number]))
            points = randomness.uniform(key, "points", 600).reshape(200, 3) * 2 - 1
            points[:, 1] *= 2
            lines = [f"{x} {y} {z} 0 0 1 {first + (y > 0.0):.6f}" for x, y, z in points.tolist()]
            (root / synset).mkdir(exist_ok=True)
            (root / synset / f"{split}{number}.txt").write_text("\n".join(lines) + "\n")
            listed.append(f"shape_data/{synset}/{split}{number}")
        (root / f"train_test_split/shuffled_{split}_file_list.json").write_text(json.dumps(listed))


def test_a_run_is_fine_tuned_on_shapenetpart(tmp_path, capsys):
    """From pre-training to scores, through the command line; the upper half of a shape is learned."""
    root, run = tmp_path / "shapenetpart", tmp_path / "run"
    shapenetpart(root)
    data = ["--data.root", str(root)]
    twin = ["pretrain", "pointcloud:point-mae-vit-tiny", "--twin", "--quiet", "--out", str(run), *data]
    assert main([*twin, "--train.epochs", "2", "--train.warmup-epochs", "1"]) == 0
    command = ["finetune", str(run), "--use", "method=pointcloud:part-segmenter", "--train.workers", "0"]
    small = ["--method.propagation", "64", "32", "--method.hidden", "64", "32", "--method.dropout", "0"]
    short = [
        "--train.epochs",
        "60",
        "--train.warmup-epochs",
        "2",
        "--train.base-lr",
        "2e-3",
        "--train.batch-size",
        "14",
    ]
    capsys.readouterr()
    assert main([*command, *small, *short, "--dry-run"]) == 0
    assert "14 labelled training samples of 2 classes" in capsys.readouterr().out
    assert main([*command, *small, *short, "--quiet"]) == 0
    folder = run / "finetune-part-segmenter"
    found = json.loads((folder / "scores.json").read_text())
    value = {(s["row"], s["column"]): s["value"] for s in found["scores"]}
    assert 0.15 < value["majority part", "instance mIoU"] < 0.4
    assert value["fine-tuned", "instance mIoU"] > 0.6
    config, method, _ = load_run(folder, installed())
    assert config.parts["method"].options.owners == (-1, -1, -1, -1, 0, 0, 1, 1)
    assert config.train.lr_batch == 16
    assert method.levels == (1, 2)
    assert main(["evaluate", str(folder)]) == 0
    assert "instance mIoU" in (folder / "report.html").read_text()


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"owners": ()}, "finetune takes them from the data"),
        ({"owners": (0, 0, 2)}, "every category needs a part"),
        ({"levels": (1, 4)}, "4"),
        ({"levels": (1, 2)}, "levels end at block 2"),
    ],
)
def test_what_cannot_be_built(options, said):
    with pytest.raises(MimError, match=said):
        build_method(segmenter(**options))


def test_data_without_parts_is_refused():
    source = Sliced(Sliced.Config(), {"points": (POINTS, 3)})
    assert owners_of(source) == (0, 0, 0, 1, 1)
    method = build_method(segmenter(owners=(0, 0, 1, 1)))
    with pytest.raises(MimError, match="is for 4 parts of 2 categories"):
        method.check(source)
    source.parts = {}
    with pytest.raises(MimError, match="no part for every point"):
        method.check(source)


# ---- shapes without labels -------------------------------------------------------------------------------------------


def test_parts_of_new_shapes_are_those_of_their_category():
    method = build_method(segmenter(names=("slices", "halves"))).eval()
    points = torch.rand(3, POINTS, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(MimError, match=r"Of which category are these shapes\? .*slices, halves"):
        method.predict({"points": points})
    for label, allowed in ((0, {0, 1, 2}), (1, {3, 4})):
        with torch.no_grad():
            answers = method.predict({"points": points, "label": torch.full((3,), label)})
        assert set(answers["part"].argmax(dim=2).unique().tolist()) <= allowed
        torch.testing.assert_close(answers["part"].sum(dim=2), torch.ones(3, POINTS))


def test_a_coloured_file_tells_the_parts(tmp_path):
    plyfile, source = pytest.importorskip("plyfile"), Sliced(Sliced.Config(), {"points": (POINTS, 3)})
    method = build_method(segmenter(names=("slices", "halves"))).eval()
    points = torch.rand(1, POINTS, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        answers = method.predict({"points": points, "label": torch.tensor([1])})
    record = method.record({name: value[0] for name, value in answers.items()}, source)
    (tmp_path / "a.ply").write_bytes(record.files[".ply"])
    found = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    parts = answers["part"][0].argmax(dim=1)
    assert found["part"].tolist() == parts.tolist()
    torch.testing.assert_close(torch.tensor(found["x"].copy()), points[0, :, 0])
    colours = {(r, g, b) for r, g, b in zip(found["red"], found["green"], found["blue"], strict=True)}
    assert len(colours) == len(parts.unique())
    assert (
        sum(count for name, count in record.row.items() if name.startswith("part ")) == record.row["points"] == POINTS
    )
