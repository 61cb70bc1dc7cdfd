"""AMAE's two steps: spoiled pictures, frozen features, pseudo-labels, and where two modules disagree."""

import json
from pathlib import Path

import pytest
import torch
from mim_core import MimError, build_method, load_run
from mim_core.cli import main
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_image.amae import KINDS, spoil
from mim_image.anomaly_data import Anomalies
from PIL import Image


def command(*arguments):
    return main(list(map(str, arguments)), plugin="image")


# ---- spoiled pictures ------------------------------------------------------------------------------------------------


def test_a_piece_and_nothing_else_is_changed():
    image, key = torch.rand(64, 3, 30, 22), torch.arange(64)
    before = image.clone()
    found, truth = spoil(image, key)
    assert torch.equal(image, before)
    changed = (found - image).abs().amax(dim=1) > 0
    assert not (changed & ~_grown(truth)).any()
    assert bool(truth.flatten(1).any(dim=1).all())
    assert float(truth.float().mean()) < 0.2
    assert bool((changed & truth).flatten(1).any(dim=1).all())
    again, _ = spoil(image, key)
    assert torch.equal(found, again)
    alone, _ = spoil(image[5:6], key[5:6])
    assert torch.equal(alone, found[5:6])
    other, _ = spoil(image, key + 100)
    assert not torch.equal(found, other)


def _grown(truth):
    """Fading edges lie around what is called spoiled."""
    return torch.nn.functional.max_pool2d(truth.float()[:, None], 9, 1, 4)[:, 0] > 0


@pytest.mark.parametrize("size", [(2, 2), (2, 40), (7, 7)])
def test_small_pictures(size):
    found, truth = spoil(torch.rand(40, 1, *size), torch.arange(40))
    assert found.shape == (40, 1, *size)
    assert bool(truth.flatten(1).any(dim=1).float().mean() > 0.5)


def test_all_kinds_are_drawn():
    from mim_core import uniform

    drawn = {KINDS[int(u * len(KINDS))] for u in uniform(torch.arange(64), "amae.spoil", 8)[:, 0].tolist()}
    assert drawn == set(KINDS)


# ---- unlabelled pictures ---------------------------------------------------------------------------------------------


def source(**options):
    return Anomalies(Anomalies.Config(root=Path("sample"), normal="bag", **options), {"image": (1, 28, 28)})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_share_of_the_unlabelled_is_abnormal(share):
    found = source(mix=share)
    known, unlabelled = found.found.train, found.found.unlabelled
    assert (len(known), len(known) + len(unlabelled)) == (495, len(found))
    assert unlabelled.labels.count(1) / len(unlabelled) == pytest.approx(share, abs=0.01)
    assert set(known.labels) == {0}
    flags = [int(found.read(i, 1)["unlabelled"]) for i in (0, 494, 495, len(found) - 1)]
    assert flags == [0, 0, 1, 1]
    assert len(found.labelled("train").labels) == 495
    plain = source().read(3, 1)
    assert "unlabelled" not in plain


def test_a_folder_of_unlabelled_pictures(tmp_path):
    for name in ("train/good/0", "train/good/1", "test/good/0", "test/bad/0"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), 50).save(tmp_path / "set" / f"{name}.png")
    (tmp_path / "other").mkdir()
    Image.new("L", (9, 9), 222).save(tmp_path / "other/x.png")

    def opened(**options):
        return Anomalies(Anomalies.Config(root=tmp_path / "set", **options), {"image": (1, 8, 8)})

    found = opened(unlabelled=tmp_path / "other")
    assert len(found) == 3
    assert int(found.read(2, 1)["image"].min()) == 222
    assert int(found.read(2, 1)["unlabelled"]) == 1
    with pytest.raises(MimError, match="holds no pictures"):
        opened(unlabelled=tmp_path / "gone")
    with pytest.raises(MimError, match="wants 1 abnormal pictures outside the test split, and there are 0"):
        opened(mix=0.5)
    with pytest.raises(MimError, match=r"mix must lie in \[0, 1\)"):
        opened(mix=1.0)
    with pytest.raises(MimError, match="not both"):
        opened(mix=0.5, unlabelled=tmp_path / "other")


@pytest.mark.parametrize("recipe", ["amae-1-tiny", "ssmctb-autoencoder-tiny"])
def test_methods_of_normal_pictures_refuse_unlabelled_ones(recipe, tmp_path, capsys):
    assert command("pretrain", recipe, "--twin", "--quiet", "--out", tmp_path / "x", "--data.mix", 0.5) == 2
    assert "takes every training picture for normal" in capsys.readouterr().err


# ---- the steps -------------------------------------------------------------------------------------------------------


def twin(recipe, **options):
    return build_method(load_recipe(f"image:{recipe}", installed(), twin=True)).train()


def test_the_encoder_is_frozen():
    method = twin("amae-1")
    sample = {"image": torch.randn(6, 1, 28, 28), "key": torch.arange(6)}
    method(method.prepare(sample)).loss.backward()
    assert {name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None} == {"classifier"}
    assert {name.partition(".")[0] for name, p in method.named_parameters() if p.requires_grad} == {"classifier"}
    assert not method.encoder.training


