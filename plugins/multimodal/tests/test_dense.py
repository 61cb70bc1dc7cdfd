"""Dense probes: tokens that are the answer, tokens that say nothing, scores against scikit-learn, and what is
refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.data.source import DataSource
from mim_core.errors import MimError
from mim_core.evaluation.study import Study
from mim_core.methods.method import Features, Method
from mim_core.parts.tokenizer import JoinedTokenizer, PatchTokenizer
from mim_core.recipes.config import EvaluateConfig
from mim_core.scores import MAJORITY, PRETRAINED, RAW, UNTRAINED, Score, verdict
from mim_multimodal import dense
from mim_multimodal.evaluations import classify, commonest, depth, depth_errors, mean_iou, regress, segmentation
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch.utils.data import Subset

CLASSES, SIZE, PATCH, COUNT = 3, 16, 8, {"train": 40, "test": 20}


def maps(split):
    """Class ids [n, 4, 4] and depths [n, 1, 16, 16] that nothing but themselves can tell."""
    torch.manual_seed(COUNT[split])
    ids = torch.randint(0, CLASSES, (COUNT[split], 4, 4))
    ids[:, 0, 0] = 255
    return ids, torch.randint(1, 256, (COUNT[split], 1, SIZE, SIZE)).float()


class Source(DataSource):
    """Aligned pictures in memory; the colours are noise."""

    def __init__(self, lacking=(), spoilt=()):
        self.shapes = {"rgb": (3, SIZE, SIZE), "depth": (1, SIZE, SIZE)}
        self.class_count, self.lacking, self.spoilt = CLASSES, lacking, spoilt

    def dense(self, split):
        ids, depths = maps(split)
        torch.manual_seed(7 * COUNT[split])
        rows = []
        for number in range(COUNT[split]):
            item = {"rgb": torch.randn(3, SIZE, SIZE), "depth": depths[number] / 100, "depth_raw": depths[number]}
            item["semseg"] = ids[number].to(torch.uint8)
            rows.append({name: value for name, value in item.items() if name not in self.lacking})
        return Subset(rows, range(len(rows)))

    def finish(self, sample):
        return {**sample, **({"semseg": sample["semseg"].long()} if "semseg" in sample else {})}


class Fake(Method):
    """A method whose tokens are what a function makes of the sample's numbers (found again by the colours)."""

    def __init__(self, make, names=("rgb", "depth")):
        super().__init__()
        channels = {"rgb": 3, "depth": 1}
        parts = {
            name: PatchTokenizer(
                PatchTokenizer.Config(modality=name, size=(SIZE, SIZE), patch=(PATCH, PATCH), channels=channels[name]),
                4,
            )
            for name in names
        }
        self.tokenizer, self.make, self.seen = JoinedTokenizer(parts), make, []

    def encode(self, sample):
        assert set(sample) <= {"rgb", "depth"}
        assert not self.training
        self.seen.append(tuple(sample))
        tokens = torch.cat([self.make(name, values) for name, values in sample.items()], dim=1)
        return Features(tokens, tokens.mean(dim=1), tokens[:, :0])


def answers(of):
    """Tokens that are the answer, of whichever split holds these colours."""

    def make(name, values):
        found = []
        for value in values:
            split, number = where(name, value)
            ids, depths = maps(split)
            if of == "semseg":
                one = torch.nn.functional.one_hot(ids[number].clamp(max=CLASSES), CLASSES + 1).float()
                found.append(torch.cat([dense.cut(one[None, ..., c], (2, 2))[0] for c in range(CLASSES + 1)], dim=1))
            else:
                found.append(dense.cut(depths[number], (2, 2))[0] * 3 + 5)
        return torch.stack(found)

    return make


def where(name, value):
    for split in COUNT:
        for number, item in enumerate(Source().dense(split)):
            if torch.equal(item[name], value):
                return split, number
    raise AssertionError


def noise(name, values):
    torch.manual_seed(3)
    return torch.randn(len(values), 4, 6)


def study(make, source=None, **config):
    methods = {UNTRAINED: lambda: Fake(noise), PRETRAINED: lambda: Fake(make)}
    config = EvaluateConfig(batch_size=64, **config)
    return Study(config, (torch.zeros(0), torch.zeros(0)), (), {}, source=source or Source(), methods=methods)


def by_cell(scores):
    return {(score.row, score.column): score.value for score in scores}


