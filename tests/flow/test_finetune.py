"""Full fine-tuning on labels: the same loop, another method."""

import json
import tomllib
from dataclasses import replace

import pytest
import torch
from mim_core.cli import main
from mim_core.data.labelled import LabelledSource
from mim_core.data.source import DataSource, Labelled
from mim_core.errors import BadSample, MimError
from mim_core.host.loading import installed
from mim_core.methods.assembly import Parts
from mim_core.methods.build import build_method, make_source, open_source
from mim_core.methods.classifier import Classifier, accuracies
from mim_core.methods.method import Outcome
from mim_core.recipes.resolve import load_recipe, swap
from mim_core.runs import checkpoint
from mim_core.runs.load import load_run
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import Dataset

SHORT = ["--train.workers", "0", "--train.log-every", "1", "--train.batch-size", "16", "--quiet"]
BOTH = ("ddp", "fsdp2")
TEN_STEPS = [*SHORT, "--train.epochs", "0.16", "--train.warmup-epochs", "0.02"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, first_pictures):
    """A run that was pre-trained for a few steps on the first of the bundled pictures."""
    folder = tmp_path_factory.mktemp("finetune") / "run"
    data = ["--data.root", str(first_pictures(1000, 200)), "--train.steps", "20"]
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", "--quiet", *data, "--out", str(folder)]) == 0
    return folder


def finetune(run, *options):
    return main(["finetune", str(run), *map(str, options)])


def column(folder, name="loss"):
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    path = checkpoint.newest(folder)
    assert path is not None
    return {**load_file(path / "weights.safetensors"), **load_file(path / "optimizer.safetensors")}


def scores(folder):
    return {(s["row"], s["column"]): s["value"] for s in json.loads((folder / "scores.json").read_text())["scores"]}


@pytest.fixture(scope="module")
def trained(pretrained):
    """That run fine-tuned, and the same from scratch, for a third of an epoch."""
    some = [*SHORT, "--train.epochs", "3", "--train.warmup-epochs", "0.3", "--train.base-lr", "1e-3"]
    assert finetune(pretrained, *some) == 0
    assert finetune(pretrained, "--scratch", *some) == 0
    return pretrained


def classifier(**options):
    """The twin's encoder as a classifier of ten classes."""
    registry = installed()
    run = swap(load_recipe("image:mae-vit-tiny", registry, twin=True), "method", "core:classifier", registry)
    part = run.parts["method"]
    filled = replace(part, options=replace(part.options, **{"classes": 10, **options}))
    return replace(run, parts={**run.parts, "method": filled})


# ---- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("pool", ["mean", "max", "prefix", "mean-max", "prefix-max"])
def test_the_loss_is_the_cross_entropy_of_the_pooled_tokens(pool, head):
    method = build_method(classifier(pool=pool, head=head, label_smoothing=0.1)).eval()
    sample = {"image": torch.randn(4, 1, 28, 28), "label": torch.tensor([0, 3, 9, 3])}
    outcome = method(method.prepare(sample))
    features = method.encode({"image": sample["image"]})
    kinds = {"mean": features.pooled, "max": features.tokens.amax(dim=1), "prefix": features.prefix[:, 0]}
    expected = method.head(torch.cat([kinds[kind] for kind in pool.split("-")], dim=1))
    torch.testing.assert_close(outcome.predictions["class"], expected)
    loss = F.cross_entropy(expected, sample["label"], label_smoothing=0.1)
    torch.testing.assert_close(outcome.loss, loss)
    assert list(outcome.parts) == ["class"]
    assert outcome.latent.shape == (4, 17, 32)


def test_every_weight_learns():
    method = build_method(classifier(pool="prefix-max", head="mlp"))
    method(method.prepare({"image": torch.randn(4, 1, 28, 28), "label": torch.tensor([0, 3, 9, 3])})).loss.backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_what_cannot_be_built_or_prepared():
    with pytest.raises(MimError, match="classes must be at least 2"):
        build_method(classifier(classes=0))
    run = classifier(pool="prefix")
    encoder = run.parts["encoder"]
    bare = replace(encoder, options=replace(encoder.options, class_token=False))
    with pytest.raises(MimError, match="needs an encoder with a class token"):
        build_method(replace(run, parts={**run.parts, "encoder": bare}))
    method = build_method(classifier())
    with pytest.raises(ValueError, match="no 'label' to learn from"):
        method.prepare({"image": torch.randn(2, 1, 28, 28)})
    with pytest.raises(ValueError, match="hides nothing"):
        method.prepare({"image": torch.randn(2, 1, 28, 28)}, torch.ones(2, 16, dtype=torch.bool))


