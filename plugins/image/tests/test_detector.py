"""The detector: its two halves, its answers, AP beside another computation of it, and the commands that people use."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from mim_core import MimError, SimplePyramid, build_method
from mim_core.cli import main
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.standard_errors import grouped_error
from mim_core.testing import MethodContract
from mim_image import detector as detector_module
from mim_image import scenes
from mim_image.boxes import NOTHING
from mim_image.data import SAMPLE
from mim_image.detection_scores import box_scores, coco_scores
from mim_image.detections import results
from mim_image.detector_heads import PyramidAnchors
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

pytestmark = pytest.mark.usefixtures("unchecked")
RECIPE = "image:vitdet-vit-base"


def detector(**options):
    run = load_recipe(RECIPE, installed(), twin=True, kind="finetunings")
    small = {"size": (32, 32), "patch": (8, 8)}
    parts = {
        **run.parts,
        "tokenizer": replace(run.parts["tokenizer"], options=replace(run.parts["tokenizer"].options, **small)),
        "method": replace(
            run.parts["method"], options=replace(run.parts["method"].options, **{"classes": 3, **options})
        ),
    }
    return build_method(replace(run, parts=parts), installed())


def batch(rows, seed=0, masks=True):
    """Pictures with one or two objects each."""
    torch.manual_seed(seed)
    start = torch.rand(rows, 2, 2) * 12
    boxes = torch.cat([start, start + 8 + torch.rand(rows, 2, 2) * 10], dim=-1)
    classes = torch.randint(0, 3, (rows, 2))
    classes[::2, 1] = NOTHING
    packed = torch.randint(0, 256, (rows, 2, 32, 4), dtype=torch.uint8)
    found = {"image": torch.randn(rows, 1, 32, 32), "boxes": boxes, "classes": classes, "key": torch.arange(rows)}
    return {**found, **({"masks": packed} if masks else {})}


class DetectorContract(MethodContract):
    rows, keyed, head = 4, False, ""

    def make_method(self):
        return detector(head=self.head)

    def make_sample(self, method, rows, seed=0):
        return batch(rows, seed, method.masks)

    def test_forward_compiles(self):
        """The half that has static shapes does: encoder and pyramid. Proposals follow from the weights."""
        method, _, prepared = self.case()
        wanted = self.run(method, prepared).loss
        method.compile(fullgraph=True, dynamic=False, backend="eager")
        found = self.run(method, prepared).loss
        torch._dynamo.reset()
        assert torch.allclose(found, wanted, rtol=1e-5)


class TestRetinaNet(DetectorContract):
    head = "retinanet"
    test_forward_compiles = test_loss_falls = test_resumes_to_the_bit = None  # as of mask-rcnn; learned by heart below


class TestMaskRcnn(DetectorContract):
    head = "mask-rcnn"

    def test_samples_are_coupled_only_if_said(self):
        """Losses are means over the regions of the batch, as torchvision's and detectron2's are: said in the
        docstring, and not a contrast of samples."""


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_anchors_lie_around_the_middle_of_every_place():
    anchors = PyramidAnchors([(8,), (16,)], [3.5, 7.0])
    pictures = type("Pictures", (), {"image_sizes": [(14, 14)] * 2})
    found = anchors(pictures, [torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)])
    assert len(found) == 2
    middle = (found[0][:, :2] + found[0][:, 2:]) / 2
    assert middle[::3][:4].tolist() == [[1.75, 1.75], [5.25, 1.75], [8.75, 1.75], [12.25, 1.75]]
    assert middle[48::3].tolist() == [[3.5, 3.5], [10.5, 3.5], [3.5, 10.5], [10.5, 10.5]]


def test_a_pyramid_without_its_finest_level():
    x = torch.randn(1, 16, 4, 4)
    assert list(SimplePyramid(16, 8, finest=3)(x)) == ["p3", "p4", "p5", "p6"]


def test_regions_are_cut_out_where_they_lie():
    method = detector(head="faster-rcnn", channels=1)
    ramp = {f"p{n}": torch.linspace(0, 1, side)[None, None, None].expand(1, 1, side, -1) for n, side in
            ((2, 16), (3, 8), (4, 4), (5, 2))}  # fmt: skip
    boxes = [torch.tensor([[0.0, 0, 8, 8], [24, 0, 32, 8], [0, 0, 32, 32]])]
    cut = method.head.roi_heads.box_roi_pool(ramp, boxes, [(32, 32)]).mean(dim=(1, 2, 3))
    assert cut[0] < 0.3 < cut[2] < 0.7 < cut[1]


@pytest.mark.parametrize("head", ["mask-rcnn", "retinanet"])
def test_one_picture_is_learned_by_heart(head):
    torch.manual_seed(0)
    method = detector(head=head, channels=24, least_score=0.2, regions=16, proposals=20)
    sample = {name: value[:2] for name, value in batch(2, masks=head == "mask-rcnn").items()}
    sample["image"] = torch.zeros(2, 1, 32, 32)
    sample["boxes"] = torch.tensor([[[4.0, 4, 20, 20], [0, 0, 1, 1]], [[12.0, 8, 28, 30], [0, 0, 1, 1]]])
    sample["classes"] = torch.tensor([[0, NOTHING], [2, NOTHING]])
    for row, (box, _) in enumerate(sample["boxes"].long().tolist()):
        sample["image"][row, 0, box[1] : box[3], box[0] : box[2]] = 1.0 + 2 * row
    if head == "mask-rcnn":
        masks = (sample["image"] > 0).expand(-1, 2, -1, -1).numpy()
        sample["masks"] = torch.from_numpy(np.packbits(masks, axis=-1))
    optimizer = torch.optim.AdamW(method.train().parameters(), lr=3e-3)
    for _ in range(40):
        method(method.prepare(sample)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = method.eval().predict({"image": sample["image"]})
    assert found["classes"][:, 0].tolist() == [0, 2]
    assert torch.allclose(found["boxes"][:, 0], sample["boxes"][:, 0], atol=4)
    if head == "mask-rcnn":
        row = results({name: value[0] for name, value in found.items()}, (5, 6, 7))[0]
        assert row["category_id"] == 5
        drawn, there = torch.from_numpy(mask.decode(row["segmentation"])).bool(), sample["image"][0, 0] > 0
        assert (drawn & there).sum() / (drawn | there).sum() > 0.6


def test_no_objects_at_all_is_learned_from_too():
    for head in ("mask-rcnn", "retinanet"):
        method = detector(head=head).train()
        sample = {**batch(2, masks=head == "mask-rcnn"), "classes": torch.full((2, 2), NOTHING)}
        loss = method(method.prepare(sample)).loss
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_what_is_missing_is_said():
    method = detector().train()
    with pytest.raises(ValueError, match="no boxes to learn from"):
        method.prepare({"image": torch.zeros(1, 1, 32, 32)})
    with pytest.raises(ValueError, match="no masks"):
        method.prepare(batch(2, masks=False))
    with pytest.raises(MimError, match="classes must be at least 1; finetune takes their number"):
        detector(classes=0)
    with pytest.raises(MimError, match="names are 1 and ids 0, for 3 classes"):
        detector(names=("cat",))


# ---- average precision -----------------------------------------------------------------------------------------------


def test_average_precision_is_that_of_another_computation():
    _, truth = scenes.compose(SAMPLE, "test", 30)
    truth, draw = truth.as_coco(), np.random.default_rng(0)
    truth["annotations"][3]["iscrowd"] = 1
    found = []
    for row in truth["annotations"] * 2:
        box = (np.array(row["bbox"]) + draw.normal(0, 2, 4)).clip(min=1).round(2).tolist()
        category = row["category_id"] if draw.random() < 0.7 else int(draw.integers(1, 11))
        found.append({"image_id": row["image_id"], "category_id": category, "bbox": box, "score": float(draw.random())})
    judged = box_scores(truth, found)
    own, theirs = judged.stats(), coco_scores(truth, found)
    assert 0.1 < own["AP"] < 0.9
    assert {name: pytest.approx(value, abs=1e-9) for name, value in theirs.stats.items()} == own
    assert judged.by_category() == pytest.approx(theirs.by_category)
    exact = [{**row, "score": 1.0} for row in truth["annotations"] if not row["iscrowd"]]
    assert coco_scores(truth, exact, "segm").stats["AP"] == pytest.approx(1.0)
    assert coco_scores(truth, []).stats["AP"] == 0.0


def test_standard_errors_leave_each_group_out_in_turn():
    _, truth = scenes.compose(SAMPLE, "test", 24)
    truth, draw = truth.as_coco(), np.random.default_rng(1)
    found = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "score": float(draw.random()),
         "bbox": (np.array(row["bbox"]) + draw.normal(0, 2, 4)).clip(min=1).tolist()}
        for row in truth["annotations"]
    ]  # fmt: skip
    ids = [image["id"] for image in truth["images"]]
    without = []
    for group in range(20):
        left = set(ids[group::20])
        rows = [[row for row in each if row["image_id"] not in left] for each in (truth["annotations"], found)]
        kept = {**truth, "annotations": rows[0], "images": [i for i in truth["images"] if i["id"] not in left]}
        without.append(box_scores(kept, rows[1]).stats()["AP50"])
    assert coco_scores(truth, found).errors["AP50"] == pytest.approx(grouped_error(without), rel=1e-6)


def test_without_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MimError, match=r'^Detection needs pycocotools: pip install "mim-core\[detection\]"\.$'):
        coco_scores({}, [])


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes as files: COCO's layout."""
    root = tmp_path_factory.mktemp("coco")
    for split, count in (("train", 12), ("val", 6)):
        images, found = scenes.compose(SAMPLE, "train" if split == "train" else "test", count)
        made = found.as_coco()
        for image in made["images"] if split == "val" else ():
            del image["width"], image["height"]
        for array, image in zip(images, made["images"], strict=True):
            image["file_name"] = f"{image['id']:04}.png"
            image["id"] += 1000
            path = root / split / image["file_name"]
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(path)
        for row in made["annotations"]:
            row["image_id"] += 1000
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(made))
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "run"
    start = ["pretrain", "image:mae-vit-base", "--twin", "--train.steps", "1", "--train.workers", "0", "--quiet"]
    size = ["--tokenizer.size", "32", "32", "--tokenizer.patch", "8", "8", "--data.mean", "0.3", "--data.std", "0.4"]
    assert main([*start, *size, "--train.device", "cpu", "--out", str(out)]) == 0
    return out


