"""evaluate: which modalities features see, what is left out and why, and pictures of test items without classes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.errors import MimError
from mim_core.evaluation.features import chosen_inputs
from mim_core.evaluation.study import Study, run_usable
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.recipes.config import EvaluateConfig
from mim_core.recipes.resolve import load_recipe
from mim_multimodal.data import Aligned
from mim_multimodal.paired import Paired
from mim_multimodal.raw_vectors import side_by_side
from PIL import Image

SHAPES = {"rgb": (3, 32, 32), "depth": (1, 32, 32), "semseg": (8, 8)}


def write(root, classes=("a", "b")):
    """12 items for training and 6 for testing, of noise, in folders of classes or in none."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            stem = f"{classes[number % len(classes)]}/{number}" if classes else str(number)
            for name, values in (
                ("rgb", draws.integers(0, 256, (32, 32, 3))),
                ("depth", draws.integers(1, 256, (32, 32))),
                ("semseg", draws.integers(0, 4, (8, 8))),
            ):
                path = root / split / name / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps on items that have no classes of their own."""
    base = tmp_path_factory.mktemp("judged")
    root = write(base / "plain", classes=())
    out = ["--out", str(base / "run"), "--train.batch-size", "4", "--train.lr-batch", "4", "--train.epochs", "0.7"]
    arguments = ["multimae-vit-tiny", "--twin", "--quiet", "--data.root", str(root), "--train.warmup-epochs", "0"]
    more = ["--data.missing", "mask", "--evaluate.few-labels"]
    assert main(["pretrain", *arguments, *out, *more], "multimodal") == 0
    return base / "run"


def judged(run, root, capsys, *more):
    code = main(["evaluate", str(run), "--data-root", str(root), *more], "multimodal")
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


def test_the_table_says_which_modalities_features_see(trained, tmp_path, capsys):
    root = write(tmp_path / "classes")
    kept = set((trained / "features").glob("*"))  # by other tests, in whatever order they run
    code, said = judged(trained, root, capsys, "--on", "knn")
    assert code == 0
    assert "Features of whole samples are of: rgb, depth, semseg. Others: --evaluate.inputs rgb" in said
    before = json.loads((trained / "scores-classes.json").read_text())["scores"]
    code, said = judged(trained, root, capsys, "--on", "knn,multimodal:depth", "--evaluate.inputs", "rgb", "semseg")
    assert code == 0
    assert "Features of whole samples are of: rgb, semseg." in said
    scores = json.loads((trained / "scores-classes.json").read_text())["scores"]
    assert {score["column"] for score in scores} == {"k-NN", "RMSE, rgb + semseg", "delta 1, rgb + semseg"}
    files = {path for path in (trained / "features").glob("step-*.safetensors") if path not in kept}
    assert len(files) == 2, "features of other inputs are others"
    assert before
    code, said = judged(trained, root, capsys, "--on", "knn", "--evaluate.inputs", "rbg")
    assert code == 2
    assert "Unknown modality in --evaluate.inputs 'rbg'. Did you mean 'rgb'?" in said


def test_another_size_is_that_of_all_tokenizers(trained, tmp_path, capsys):
    root = write(tmp_path / "classes")
    code, said = judged(trained, root, capsys, "--on", "knn", "--size", "64", "64")
    assert code == 0
    assert "Inputs of 64 x 64; the encoder was trained at 32 x 32" in said


def test_what_cannot_be_judged_is_left_out_with_a_note(trained, tmp_path, capsys):
    root = write(tmp_path / "plain", classes=())
    code, said = judged(trained, root, capsys, "--on", "knn,linear,multimodal:depth")
    assert code == 0
    assert "Left out: core:knn, core:linear." in said
    assert "has no classes of items to evaluate with" in said
    assert "RMSE, rgb" in said
    code, said = judged(trained, root, capsys, "--on", "knn,linear")
    assert code == 2
    assert "core:knn, core:linear:" in said


def test_a_missing_modality_leaves_the_other_probe(trained, tmp_path, capsys):
    root = write(tmp_path / "plain", classes=())
    shutil.rmtree(root / "test" / "depth")
    (root / "test" / "semseg" / "1.png").unlink()
    code, said = judged(trained, root, capsys, "--on", "multimodal:depth,multimodal:segmentation")
    assert code == 0
    assert "Left out: multimodal:depth. evaluation depth: the test split has no depth_raw" in said
    assert "mIoU, rgb" in said
    assert "rgb + depth" not in said
    assert "Segmentation: 5 test items. No test item has depth. 1 of 6 test items lack a file of" in said


def test_errors_of_all_are_one_error():
    study = Study(EvaluateConfig(on=("multimodal:depth", "multimodal:segmentation")), (torch.zeros(0),) * 2, (), {})
    with pytest.raises(MimError, match=r"(?s)multimodal:depth: .*\nmultimodal:segmentation: "):
        run_usable(study, installed())


def test_samples_without_any_of_the_inputs_are_left_out():
    sample = {"rgb": torch.zeros(3, 3, 2, 2), "depth": torch.arange(3.0), "key": torch.arange(3)}
    sample |= {"rgb.present": torch.tensor([True, False, True]), "depth.present": torch.tensor([True, True, False])}
    shapes = {"rgb": (3, 2, 2), "depth": ()}
    kept, numbers = chosen_inputs(sample, torch.arange(3), shapes, ())
    assert numbers.tolist() == [0, 1, 2]
    assert set(kept) == set(sample)
    kept, numbers = chosen_inputs(sample, torch.arange(3), shapes, ("depth",))
    assert numbers.tolist() == [0, 1]
    assert set(kept) == {"depth", "depth.present", "key"}
    assert kept["depth"].tolist() == [0, 1]


def test_the_bundled_clips_say_that_they_have_no_classes():
    pytest.importorskip("mim_video")
    source = Paired(Paired.Config(root=Path("sample")), {"video": (3, 4, 16, 16), "depth": (1, 4, 16, 16)})
    with pytest.raises(MimError, match=r"bundled clips have no classes.*share no class.*k-NN and linear"):
        source.labelled("test")
    assert source.plan()["data"].startswith("the bundled sample (Freedoom, BSD licence): 60 items with video, depth")
    assert not any("site-packages" in text or "/sample" in text for text in source.plan().values())
    assert load_recipe("multimodal:video-depth-vit-tiny", installed()).evaluate.on == ("knn", "linear")


def test_the_raw_row_is_of_the_inputs(tmp_path):
    source = Aligned(Aligned.Config(root=write(tmp_path / "data")), SHAPES)
    sample = source.finish({name: value[None] for name, value in source.read(0, 0).items()})
    rgb, depth, ids = 3 * 32 * 32, 32 * 32, 255 * 8 * 8  # as many classes as there are ids: none are named
    assert source.raw(sample).shape == (1, rgb + depth + ids)
    assert source.raw({"depth": sample["depth"]}).shape == (1, depth)
    alone = [source.raw({name: sample[name]}) for name in SHAPES]
    assert torch.equal(torch.cat(alone, dim=1), source.raw(sample))
    assert source.raw(sample).min() >= 0
    assert source.raw(sample).max() <= 1.001


def test_raw_classes_are_shares_and_raw_captions_counts():
    ids = torch.tensor([[[0, 2], [255, 1]]]).repeat_interleave(8, 1).repeat_interleave(8, 2)  # 16 x 16, 8 x 8 cells
    shares = side_by_side({"semseg": ids}, 3).reshape(3, 8, 8)
    assert shares.sum(dim=0)[:4].eq(1).all()
    assert shares.sum(dim=0)[4:, :4].eq(0).all(), "no class"
    assert shares[2, :4, 4:].eq(1).all()
    counts = side_by_side({"caption": torch.tensor([[7, 5, 7, 1024 + 5, 0, 0]])}, 3)[0]
    assert {i: int(counts[i]) for i in counts.nonzero().flatten().tolist()} == {5: 2, 7: 2}
    picture = {"rgb": torch.rand(1, 3, 64, 96), "depth": torch.randn(1, 1, 64, 96)}
    assert side_by_side(picture, 3).shape == (1, 4 * 32 * 32)


def test_the_raw_view_is_told_of():
    pytest.importorskip("mim_pointcloud")
    run = load_recipe("multimodal:points-depth-vit-tiny", installed(), twin=True)
    source = make_source(run, build_method(run))
    assert "45 histogram features of a cloud" in source.labelled("test").note
    assert source.labelled("test").note.endswith("Of the view, the raw input is its pixels.")
