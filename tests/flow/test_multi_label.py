"""Several labels for each sample: tables, the loss, scores, and the commands on files."""

import csv
import json

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.data.labelled import LabelledSource, share_of
from mim_core.data.many_labels import ManyLabelsSource, rarest, read_many_labels
from mim_core.data.source import DataSource, Labelled, PlainItems
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.importers import build
from mim_core.methods.assembly import Parts
from mim_core.methods.build import open_source
from mim_core.methods.multi_label import f1, label_scores
from mim_core.recipes.config import Part
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MethodContract
from PIL import Image
from sklearn import metrics
from torch.utils.data import Dataset

NAMES = ["a.png", "b.png", "sub/c.png", "d.png", "e.png"]


def written(path, text):
    path.write_text(text)
    return path


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.png,cat|dog\nb.png,\nsub/c.png,dog\n",
        "file;label\na.png;cat|dog\nb.png;\nsub/c.png;dog\n",
        "file\tlabel\na.png\tcat;dog\nb.png\t\nsub/c.png\tdog\n",
        "file,label\na.png,cat\na.png,dog\nb.png,\nsub/c.png,dog\n",
        "file,cat,dog,age\na.png,1,1,7\nb.png,0,0,8\nsub/c.png,0,1,9\n",
        "file,cat,dog\na.png,1,1\nb.png,-1,-1\nsub/c.png,-1,1\n",
        "file,cat,dog\na.png,True,yes\nb.png,,\nsub/c.png,no,1.0\n",
    ],
)
def test_names_in_a_cell_rows_of_a_file_and_columns_say_the_same(tmp_path, text):
    found = read_many_labels(written(tmp_path / "l.csv", text))
    assert found.classes == ("cat", "dog")
    assert {file: set(labels) for file, (labels, _) in found.rows.items()} == {
        "a.png": {"cat", "dog"},
        "b.png": set(),
        "sub/c.png": {"dog"},
    }


def test_columns_and_marks_that_are_named(tmp_path):
    path = written(tmp_path / "l.csv", "id,kind,x,z\na,p/q,1,0\nb,q,0,1\nc,r,1,1\n")
    assert read_many_labels(path, ["kind"], "/").classes == ("p", "q", "r")
    assert read_many_labels(path, ["z", "x"]).classes == ("z", "x")
    assert read_many_labels(path).classes == ("x", "z")


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("photo,label\na,b\n", (), "no column of files"),
        ("file,age\na,7\nb,9\n", (), "neither a column of labels"),
        ("file,cat,dog\na,1,2\n", ("cat", "dog"), "row 2: dog is '2'"),
        ("file,cat,dog\na,1,0\nb,-1,1\n", (), "row 3: cat is '-1' beside 0"),
        ("file,label\na,cat\nb,cat\n", (), "1 label in all"),
        ("file,label\na,cat,dog\n", (), "row 2: it has 3 cells, and there are 2 columns"),
        ("file,label,split\na,cat,train\na,dog,test\n", (), "puts a into two splits"),
        ("file,label\n,cat\n", (), "row 2: it names no file"),
        ("file,label\na,cat|dog\n", ("labels",), "Did you mean 'label'"),
        ("file,label\n", (), "is no table"),
    ],
)
def test_what_is_no_such_table(tmp_path, text, columns, message):
    with pytest.raises(MimError, match=message.replace("(", "[(]")):
        read_many_labels(written(tmp_path / "l.csv", text), columns)


# ---- the source ------------------------------------------------------------------------------------------------------


class Numbers(Dataset):
    def __getitem__(self, index):
        return {"x": torch.full((2, 2, 2), float(index))}


class Files(DataSource):
    """Files that hold their own number; each is read as two samples."""

    samples_per_item = 2

    def __init__(self, names):
        super().__init__(None, {"x": (2, 2, 2)})
        self.names = tuple(names)

    def plain(self):
        return PlainItems(Numbers(), self.names, views=3)

    def read(self, index, key):
        return {"x": torch.full((2, 2, 2, 2), float(index))}

    def files_of(self, split="pretrain"):
        return ((name,) for name in self.names)


