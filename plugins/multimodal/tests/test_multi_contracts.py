"""Every part of the method keeps its contract; budgets and formulas are exact."""

import math
from dataclasses import replace

import pytest
import torch
from mim_core.errors import MimError
from mim_core.evaluation.feature_pictures import feature_pictures
from mim_core.evaluation.reconstruction import across, held_out_samples, reconstruct
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw, Mask
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MaskerContract, TargetContract, TokenizerContract, keys
from mim_core.training.loop import start
from mim_multimodal.masker import DirichletMasker, log_gamma_draws
from mim_multimodal.target import ClassMapTarget
from mim_multimodal.tokenizer import ClassMapTokenizer

THREE = Layout.join({name: Layout.on_grid(14, 14) for name in ("rgb", "depth", "semseg")})
MIXED = Layout.join({"points": Layout(count=10, positions=torch.rand(10, 3)), "depth": Layout.on_grid(4, 5)})


def maps(rows, size=(8, 12), classes=5, unknown=False):
    ids = torch.arange(rows * size[0] * size[1]).reshape(rows, *size) * 7 % classes
    if unknown:
        ids[:, ::3, ::2] = 255
    return {"semseg": ids, "key": keys(rows)}


class TestClassMap(TokenizerContract):
    part = "multimodal:class-map"
    options = {"size": (8, 12), "patch": (2, 3), "classes": 5, "embed_width": 6}

    def make_sample(self, tokenizer, rows):
        return maps(rows)

    def wrong_samples(self, tokenizer):
        yield {"semseg": torch.zeros(2, 8, 13, dtype=torch.int64)}, ["2 x 3", "8 x 13"]
        yield {"semseg": torch.zeros(2, 8, 12)}, ["float32"]


class TestClassMapTarget(TargetContract):
    part = "multimodal:class-map"
    inverse = False  # classes come back, as the test below shows
    lowest = None

    def make_tokenizer(self):
        return ClassMapTokenizer(ClassMapTokenizer.Config(size=(8, 12), patch=(2, 3), classes=5), 8)

    def make_sample(self, tokenizer, rows):
        return maps(rows)

    def truth(self, values):
        """Sure, and not so sure that noise of a tenth costs nothing in float32."""
        scores = torch.nn.functional.one_hot(values, 5).transpose(2, 3).float()
        return 8 * scores.flatten(2)

    def test_truth_has_the_lowest_loss(self):
        """A probability has no lowest loss: any other class costs more."""
        target, _, _, values = self.case()
        least = target.loss(self.truth(values), values)
        assert bool((least < 0.01).all())
        assert bool((target.loss(self.truth((values + 1) % 5), values) > 7).all())


class TestDirichlet(MaskerContract):
    part = "multimodal:dirichlet"
    layouts = [THREE]
    expected_hidden = {}


class TestDirichletOfTwoPlugins(MaskerContract):
    part = "multimodal:dirichlet"
    options = {"visible": 9, "alpha": 0.5}
    layouts = [MIXED]
    unsuitable = [Layout.on_grid(2, 2)]


class TestDirichletSubsets(MaskerContract):
    part = "multimodal:dirichlet"
    options = {"visible": 98, "subsets": True}
    layouts = [THREE]


def counts_of(mask, layout):
    """Visible units per modality, [R, S]."""
    return torch.stack([part.sum(dim=1) for part in (~mask.hidden).split([p.count for _, p in layout.segments], 1)], 1)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("subsets", [False, True])
def test_exactly_98_units_are_seen(alpha, subsets):
    masker = DirichletMasker(DirichletMasker.Config(alpha=alpha, subsets=subsets))
    mask = masker(THREE, Draw(keys(4000)))
    found = counts_of(mask, THREE)
    assert mask.kept_ids.shape == (4000, 98)
    assert found.sum(dim=1).eq(98).all()
    if not subsets:
        assert torch.allclose(found.float().mean(dim=0), torch.full((3,), 98 / 3), atol=2.5), "no modality is favoured"
    spread = found.float().std(dim=0).mean()
    expected = 98 * math.sqrt(2 / 9 / (3 * alpha + 1))  # of a symmetric Dirichlet
    if not subsets:
        assert float(spread) == pytest.approx(expected, rel=0.08, abs=0.35)
    else:
        assert float(spread) > expected - 0.35