def test_accuracies():
    found, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 3])
    overall, each = accuracies("row", found, labels)
    assert (overall.value, each.value) == (0.5, pytest.approx(1 / 3))


# ---- the data --------------------------------------------------------------------------------------------------------


class Plain(DataSource):
    """Four items with labels, and no reader of its own for them."""

    def __init__(self):
        super().__init__(None, {"image": (1, 2, 2)})

    def labelled(self, split):
        class Items(Dataset):
            def __getitem__(self, index):
                return {"image": torch.full((1, 2, 2), index)}

        return Labelled(split, torch.tensor([1, 0, 1, 0]), ("a", "b"), Items())


def test_a_source_without_a_reader_for_labels_says_that_nothing_is_augmented():
    source = LabelledSource(Plain())
    assert len(source) == 4
    assert source.read(2, 5)["label"] == 1
    assert source.read(2, 5)["image"].unique().tolist() == [2]
    assert source.name_of(2) == "2 (b)"
    assert source.plan()["augmentation"].startswith("none")
    bundled = make_source(classifier(), build_method(classifier()))
    assert "augmentation" not in bundled.plan()


class Sure(Classifier):
    """Says 0 where the picture's first value is below 2; its logits say how sure it is."""

    def forward(self, prepared):
        value = prepared.inputs.flatten(1)[:, 0]
        logits = torch.stack([2 - value, value - 2, *[value - 1000] * 8], dim=1)
        return Outcome(logits.sum(), {}, {"class": logits}, logits[:, None])


class Viewed(Plain):
    """Three samples of three views each; one view of the last cannot be read."""

    def labelled(self, split):
        class Items(Dataset):
            def __getitem__(self, index):
                if index == 8:
                    raise BadSample("8", "spoilt by a test")
                return {"image": torch.full((1, 28, 28), [0.0, 2.5, 2.5, 2.1, 2.1, 1.8, 0.0, 0.0, 0.0][index])}

        return Labelled(split, torch.tensor([0, 1, 1]), tuple("abcdefghij"), Items(), views=3)


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_a_sample_is_judged_by_the_mean_over_its_views(batch):
    method, notes = build_method(classifier()), []
    method.__class__ = Sure
    found = method.test(Viewed(), torch.device("cpu"), batch, notes)
    assert [s.value for s in found if s.row == "fine-tuned"] == [1.0, 1.0]
    assert any("1 test files cannot be used" in note for note in notes)


@pytest.mark.parametrize("recipe", ["image:mae-vit-tiny", "video:videomae-vit-tiny", "pointcloud:point-mae-vit-tiny"])
def test_labelled_items_are_augmented_by_their_key_alone(recipe):
    """As in pre-training: not as evaluation reads them."""
    run = load_recipe(recipe, installed(), twin=True)
    source = LabelledSource(open_source(run, Parts(run.parts).tokenizer()))
    split, name = source.labelled("train"), next(iter(source.shapes))
    number = len(split.labels) - 7
    one, same, other = source.read(number, 1), source.read(number, 1), source.read(number, 2)
    assert one[name].shape == split.items[number][name].shape
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert one["label"] == split.labels[number]
    assert one["label"].dtype == torch.int64
    assert not source.plan().get("augmentation", "").startswith("none:")


# ---- the command -----------------------------------------------------------------------------------------------------


def test_it_learns_and_is_compared(trained):
    folder = trained / "finetune"
    loss = column(folder)
    assert sum(loss[-20:]) < 0.9 * sum(loss[:20])
    found = scores(folder)
    assert found["fine-tuned", "accuracy"] > 3 * found["majority class", "accuracy"]
    assert found["fine-tuned", "mean class accuracy"] > 3 * found["majority class", "mean class accuracy"]
    assert {row for row, _ in scores(trained / "scratch")} == {"majority class", "trained from scratch", "fine-tuned"}
    assert "Fine-tuning" in (trained / "scratch/scores.json").read_text()