SMALL = ["--method.channels", "16", "--method.hidden", "16", "--method.convolutions", "1", "--method.regions", "16"]
SMALL += ["--method.proposals", "20", "--method.detections", "6", "--method.least-score", "0.0", "--quiet"]
SMALL += ["--train.steps", "2", "--train.batch-size", "4", "--train.workers", "0", "--train.warmup-epochs", "0"]


def finetune(run, folder, *more):
    chosen = ["finetune", str(run), "--use", "method=image:detector", "--data.root", str(folder), *SMALL]
    return main([*chosen, "--tokenizer.size", "48", "48", *more])


@pytest.fixture(scope="module")
def trained(pretrained, folder):
    assert finetune(pretrained, folder) == 0
    assert finetune(pretrained, folder, "--scratch") == 0
    return pretrained / "finetune-detector"


def test_a_run_is_fine_tuned_and_judged(trained, capsys):
    assert main(["evaluate", str(trained)]) == 0
    content = json.loads((trained / "scores.json").read_text())
    rows = {score["row"] for score in content["scores"]}
    assert rows == {"mean box", "untrained detector", "trained from scratch", "fine-tuned"}
    own = {score["column"] for score in content["scores"] if score["row"] == "fine-tuned"}
    assert own == {f"{start}{name}" for start in ("", "mask ") for name in ("AP", "AP50", "AP75")}
    classes = json.loads((trained / "classes.json").read_text())
    assert [row["class"] for row in classes][-1] == "ankle boot"
    assert {"objects", "AP", "mask AP"} < set(classes[0])
    assert "12 training pictures, 6 test pictures, 10 classes" in " ".join(content["notes"])
    recipe = (trained / "recipe.toml").read_text()
    assert 'use = "image:coco"' in recipe
    assert "0.3" in recipe  # the statistics that it was pre-trained with
    assert "ankle boot" in recipe