def table(tmp_path, rows, head="file,label,split"):
    return read_many_labels(written(tmp_path / "l.csv", "\n".join([head, *rows]) + "\n"))


def test_splits_are_those_of_the_table(tmp_path):
    source = ManyLabelsSource(
        Files(NAMES), table(tmp_path, ["a.png,x|y,train", "c,y,val", "d.png,,train", "gone.png,x,train"])
    )
    train, test = source.labelled("train"), source.labelled("test")
    assert (train.names, test.names) == (("a.png", "d.png"), ("sub/c.png",))
    assert train.labels.tolist() == [[1, 1], [0, 0]]
    assert [float(test.items[view]["x"][0, 0, 0]) for view in range(3)] == [6.0, 7.0, 8.0]
    item = LabelledSource(source).read(1, 5)
    assert (float(item["x"].flatten()[0]), item["x"].shape, item["label"].tolist()) == (3.0, (2, 2, 2), [0, 0])
    assert list(source.files_of("train")) == [("a.png",), ("d.png",)]
    assert any("gone.png" in line for line in source.told)
    assert any("2 files have no label" in line for line in source.told)


def test_splits_are_else_those_of_the_folders_or_every_fifth(tmp_path):
    rows = [f"{i}.png,{'x' if i % 2 else 'x|y'}" for i in range(10)]
    plain = ManyLabelsSource(Files([f"{i}.png" for i in range(10)]), table(tmp_path, rows, "file,label"))
    assert [len(plain.labelled(split).labels) for split in ("train", "test")] == [8, 2]
    assert plain.labelled("test").labels.sum(dim=0).tolist() == [2, 1]
    folders = Files(["train/a.png", "test/b.png", "train/c.png"])
    found = ManyLabelsSource(
        folders, table(tmp_path, ["train/a.png,x", "test/b.png,y", "train/c.png,x|y"], "file,label")
    )
    assert found.labelled("test").names == ("test/b.png",)


def test_a_source_with_one_class_each():
    class One(Files):
        def labelled(self, split):
            return Labelled(split, torch.tensor([1, 0]), ("u", "v"), Numbers())

        def read_labelled(self, index, key):
            return {"x": torch.zeros(2, 2, 2), "label": torch.tensor(index)}

    source = LabelledSource(ManyLabelsSource(One(NAMES), None))
    assert source.read(0, 1)["label"].tolist() == [0, 1]
    assert source.labelled("test").labels.tolist() == [[0, 1], [1, 0]]


def test_shares_of_samples_with_several_labels():
    labels = torch.zeros(40, 3, dtype=torch.int64)
    labels[:, 0], labels[:10, 1], labels[:4, 2] = 1, 1, 1
    labels[39] = 0
    assert rarest(labels).unique(return_counts=True)[1].tolist() == [29, 6, 4, 1]
    split = Labelled("train", labels, ("a", "b", "c"), Numbers(), names=tuple(map(str, range(40))))
    some, chosen = share_of(split, 0.5)
    assert some.labels.sum(dim=0).tolist() == [19, 5, 2]
    assert torch.equal(some.labels, labels[chosen])
    assert set(share_of(split, 0.25)[1].tolist()) <= set(chosen.tolist())


RECIPES = ("image:mae-vit-tiny", "video:videomae-vit-tiny", "pointcloud:point-mae-vit-tiny")