def test_evaluating_again_gives_the_same_and_the_table_of_both(trained, capsys):
    before = scores(trained / "finetune")
    assert main(["evaluate", str(trained / "finetune"), "--evaluate.batch-size", "100"]) == 0
    after = scores(trained / "finetune")
    assert {key: after[key] for key in before} == pytest.approx(before, abs=6e-4)
    assert ("trained from scratch", "accuracy") in after
    assert "fine-tuned" in capsys.readouterr().out


def test_the_report_has_curves_and_scores_and_no_pictures(trained):
    page = (trained / "finetune/report.html").read_text()
    assert "Test of core:classifier" in page
    assert "mean class accuracy" in page
    assert "<svg" in page
    assert "Reconstructions" not in page
    assert main(["show", str(trained / "finetune")]) == 0


def test_features_of_a_fine_tuned_run_can_be_judged(trained, capsys):
    before = (trained / "finetune/scores.json").read_text()
    assert main(["evaluate", str(trained / "finetune"), "--on", "knn"]) == 0
    assert "k-NN" in capsys.readouterr().out
    assert (trained / "finetune/probes.json").exists()
    assert (trained / "finetune/scores.json").read_text() == before


def test_the_weights_of_the_run_are_taken(pretrained, tmp_path):
    """With a learning rate of zero they stay what they were; from scratch they are what was drawn."""
    still = [*TEN_STEPS, "--train.base-lr", "0", "--train.min-lr", "0"]
    assert finetune(pretrained, *still, "--out", tmp_path / "taken") == 0
    assert finetune(pretrained, *still, "--scratch", "--out", tmp_path / "drawn") == 0
    theirs, taken, drawn = (load_run(folder, installed())[1].state_dict() for folder in _three(pretrained, tmp_path))
    shared = [name for name in theirs if name.startswith(("tokenizer.", "encoder."))]
    assert len(shared) > 20
    assert all(torch.equal(taken[name], theirs[name]) for name in shared)
    assert any(not torch.equal(drawn[name], theirs[name]) for name in shared)
    assert all(torch.equal(drawn[name], taken[name]) for name in taken if name.startswith("head."))
    run = load_run(tmp_path / "taken", installed())[0]
    assert run.parts["method"].options.init == checkpoint.newest(pretrained).resolve()


def _three(pretrained, tmp_path):
    return pretrained, tmp_path / "taken", tmp_path / "drawn"


def test_the_recipe_repeats_the_run(pretrained, tmp_path):
    assert finetune(pretrained, *TEN_STEPS, "--out", tmp_path / "one") == 0
    recipe = str(tmp_path / "one/recipe.toml")
    assert main(["pretrain", recipe, "--quiet", "--out", str(tmp_path / "two")]) == 0
    assert column(tmp_path / "two") == column(tmp_path / "one")
    one, two = (tomllib.loads((tmp_path / name / "recipe.toml").read_text()) for name in ("one", "two"))
    assert {table: two[table] for table in one} == one


def test_stopping_and_going_on_is_the_same_to_the_bit(pretrained, tmp_path):
    mlp = [*TEN_STEPS, "--method.head", "mlp", "--train.checkpoint-every", "5"]
    assert finetune(pretrained, *mlp, "--out", tmp_path / "whole") == 0
    parts = tmp_path / "parts"
    assert finetune(pretrained, *mlp, "--out", parts, "--train.max-hours", "0") == 3
    stopped = checkpoint.newest(parts)
    assert stopped is not None
    assert 0 < int(stopped.name[-8:]) < 10
    assert finetune(pretrained, *mlp, "--out", parts) == 0
    assert column(parts) == column(tmp_path / "whole")
    a, b = weights(tmp_path / "whole"), weights(parts)
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_five_steps_stop_five_steps_equals_ten(pretrained, tmp_path):
    """The checkpoint of step 5 alone is kept of a whole run; it goes on from there."""
    mlp = [*TEN_STEPS, "--method.head", "mlp", "--train.checkpoint-every", "5"]
    assert finetune(pretrained, *mlp, "--out", tmp_path / "run") == 0
    whole, loss = weights(tmp_path / "run"), column(tmp_path / "run")
    last = checkpoint.newest(tmp_path / "run")
    assert last.name == "step-00000010"
    last.rename(tmp_path / "last")
    assert finetune(pretrained, *mlp, "--out", tmp_path / "run") == 0
    again = weights(tmp_path / "run")
    assert column(tmp_path / "run") == loss
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_two_ranks_equal_one(loaded_python, pretrained, tmp_path):
    """With batch normalisation over the ranks; dropout draws by micro-batch, so it is left out."""
    mlp = [*TEN_STEPS, "--method.head", "mlp", "--method.dropout", "0", "--method.pool", "prefix-max"]
    assert finetune(pretrained, *mlp, "--out", tmp_path / "one") == 0
    runs = [["finetune", str(pretrained), *mlp, "--out", str(tmp_path / s), "--train.strategy", s] for s in BOTH]
    script = tmp_path / "both.py"
    script.write_text(f"from mim_core.cli import main\nraise SystemExit(max([main(run) for run in {runs!r}]))\n")
    for done in loaded_python.ranks([script], timeout=300):
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for strategy in BOTH:
        assert len(column(tmp_path / strategy)) == 10
        assert column(tmp_path / strategy) == pytest.approx(column(tmp_path / "one"), rel=2e-5)
        assert scores(tmp_path / strategy).keys() == scores(tmp_path / "one").keys()