def test_shares_are_dirichlet():
    """Moments of gamma draws, and of their softmax, for shapes from very small to large."""
    alpha = torch.tensor([0.01, 0.5, 1.0, 7.0], dtype=torch.float64)
    logs = log_gamma_draws(keys(40000), alpha)
    assert logs.isfinite().all()
    mean = logs.exp().mean(dim=0)
    assert torch.allclose(mean[1:], alpha[1:], rtol=0.03)
    assert torch.allclose(logs.mean(dim=0), torch.digamma(alpha), rtol=0.02, atol=0.02)
    share = logs.softmax(dim=1).mean(dim=0)
    assert torch.allclose(share, alpha / alpha.sum(), atol=0.004)


def test_units_within_a_modality_are_uniform():
    mask = DirichletMasker(DirichletMasker.Config())(THREE, Draw(keys(6000)))
    seen = (~mask.hidden).float().mean(dim=0)
    assert float(seen.max() - seen.min()) < 0.05


def test_only_inputs_are_seen():
    masker = DirichletMasker(DirichletMasker.Config(inputs=("rgb",)))
    found = counts_of(masker(THREE, Draw(keys(50))), THREE)
    assert found.tolist() == [[98, 0, 0]] * 50
    with pytest.raises(ValueError, match="inputs names rbg; the modalities are rgb"):
        DirichletMasker(DirichletMasker.Config(inputs=("rbg",))).count(THREE)
    with pytest.raises(ValueError, match="visible is 197, and there are 196"):
        DirichletMasker(DirichletMasker.Config(inputs=("rgb",), visible=197)).count(THREE)


@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_what_a_sample_lacks_is_never_seen(alpha):
    """A modality that is missing, and a caption of few tokens: hidden, without weight, and the budget is still full."""
    caption = Layout(count=12, grid=(12,), valid=torch.arange(12).expand(300, -1) < 3)
    depth = Layout(count=64, grid=(8, 8), valid=(torch.arange(300) % 2 == 0)[:, None].expand(-1, 64))
    layout = Layout.join({"rgb": Layout.on_grid(8, 8), "depth": depth, "caption": caption})
    masker = DirichletMasker(DirichletMasker.Config(visible=40, alpha=alpha))
    mask = masker(layout, Draw(keys(300)))
    assert mask.kept_ids.shape == (300, 40)
    assert bool(mask.hidden[~layout.valid].all())
    asked = mask.ask_segment(layout, "depth")
    assert not asked.weight[1::2].any(), "an absent modality is not answered"
    assert torch.equal(asked.weight[::2], mask.hidden[::2, 64:128].float())


def test_cross_entropy_leaves_unknown_positions_out():
    assert ClassMapTokenizer(ClassMapTokenizer.Config(size=(8,), patch=(2, 2), classes=5), 8).layout.grid == (4, 4)
    tokenizer = ClassMapTokenizer(ClassMapTokenizer.Config(size=(8, 12), patch=(2, 3), classes=5), 8)
    target = ClassMapTarget(ClassMapTarget.Config(), tokenizer)
    sample = maps(2, unknown=True)
    sample["semseg"][0, :2, :3] = 255
    patches = tokenizer.split(sample)
    mask = Mask.from_bool(torch.ones(2, patches.layout.count, dtype=torch.bool))
    values = target.make(sample, patches, mask)
    guess = torch.randn(2, patches.layout.count, target.size, generator=torch.Generator().manual_seed(0))
    loss = target.loss(guess, values)
    assert loss[0, 0] == 0, "a unit without any class"
    scores = guess[1, 5].reshape(5, 6).log_softmax(dim=0)
    ids = patches.values[1, 5].flatten()
    wanted = [-scores[ids[i], i] for i in range(6) if ids[i] != 255]
    torch.testing.assert_close(loss[1, 5], torch.stack(wanted).mean())
    shown = target.to_input_space(guess, patches, mask)
    assert torch.equal(shown[1, 5].flatten(), scores.argmax(dim=0))


def test_unknown_ids_are_one_more_class_as_input():
    tokenizer = ClassMapTokenizer(ClassMapTokenizer.Config(size=(4, 4), patch=(2, 2), classes=5), 8)
    one = tokenizer.embed(tokenizer.split({"semseg": torch.full((1, 4, 4), 255)}).values)
    other = tokenizer.embed(tokenizer.split({"semseg": torch.full((1, 4, 4), 5)}).values)
    assert torch.equal(one, other)