@pytest.mark.parametrize("recipe", [*RECIPES, "multimodal:multimae-vit-tiny"])
def test_data_of_every_modality_can_have_several_labels(recipe, tmp_path):
    """Labels by the names that the data give their files."""
    run = load_recipe(recipe, installed(), twin=True)
    source = open_source(run, Parts(run.parts).tokenizer())
    names = source.plain().names[:12]
    rows = [f'"{name}",{"p|q" if i % 2 else "q"},{"test" if i < 4 else "train"}' for i, name in enumerate(names)]
    many = LabelledSource(ManyLabelsSource(source, table(tmp_path, rows)), repeats=2)
    assert (len(many), many.split.names) == (8, names[4:])
    shapes = {name: value.shape for name, value in source.labelled("train").items[0].items() if name in source.shapes}
    items = many.read(1, 3), many.read(0, 3)
    batch = many.finish({name: torch.stack([item[name] for item in items]) for name in items[0]})
    assert batch["label"].tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]]
    assert {name: value.shape[1:] for name, value in batch.items() if name in shapes} == shapes
    test = many.labelled("test")
    assert test.labels.tolist() == [[0, 1], [1, 1], [0, 1], [1, 1]]
    assert {name: test.items[test.views * 3][name].shape for name in shapes} == shapes


# ---- the method ------------------------------------------------------------------------------------------------------


def made(**options):
    return build(
        tokenizer=Part.of("core:patch", modality="image", size=(8, 8), patch=(4, 4), channels=3),
        encoder=Part.of("core:vit", width=16, depth=2, heads=2),
        method=Part.of("core:multi-label-classifier", classes=3, names=("a", "b", "c"), **options),
    )


def batch(rows=4):
    torch.manual_seed(0)
    return {
        "image": torch.randn(rows, 3, 8, 8),
        "label": (torch.rand(rows, 3) < 0.5).long(),
        "key": torch.arange(rows),
    }


class TestMultiLabelClassifier(MethodContract):
    keyed = False
    rate = 1e-2

    def make_method(self):
        return made()

    def make_sample(self, method, rows, seed=0):
        torch.manual_seed(seed)
        return batch(rows)


def test_the_loss_is_binary_cross_entropy():
    sample = batch()
    for options in ({}, {"label_smoothing": 0.2}, {"class_weights": (2.0, 1.0, 0.5)}):
        method = made(**options).eval()
        outcome = method(method.prepare(sample))
        share = outcome.prediction.sigmoid()
        wanted = sample["label"] * (1 - options.get("label_smoothing", 0)) + options.get("label_smoothing", 0) / 2
        weight = torch.tensor(options.get("class_weights", (1.0, 1.0, 1.0)))
        expected = -(weight * wanted * share.log() + (1 - wanted) * (1 - share).log()).mean()
        torch.testing.assert_close(outcome.loss, expected)


def test_labels_are_mixed_by_the_same_shares():
    method = made(mixup=1.0).train()
    sample = batch()
    prepared = method.prepare(sample)
    own = sample["label"].float()
    mixed = own != own.flip(0)
    left = (prepared.answers - own.flip(0))[mixed] / (own - own.flip(0))[mixed]
    assert float(left.std()) < 1e-6
    assert 0 < float(left[0]) < 1
    torch.testing.assert_close(prepared.answers, own * left[0] + own.flip(0) * (1 - left[0]))


def test_every_label_is_told_with_its_probability():
    method = made().eval()
    answers = method.predict({"image": torch.randn(2, 3, 8, 8)})
    row = method.record({"class": torch.tensor([0.7, 0.2, 0.5])}, None).row
    assert row == {"labels": "a|c", "p(a)": 0.7, "p(b)": 0.2, "p(c)": 0.5}
    assert answers["class"].shape == (2, 3)
    assert not torch.allclose(answers["class"].sum(dim=1), torch.ones(2))
    assert method.record({"class": torch.zeros(3)}, None).row["labels"] == ""