@pytest.fixture(scope="module")
def segmented():
    return by_cell(segmentation(study(answers("semseg"), l2=1e-3)))


@pytest.fixture(scope="module")
def deep():
    return by_cell(depth(study(answers("depth"), l2=1e-6)))


def test_tokens_that_are_the_classes_score_one(segmented):
    for inputs in ("rgb", "depth", "rgb + depth"):
        assert segmented[PRETRAINED, f"mIoU, {inputs}"] == pytest.approx(1.0)
        assert segmented[PRETRAINED, f"pixels, {inputs}"] == pytest.approx(1.0)


@pytest.mark.parametrize("row", [RAW, UNTRAINED, MAJORITY])
def test_what_says_nothing_scores_near_chance(segmented, row):
    assert segmented[row, "pixels, rgb"] == pytest.approx(1 / CLASSES, abs=0.12)
    assert segmented[row, "mIoU, rgb"] < 0.35


def test_tokens_that_are_the_depth_have_no_error(deep):
    assert {column for _, column in deep} == {"RMSE, rgb", "delta 1, rgb"}  # depth itself is no input
    assert deep[PRETRAINED, "RMSE, rgb"] == pytest.approx(0.0, abs=1e-4)
    assert deep[PRETRAINED, "delta 1, rgb"] == pytest.approx(1.0)
    assert deep[MAJORITY, "RMSE, rgb"] == pytest.approx(0.29, abs=0.03)  # of uniform draws: 1 / sqrt(12)
    assert deep[UNTRAINED, "RMSE, rgb"] > 0.25
    assert deep[RAW, "delta 1, rgb"] < 0.5


def test_scores_are_deterministic(deep):
    assert by_cell(depth(study(answers("depth"), l2=1e-6))) == deep


def test_ids_that_are_no_class_do_not_count():
    right = torch.tensor([0, 0, 1, 255, 255])
    assert mean_iou(torch.tensor([0, 1, 1, 0, 1]), right, 2) == (pytest.approx((1 / 2 + 1 / 2) / 2), 2 / 3)


def test_mean_iou_by_hand():
    """Class 2 is only said, never there: it lowers the others and is no class of the mean."""
    right, found = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 2, 1, 0])
    iou, pixels = mean_iou(found, right, 3)
    assert iou == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert pytest.approx(3 / 5) == pixels


def test_classification_is_scikit_learns():
    torch.manual_seed(1)
    x, labels, t = 5 * torch.randn(200, 6) + 2, torch.randint(0, 3, (200, 2)), torch.randn(80, 6) * 5 + 2
    labels[:, 0] = (x[:, 0] > 2).long() + (x[:, 1] > 4)
    labels[::7, 1] = 255
    found = classify(x, labels, t, 3, 0.5)
    scaler = StandardScaler().fit(x.numpy())
    for place in range(2):
        seen = (labels[:, place] != 255).numpy()
        model = LogisticRegression(C=2.0, max_iter=2000, tol=1e-8)
        model.fit(scaler.transform(x.numpy())[seen], labels[:, place].numpy()[seen])
        assert (model.predict(scaler.transform(t.numpy())) == found[:, place].numpy()).mean() > 0.98


def test_regression_is_scikit_learns():
    torch.manual_seed(2)
    x, values, t = 3 * torch.randn(100, 6) - 1, torch.rand(100, 4).double(), torch.randn(30, 6)
    values[::9, 2] = torch.nan
    kept = ~values.isnan().any(dim=1)
    scaler = StandardScaler().fit(x[kept].numpy())
    model = Ridge(alpha=2.0).fit(scaler.transform(x[kept].numpy()), values[kept].numpy())
    expected = model.predict(scaler.transform(t.numpy()))
    np.testing.assert_allclose(regress(x, values, t, 2.0).numpy(), expected, atol=1e-5)


def test_features_that_are_equal_or_constant_have_a_solution():
    x = torch.randn(20, 1).expand(-1, 3).clone()
    x[:, 2] = 4.0
    assert regress(x, x[:, :1].double(), x, 0.0).sub(x[:, :1]).abs().max() < 1e-4