def test_answers_load_in_pycocotools_and_go_on(trained, folder, tmp_path, monkeypatch, capsys):
    new, out = tmp_path / "new", tmp_path / "out"
    new.mkdir()
    for name, size in (("b.png", (40, 90)), ("a.png", (64, 64)), ("c.png", (30, 20))):
        Image.new("L", size, 90).save(new / name)
    (new / "bad.png").write_bytes(b"no picture")
    ask = ["predict", str(trained), str(new), "--out", str(out), "--quiet", "--workers", "0"]
    monkeypatch.setattr("mim_core.commands.predict.CHUNK", 2)
    assert main(ask) == 0
    whole = COCO(str(out / "detections.json"))
    assert [image["file_name"] for image in whole.loadImgs(whole.getImgIds())] == ["a.png", "b.png", "c.png"]
    sizes = {image["id"]: (image["width"], image["height"]) for image in whole.dataset["images"]}
    assert sizes[2] == (40, 90)
    assert len(whole.dataset["annotations"]) > 0
    for row in whole.dataset["annotations"]:
        width, height = sizes[row["image_id"]]
        left, top, w, h = row["bbox"]
        assert min(left, top, w, h) >= 0
        assert left + w <= width + 0.02
        assert top + h <= height + 0.02
        assert whole.annToMask(row).shape == (height, width)
    assert whole.loadRes(json.loads((out / "results.json").read_text())).dataset["annotations"]
    with open(out / "predictions.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["a.png", "b.png", "c.png"]
    assert list(json.loads((out / "skipped.json").read_text())) == ["bad.png"]
    first = (out / "detections.json").read_bytes()
    calls, kept = iter(range(9)), detector_module.results

    def interrupted(*given):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return kept(*given)

    monkeypatch.setattr(detector_module, "results", interrupted)
    (out / "detections.json").unlink()
    assert main(ask) == 130
    assert (out / ".parts").exists()
    assert not (out / "detections.json").exists()
    monkeypatch.setattr(detector_module, "results", kept)
    assert main(ask) == 0
    assert (out / "detections.json").read_bytes() == first


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["export", "--to", "torch"], "error: A detector is no program"),
        (["export", "--to", "hf"], ""),
        (["evaluate", "--on", "knn"], "has boxes and no classes of whole pictures"),
    ],
)
def test_what_a_detector_is_not(trained, tmp_path, capsys, command, said):
    out = ["--out", str(tmp_path / "out.pt2")] if command[0] == "export" else []
    assert main([command[0], str(trained), *command[1:], *out]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_ids_of_a_json_that_is_named(trained, folder, tmp_path):
    truth = folder / "annotations/instances_val.json"
    ask = ["predict", str(trained), str(folder / "val"), "--out", str(tmp_path / "out"), "--quiet", "--workers", "0"]
    assert main([*ask, "--data.annotations", str(truth)]) == 0
    found = COCO(str(truth)).loadRes(str(tmp_path / "out/results.json"))
    assert set(found.getImgIds()) == set(range(1001, 1007))


def test_what_cannot_be_learned_from(pretrained, folder, tmp_path, capsys):
    assert main(["finetune", str(pretrained), "--use", "method=image:detector", *SMALL]) == 2
    assert "--data.root FOLDER" in " ".join(capsys.readouterr().err.split())
    assert finetune(pretrained, "sample", "--use", "data=image:images") == 2
    assert "--use data=image:coco --data.root FOLDER" in " ".join(capsys.readouterr().err.split())
    assert finetune(pretrained, folder, "--tokenizer.size", "8", "8", "--out", str(tmp_path / "a")) == 2
    assert "at least 2 x 2 of them" in " ".join(capsys.readouterr().err.split())


def test_a_run_resumes_and_other_data_are_judged_or_refused(trained, pretrained, folder, tmp_path, capsys):
    def own():
        return [
            score
            for score in json.loads((trained / "scores.json").read_text())["scores"]
            if score["row"] == "fine-tuned"
        ]

    before = own()
    assert finetune(pretrained, folder) == 0  # complete
    assert own() == before
    made = json.loads((folder / "annotations/instances_val.json").read_text())
    made["categories"][0]["name"] = "cape"
    other = tmp_path / "other"
    other.mkdir()
    (other / "instances.json").write_text(json.dumps(made))
    for image in made["images"]:
        (other / image["file_name"]).write_bytes((folder / "val" / image["file_name"]).read_bytes())
    assert main(["evaluate", str(trained), "--data-root", str(other)]) == 2
    assert "The method's categories are t-shirt" in " ".join(capsys.readouterr().err.split())