def test_scores_are_those_of_scikit_learn():
    torch.manual_seed(3)
    labels = (torch.rand(60, 4) < torch.tensor([0.5, 0.2, 0.8, 0.0])).long()
    shares = (0.6 * torch.rand(60, 4) + 0.3 * labels).mul(20).round().div(20).double()
    found = {score.column: score for score in label_scores("row", shares, labels, 0.5)}
    some = labels[:, :3].numpy(), (shares[:, :3] >= 0.5).numpy()
    expected = metrics.average_precision_score(labels[:, :3].numpy(), shares[:, :3].numpy(), average="macro")
    assert found["mAP"].value == pytest.approx(expected, abs=1e-9)
    assert found["macro F1"].value == pytest.approx(metrics.f1_score(*some, average="macro"), abs=1e-9)
    every = metrics.f1_score(labels.numpy(), (shares >= 0.5).numpy(), average="micro")
    assert found["micro F1"].value == pytest.approx(every, abs=1e-9)
    assert all(score.error is not None and 0 < score.error < 0.2 for score in found.values())
    assert float(f1(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool))) == 0


def test_what_is_wrong_is_told_by_its_surest_label():
    shares = torch.tensor([[0.9, 0.1, 0.6], [0.2, 0.9, 0.1], [0.9, 0.9, 0.9]])
    labels = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    rows = [(number, truth, said, round(share, 3)) for number, truth, said, share in made().wrong(shares, labels)]
    assert rows == [(1, "a, b", "not a", 0.8), (0, "a", "c", 0.6)]


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Pictures with a bright left, right or lower half, or several, and a run that was trained on their labels."""
    folder = tmp_path_factory.mktemp("many")
    root, rows, rng = folder / "photos", [], np.random.default_rng(0)
    root.mkdir()
    for number in range(40):
        halves = [name for bit, name in enumerate(("left", "right", "low")) if number >> bit & 1]
        pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
        for name in halves:
            part = {"left": np.s_[:4, :4], "right": np.s_[:4, 4:], "low": np.s_[4:]}[name]
            pixels[part] += 150
        Image.fromarray(pixels).save(root / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(halves)}")
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    small = ["--tokenizer.size", "8", "8", "--tokenizer.patch", "4", "4", "--train.workers", "0", "--quiet"]
    data = ["--data.root", str(root), "--data.crop", "1", "1", "--data.flip", "0"]
    out = ["--out", str(folder / "run"), "--train.batch-size", "8"]
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", *small, *data, "--train.steps", "2", *out]) == 0
    method = ["--use", "method=core:multi-label-classifier", "--method.labels-from", str(folder / "labels.csv")]
    train = ["--train.steps", "50", "--train.warmup-epochs", "0", "--train.base-lr", "1e-2", "--train.workers", "0"]
    assert main(["finetune", str(folder / "run"), *method, *train, "--quiet"]) == 0
    return folder


def test_it_learns_what_its_row_beside_does_not_know(trained):
    folder = trained / "run/finetune-multi-label-classifier"
    content = json.loads((folder / "scores.json").read_text())
    found = {(s["row"], s["column"]): s["value"] for s in content["scores"]}
    assert found["fine-tuned", "mAP"] > found["label shares", "mAP"] + 0.15
    assert {column for _, column in found} == {"mAP", "micro F1", "macro F1"}
    assert any("32 labelled training samples, 8 test samples, 3 labels" in note for note in content["notes"])
    rows = list(csv.DictReader((folder / "classes.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["left", "low", "right"]
    page = (folder / "report.html").read_text()
    assert "Scores of each class" in page
    assert "What is taken for what" in page
    assert "32 for training, 8 held out" in page
    assert "a fifth, from the probes" not in page


def test_new_files_get_labels_and_it_goes_on(trained, tmp_path, capsys):
    run = trained / "run/finetune-multi-label-classifier"
    assert (
        main(["predict", str(run), str(trained / "photos"), "--out", str(tmp_path), "--workers", "0", "--quiet"]) == 0
    )
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 40
    for row in rows:
        given = {name for name in ("left", "low", "right") if float(row[f"p({name})"]) >= 0.5}
        assert set(filter(None, row["labels"].split("|"))) == given
    capsys.readouterr()
    assert main(["evaluate", str(run), "--on", "knn"]) == 2
    assert "have several labels" in " ".join(capsys.readouterr().err.split())
    assert main(["evaluate", str(run)]) == 0