def test_depth_errors_by_hand():
    found, right = torch.tensor([0.5, 0.39, -1.0, 0.9]), torch.tensor([0.5, 0.5, 0.5, torch.nan])
    error, near = depth_errors(found, right)
    assert error == pytest.approx(np.sqrt((0.11**2 + (0.5 - 1 / 255) ** 2) / 3), rel=1e-5)
    assert near == pytest.approx(1 / 3)


def test_pixels_in_units():
    units = dense.cut(torch.arange(16).reshape(1, 4, 4), (2, 2))
    assert units[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    with pytest.raises(MimError, match="4 x 4 do not fit units on a grid of 3 x 3"):
        dense.cut(torch.zeros(1, 4, 4), (3, 3))


def test_commonest_class():
    ids = torch.tensor([[[0, 255]], [[1, 255]], [[1, 255]]])
    assert commonest(ids, 2).tolist() == [[1, 1]]


def test_a_joined_encoder_is_asked_for_each_choice_of_inputs():
    method = Fake(noise)
    asked = study(noise)
    asked.methods = {PRETRAINED: lambda: method}
    segmentation(asked)
    assert set(method.seen) == {("rgb",), ("depth",), ("rgb", "depth")}


def test_many_items_are_thinned_out_and_said(monkeypatch):
    monkeypatch.setattr(dense, "ITEMS", 10)
    asked = study(noise)
    segmentation(asked)
    assert "Segmentation: 10 train items of 40, evenly spaced." in asked.notes


@pytest.mark.parametrize(
    ("evaluation", "change", "message"),
    [
        (segmentation, {"source": None}, "needs a run's encoder and data"),
        (segmentation, {"source": SimpleNamespace(shapes={})}, "as multimodal:aligned reads them"),
        (segmentation, {"source": Source(lacking=("semseg",))}, "has no semseg; it has: rgb, depth, depth_raw"),
        (depth, {"source": Source(lacking=("depth_raw",))}, "has no depth_raw"),
        (depth, {"methods": {PRETRAINED: lambda: Fake(noise, ("depth",))}}, "pictures other than depth; it has: depth"),
        (
            depth,
            {"methods": {PRETRAINED: lambda: Fake(lambda n, v: v.new_full((len(v), 4, 2), torch.nan))}},
            "not finite",
        ),
    ],
)
def test_what_is_refused(evaluation, change, message):
    asked = study(noise)
    for name, value in change.items():
        setattr(asked, name, value)
    with pytest.raises(MimError, match=message):
        evaluation(asked)


@pytest.fixture
def unlabelled(tmp_path):
    """Aligned pictures without classes of their own."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for number in range(count):
            pictures = {"rgb": (32, 32, 3), "depth": (32, 32), "semseg": (8, 8)}
            for name, shape in pictures.items():
                high = 4 if name == "semseg" else 256
                path = tmp_path / "files" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, high, shape, np.uint8)).save(path)
    return tmp_path / "files"


def test_a_run_without_labels_is_judged_by_what_needs_none(unlabelled, tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["--train.epochs", "1", "--train.warmup-epochs", "0", "--train.batch-size", "8", "--data.root"]
    assert main(["pretrain", "multimodal:rgb-vit-tiny", "--twin", *options, str(unlabelled), "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--on", "multimodal:segmentation,multimodal:depth"]) == 0
    lines = capsys.readouterr().out
    assert "Lower is better in: RMSE, rgb." in lines
    found = json.loads((folder / "scores.json").read_text())["scores"]
    assert {score["row"] for score in found} == {MAJORITY, RAW, UNTRAINED, PRETRAINED}
    assert {score["column"] for score in found if score["lower_is_better"]} == {"RMSE, rgb"}
    assert all(0 <= score["value"] <= 1 for score in found)
    assert not (folder / "features").exists()  # nothing was made of whole samples
    assert main(["evaluate", str(folder), "--on", "knn"]) != 0
    assert "has no classes of items" in capsys.readouterr().err


def test_a_lower_error_is_the_better_one():
    """And columns of errors are named as such."""
    scores = [Score(row, "RMSE", value, lower_is_better=True) for row, value in ((PRETRAINED, 0.1), (RAW, 0.2))]
    scores.append(Score(UNTRAINED, "RMSE", 0.05, lower_is_better=True))
    lines = verdict(scores)
    assert lines[0] == "Lower is better in: RMSE."
    assert lines[1] == "The pre-trained encoder does not beat the untrained encoder in: RMSE."
    assert lines[2] == "The pre-trained encoder beats the raw input in every column."