def test_pictures_go_to_the_module_that_they_are_taken_for():
    """A known picture is normal whatever the classifier says; unlabelled ones follow it."""
    method = twin("amae-2")
    sample = {"image": torch.randn(8, 1, 28, 28), "key": torch.arange(8), "unlabelled": torch.tensor([0, 1] * 4)}
    with torch.no_grad():
        chance = method.first.classifier(method.first.features(sample)).sigmoid()
    method.threshold = float(chance[1::2].median())
    abnormal = (chance > method.threshold) & sample["unlabelled"].bool()
    assert 0 < int(abnormal.sum()) < 4
    prepared = method.prepare(sample)
    weights = {name: each.weights["main"].sum(dim=1) for name, each in prepared.items()}
    torch.testing.assert_close(weights["abnormal"], abnormal.float() / 8)
    torch.testing.assert_close(weights["normal"], (~abnormal).float() / 8)
    outcome = method(prepared)
    whole = method.normal(method.normal.prepare({n: sample[n] for n in ("image", "key")}))
    torch.testing.assert_close(outcome.loss, whole.loss)  # both modules are still one


def test_modules_that_are_one_agree():
    method = twin("amae-2-tiny").eval()  # whose target are pixels as they are
    image = torch.randn(3, 1, 28, 28)
    assert not method.score_maps({"image": image}, 1).any()
    with torch.no_grad():
        method.abnormal.heads["main"].decoder.pred.bias += 0.5
    torch.testing.assert_close(method.score_maps({"image": image}, 2), torch.full((3, 28, 28), 0.25))


def test_errors_say_which_module_fails():
    """The normal module predicts 0.5 more than the abnormal one: where that is nearer to the picture, the score is
    negative."""
    method = twin("amae-2-tiny").eval()
    with torch.no_grad():
        for module, value in ((method.normal, 0.5), (method.abnormal, 0.0)):
            for parameter in module.heads["main"].decoder.pred.parameters():
                parameter.zero_()
            module.heads["main"].decoder.pred.bias.fill_(value)
    image = torch.stack([torch.full((1, 28, 28), value) for value in (0.5, 0.0, 0.25)])
    assert torch.allclose(method.score_maps({"image": image}, 1), torch.tensor(0.25))
    method.score = "errors"
    wanted = torch.tensor([-0.25, 0.25, 0.0])[:, None, None].expand(3, 28, 28)
    torch.testing.assert_close(method.score_maps({"image": image}, 2), wanted)


@pytest.fixture(scope="module")
def steps(tmp_path_factory, first_pictures):
    """A masked autoencoder and both steps, one command each."""
    root = tmp_path_factory.mktemp("amae")
    normal = ("--quiet", "--twin", "--train.steps", 4, "--data.root", first_pictures(300, 80))
    assert command("pretrain", "mae-vit-tiny", "--out", root / "mae", *normal) == 0
    own = ("--data.normal", 8, "--method.run", root / "mae", "--method.no-untrained")
    assert command("pretrain", "amae-1-tiny", "--out", root / "one", *normal, *own) == 0
    more = ("--method.classifier", root / "one", "--data.mix", 0.5)
    assert command("pretrain", "amae-2-tiny", "--out", root / "two", *normal, *own, *more) == 0
    return root


def test_the_weights_are_those_of_the_runs_before(steps):
    mae, one, two = (load_run(steps / name).method for name in ("mae", "one", "two"))
    for name, value in mae.encoder.state_dict().items():
        assert torch.equal(one.encoder.state_dict()[name], value), name
    for name, value in one.classifier.state_dict().items():
        assert torch.equal(two.first.classifier.state_dict()[name], value), name
    for name, value in one.encoder.state_dict().items():
        assert torch.equal(two.first.encoder.state_dict()[name], value), name
    start = mae.state_dict()["encoder.blocks.0.attn.qkv.weight"]
    assert not torch.equal(two.normal.state_dict()["encoder.blocks.0.attn.qkv.weight"], start)
    assert not torch.equal(two.abnormal.state_dict()["encoder.blocks.0.attn.qkv.weight"], start)


def test_both_steps_are_judged(steps):
    for name in ("one", "two"):
        assert command("evaluate", steps / name) == 0
        content = json.loads((steps / name / "scores.json").read_text())
        found = {(s["row"], s["column"]): s["value"] for s in content["scores"]}
        assert 0 < found["pre-trained encoder", "image AUROC, mean"] < 1
    assert found["untrained encoder", "image AUROC, mean"] == 0.5  # before it is adapted, both modules agree


def test_a_run_is_judged_where_the_others_are_gone(steps, tmp_path):
    sample = {"image": torch.randn(2, 1, 28, 28)}
    wanted = load_run(steps / "two").method.eval().score_maps(sample, 1)
    for name in ("mae", "one"):
        (steps / name).rename(tmp_path / name)
    try:
        alone = load_run(steps / "two")
        assert torch.equal(alone.method.eval().score_maps(sample, 1), wanted)
        assert len(alone.source().labelled("test").labels) == 80
    finally:
        for name in ("mae", "one"):
            (tmp_path / name).rename(steps / name)


@pytest.mark.parametrize(
    ("recipe", "more", "words"),
    [
        ("amae-1-tiny", (), "first step needs a masked autoencoder: --method.run FOLDER"),
        ("amae-2-tiny", ("--method.run", "mae"), "needs a masked autoencoder and the classifier"),
        ("amae-1-tiny", ("--method.run", "gone"), "--method.run gone: there is no such folder"),
        ("amae-1-tiny", ("--method.run", "mae", "--encoder.width", 48, "--encoder.heads", 4), "same tokenizer"),
        ("amae-2-tiny", ("--method.run", "one", "--method.classifier", "one"), "are not those of this run"),
    ],
)
def test_steps_without_the_ones_before_are_refused(steps, tmp_path, capsys, recipe, more, words):
    given = [steps / value if value in ("mae", "one") else value for value in more]
    code = command(
        "pretrain",
        recipe,
        "--twin",
        "--quiet",
        "--out",
        tmp_path / "x",
        "--method.no-untrained",
        "--data.mix",
        0.5,
        *given,
    )
    assert code == 2
    assert words in capsys.readouterr().err