def test_the_recipe_has_the_papers_numbers():
    run = load_recipe("multimodal:multimae-vit-base", installed())
    options = {role: part.options for role, part in run.parts.items()}
    encoder, decoder = options["encoder"], options["decoder"]
    assert (encoder.width, encoder.depth, encoder.heads, encoder.class_token) == (768, 12, 12, True)
    assert (decoder.width, decoder.depth, decoder.heads) == (256, 2, 8)
    assert (options["masker"].visible, options["masker"].alpha) == (98, 1.0)
    assert options["semseg.tokenizer"].classes == 133
    assert options["semseg.tokenizer"].embed_width == 64
    assert (options["depth.target"].loss, options["rgb.target"].loss) == ("l1", "l2")
    train = run.train
    assert train.base_lr * train.batch_size / train.lr_batch == pytest.approx(8e-4)
    assert train.warmup_lr * train.batch_size / train.lr_batch == pytest.approx(1e-6)
    assert (train.epochs, train.batch_size, train.warmup_epochs) == (1600, 2048, 40)
    with torch.device("meta"):
        method = build_method(run)
    assert method.tokenizer.layout.count == 588
    assert set(method.heads) == {"rgb", "norm_rgb", "depth", "semseg"}
    assert all(head.average == "sample" for head in method.heads.values())


def test_classes_of_data_and_tokenizer_agree(tmp_path):
    run = load_recipe("multimodal:multimae-vit-tiny", installed(), twin=True)
    part = run.parts["semseg.tokenizer"]
    other = replace(part, options=replace(part.options, classes=9))
    run = replace(run, parts={**run.parts, "semseg.tokenizer": other})
    with pytest.raises(MimError, match=r"the data has 14 classes, and the tokenizer 9: --semseg.tokenizer.classes 14"):
        start(run, tmp_path, installed())


@pytest.mark.parametrize("name", [entry.full_name for entry in installed().of_kind("recipes", "multimodal")])
def test_pictures_of_every_recipe(name, tmp_path):
    """A twin of each recipe rebuilds held-out samples, head by head."""
    if "captions" in name or "4m" in name:
        pytest.importorskip("open_clip")
    run = load_recipe(name, installed(), twin=True)
    method = build_method(run)
    source = make_source(run, method)
    sample, where = held_out_samples(source, 3)
    assert where == ("samples of the training data" if "video" in name else "held-out samples")
    found = reconstruct(method, sample)
    told = {"caption"} if "4m" in name else set()  # one id after another, which no picture shows
    assert set(found) == set(method.heads) - told
    assert any(rebuilt.unasked for rebuilt in found.values()) == ("4m" in name)
    for rebuilt in found.values():
        rows = {"input": rebuilt.input, "masked": rebuilt.masked, "rebuilt": rebuilt.rebuilt}
        if rebuilt.features:
            drawn = feature_pictures(rows, rebuilt.hidden)
            assert all(picture.content for pictures in drawn.values() for picture in pictures)
            continue
        for values in rows.values():
            assert source.picture(rebuilt.modality, values[0]).content
    assert any(rebuilt.features for rebuilt in found.values()) == (
        "vq-features" in name or name.endswith(("4m-vit-base", "4m-vit-large"))
    )
    if "vq-" in name:
        return
    crossed = across(method, sample)
    if "rgb-vit" in name:
        assert not crossed, "one modality has nothing to be predicted from"
    else:
        assert crossed
        assert all(head != seen for head, made in crossed.items() for seen in made)
        assert all(len(values) == len(found[head].input) for head, made in crossed.items() for values in made.values())
    if "captions" in name:  # which are of different lengths
        assert set(crossed["rgb"]) == {"caption"}
        assert set(crossed["caption"]) == {"rgb"}


def test_a_modality_that_one_sample_lacks_is_predicted_and_predicts_nothing(tmp_path):
    run = load_recipe("multimodal:multimae-vit-tiny", installed(), twin=True)
    method = build_method(run)
    sample, _ = held_out_samples(make_source(run, method), 3)
    whole = across(method, sample)
    crossed = across(method, {**sample, "depth.present": torch.tensor([True, False, True])})
    assert set(crossed["depth"]) == {"rgb", "semseg"}
    assert set(crossed["rgb"]) == {"semseg"}
    assert torch.equal(crossed["depth"]["rgb"][0], whole["depth"]["rgb"][0])
    assert set(whole["rgb"]) == {"depth", "semseg"}


def test_what_a_caption_alone_says_does_not_depend_on_the_others_of_its_batch():
    pytest.importorskip("open_clip")
    run = load_recipe("multimodal:multimae-captions-vit-tiny", installed(), twin=True)
    method = build_method(run)
    sample, _ = held_out_samples(make_source(run, method), 3)
    assert len((sample["caption"] != 0).sum(dim=1).unique()) > 1
    crossed = across(method, sample)["rgb"]["caption"]
    one = across(method, {name: value[1:2] for name, value in sample.items()})["rgb"]["caption"]
    assert torch.allclose(crossed[1:2], one, atol=1e-5)