def test_the_plan(pretrained, tmp_path, capsys):
    assert finetune(pretrained, "--dry-run", "--out", tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Weights of tokenizer and encoder: {checkpoint.newest(pretrained)}" in said
    assert "core:classifier" in said
    assert "1,000 labelled training samples of 10 classes" in said
    assert "3,125 steps, each of 32 samples; 100 epochs" in said
    assert not (tmp_path / "run").exists()


def test_a_class_token_that_only_the_new_encoder_has_is_named(tmp_path, capsys):
    bare = ["pretrain", "image:mae-vit-tiny", "--twin", "--quiet", "--encoder.no-class-token"]
    assert main([*bare, "--out", str(tmp_path / "run")]) == 0
    options = ["--encoder.class-token", "--method.pool", "prefix", "--dry-run"]
    assert finetune(tmp_path / "run", *options) == 0
    assert "trained from its drawn values: encoder.cls_token" in " ".join(capsys.readouterr().out.split())


# ---- mistakes --------------------------------------------------------------------------------------------------------


def refused(capsys, run, *options):
    capsys.readouterr()
    assert finetune(run, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return " ".join(err.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--encoder.width", "64"], "is (32, 1, 7, 7) there and (64, 1, 7, 7) here"),
        (["--encoder.depth", "3"], "encoder.blocks.2.norm1.weight is not there"),
        (["--encoder.depth", "1"], "encoder.blocks.1.norm1.weight is not wanted here"),
        (["--method.classes", "7"], "The method is for 7 classes"),
        (["--method.init", "elsewhere"], "leave --method.init out"),
        (["--use", "method=core:masked-autoencoder"], "does not learn from labels"),
    ],
)
def test_what_does_not_fit_is_refused(pretrained, tmp_path, capsys, options, said):
    assert said in refused(capsys, pretrained, *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_pretrained_run_is_refused(trained, tmp_path, capsys):
    assert "holds no complete checkpoint" in refused(capsys, tmp_path)
    assert "was itself trained on labels" in refused(capsys, trained / "finetune")


def test_data_without_labels_is_refused(pretrained, tmp_path, capsys):
    for number in range(4):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("L", (28, 28), number).save(tmp_path / f"flat/{number}.png")
    assert "has no classes" in refused(capsys, pretrained, "--data.root", tmp_path / "flat", "--out", tmp_path / "run")


def test_unreadable_test_files_are_left_out(trained, tmp_path):
    """And counted in the notes."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("L", (28, 28), 60 * number).save(folder / f"{number}.png")
    (tmp_path / "data/test/b/3.png").write_text("no picture")
    options = [*SHORT, "--data.root", tmp_path / "data", "--train.epochs", "8", "--train.warmup-epochs", "1"]
    assert finetune(trained, *options, "--train.batch-size", "4", "--out", tmp_path / "run") == 0
    notes = json.loads((tmp_path / "run/scores.json").read_text())["notes"]
    assert any("1 test files cannot be used" in note for note in notes)
    assert any("8 labelled training samples, 7 test samples, 2 classes" in note for note in notes)
