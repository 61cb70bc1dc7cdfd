"""Captions as units: padding is nowhere asked, seen or counted, and a joined method learns from both modalities."""

import math

import pytest
import torch
from mim_core.errors import MimError
from mim_core.evaluation.reconstruction import reconstruct
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw, Mask
from mim_core.parts.masker import RandomMasker
from mim_core.recipes.config import Part, RunConfig, TrainConfig
from mim_core.recipes.resolve import resolve
from mim_core.testing import TargetContract, TokenizerContract, keys, uncovered
from mim_multimodal.data import SAMPLE
from mim_multimodal.layouts import find_items
from mim_multimodal.text import TextTarget, TextTokenizer
from PIL import Image

LENGTH, VOCABULARY = 12, 40


def captions(rows, length=LENGTH, counts=None):
    """Ids 1 to 39, and 0 after ``counts`` of them; 1, 2, 3, ... tokens by default."""
    counts = torch.arange(rows) % length + 1 if counts is None else torch.as_tensor(counts)
    ids = torch.arange(rows * length).reshape(rows, length) * 7 % (VOCABULARY - 1) + 1
    return ids.where(torch.arange(length) < counts[:, None], 0)


def tokenizer(width=8):
    return TextTokenizer(TextTokenizer.Config(length=LENGTH, vocabulary=VOCABULARY), width)


class TestText(TokenizerContract):
    part = "multimodal:text"
    options = {"length": LENGTH, "vocabulary": VOCABULARY}

    def make_sample(self, tokenizer, rows):
        return {"caption": captions(rows), "key": keys(rows)}

    def wrong_samples(self, tokenizer):
        yield {"caption": torch.ones(2, 13, dtype=torch.int64)}, ["12", "13"]
        yield {"caption": torch.ones(2, 12)}, ["float32"]
        yield {"caption": torch.ones(2, 3, 12, dtype=torch.int64)}, ["12", "(2, 3, 12)"]


class TestTextTarget(TargetContract):
    part = "multimodal:text"
    lowest = None

    def make_tokenizer(self):
        return tokenizer()

    def make_sample(self, tokenizer, rows):
        return {"caption": captions(rows, counts=[LENGTH] * rows)}

    def truth(self, values):
        return 12.0 * torch.nn.functional.one_hot(values, VOCABULARY).float()

    def test_truth_has_the_lowest_loss(self):
        """A probability has no lowest loss: any other token costs more."""
        target, _, _, values = self.case()
        assert bool((target.loss(self.truth(values), values) < 0.01).all())
        assert bool((target.loss(self.truth((values + 1) % VOCABULARY), values) > 11).all())


def test_all_parts_have_a_contract():
    for kind in ("tokenizers", "targets"):
        left = set(uncovered(kind, globals().values(), plugin="multimodal"))
        assert left <= {"multimodal:class-map"}, "covered in test_multi_contracts.py"


# ---- padding ---------------------------------------------------------------------------------------------------------


def test_padding_is_not_valid_and_has_no_vector():
    parts = tokenizer()
    ids = captions(3, counts=[0, 1, 12])
    patches = parts.split({"caption": ids})
    assert torch.equal(patches.layout.valid, ids != 0)
    assert patches.layout.valid.sum(dim=1).tolist() == [0, 1, 12]
    tokens = parts.embed(patches.values)
    assert not tokens[0].any()
    assert tokens[2].any(dim=1).all()
    tokens.sum().backward()
    assert not parts.token_embed.weight.grad[0].any(), "padding learns nothing"
    assert parts.token_embed.weight.grad[1:].any()


def test_padding_costs_nothing():
    parts = tokenizer()
    ids = captions(4, counts=[0, 1, 5, 12])
    patches = parts.split({"caption": ids})
    mask = Mask.from_bool(torch.ones(4, LENGTH, dtype=torch.bool))
    target = TextTarget(TextTarget.Config(), parts)
    guess = torch.randn(4, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(0))
    values = target.make({}, patches, mask)
    loss = target.loss(guess, values)
    assert torch.equal(loss != 0, ids != 0)
    probability = guess[2, 3].softmax(dim=0)[ids[2, 3]]
    assert float(loss[2, 3]) == pytest.approx(-math.log(probability))
    shown = target.to_input_space(guess, patches, mask)[..., 0]
    assert torch.equal(shown != 0, ids != 0), "the caption ends where it ended"
    assert torch.equal(shown[3], guess[3, :, 1:].argmax(dim=1) + 1)


def test_label_smoothing_is_spread_over_the_vocabulary():
    target = TextTarget(TextTarget.Config(label_smoothing=0.1), tokenizer())
    guess = torch.randn(1, 2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logs = guess.log_softmax(dim=2)
    found = target.loss(guess, torch.tensor([[7, 0]]))
    expected = -0.9 * logs[0, 0, 7] - 0.1 * logs[0, 0].mean()
    torch.testing.assert_close(found, torch.stack([expected, torch.tensor(0.0)])[None])


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="length 0 must be"):
        TextTokenizer(TextTokenizer.Config(length=0), 8)
    with pytest.raises(ValueError, match="label_smoothing must lie"):
        TextTarget(TextTarget.Config(label_smoothing=1.0), tokenizer())
    image = installed().get("tokenizers", "image:patch").resolve()
    with pytest.raises(ValueError, match="tokenizer of text"):
        TextTarget(TextTarget.Config(), image(image.Config(), 8))


def test_a_random_mask_hides_padding_first():
    """Of captions with at least as many tokens as stay visible, no padding is seen; it weighs nothing in any."""
    layout = tokenizer().split({"caption": captions(60)}).layout
    mask = RandomMasker(RandomMasker.Config(ratio=0.75))(layout, Draw(keys(60)))
    assert mask.kept_ids.shape == (60, 3)
    long = layout.valid.sum(dim=1) >= 3
    assert bool(mask.hidden[long][~layout.valid[long]].all())
    weighed = mask.weight.sum(dim=1)
    assert torch.equal(weighed, (layout.valid.sum(dim=1) - 3).clamp(min=0).float())


# ---- runs ------------------------------------------------------------------------------------------------------------

TEXT = {
    "caption.tokenizer": Part.of("multimodal:text", length=LENGTH, vocabulary=VOCABULARY),
    "caption.target": Part.of("multimodal:text"),
}
PICTURE = {
    "rgb.tokenizer": Part.of("image:patch", modality="rgb", size=(16, 16), patch=(4, 4), channels=3),
    "rgb.target": Part.of("core:values", normalize=False),
}
METHOD = Part.of("core:masked-autoencoder", average="sample")


def joined(masker, parts, method=METHOD):
    run = RunConfig(
        parts={
            **parts,
            "method": method,
            "masker": masker,
            "encoder": Part.of("core:vit", width=32, depth=2, heads=2, position="sincos-first"),
            "decoder": Part.of("multimodal:cross-attention", width=16, depth=1, heads=2),
        },
        train=TrainConfig(),
    )
    return build_method(resolve(run, installed()), seed=0)


def batch(rows, counts=None):
    rgb = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"rgb": rgb, "caption": captions(rows, counts=counts), "key": keys(rows)}


def losses_of(method, sample, steps=12):
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    found = []
    for _ in range(steps):
        outcome = method(method.prepare(sample))
        found.append({name: float(part.detach()) for name, part in outcome.parts.items()})
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
    return found


@pytest.mark.parametrize("masker", ["multimodal:dirichlet", "core:random"])
def test_rgb_and_captions_are_learned_together(masker):
    options = {"visible": 8} if masker == "multimodal:dirichlet" else {"ratio": 5 / 7}
    method = joined(Part.of(masker, **options), {**PICTURE, **TEXT})
    sample = batch(24)
    prepared = method.prepare(sample)
    valid = sample["caption"] != 0
    assert prepared.mask.kept_ids.shape == (24, 8), "whatever a caption's length"
    assert bool(prepared.mask.hidden[:, 16:][~valid].all()), "padding is seen by nobody"
    assert not prepared.weights["caption"][~valid].any()
    assert float(prepared.weights["caption"].sum()) == pytest.approx(1.0)
    found = losses_of(method, sample)
    for head in ("rgb", "caption"):
        assert found[-1][head] < found[0][head], f"{head} is not learned"
    assert found[0]["caption"] == pytest.approx(math.log(VOCABULARY), rel=0.2)


def test_the_length_of_the_padding_changes_nothing():
    """The loss of a batch is the same whatever an untrained vector of padding holds."""
    method = joined(Part.of("multimodal:dirichlet", visible=8), {**PICTURE, **TEXT})
    sample = batch(12)
    before = method(method.prepare(sample)).loss
    with torch.no_grad():
        method.tokenizer.part("caption").token_embed.weight[0] = 100.0
        assert torch.equal(method(method.prepare(sample)).loss, before)
        features = method.encode(sample)
    assert float(features.pooled.abs().max()) < 50
    assert not features.tokens[:, 16:][sample["caption"] == 0].any()


def test_captions_without_a_token():
    """No token in some, and in all: the pictures are learned from, and the captions count nothing."""
    method = joined(Part.of("multimodal:dirichlet", visible=8), {**PICTURE, **TEXT})
    for counts in ([0, 3, 0, 12], [0, 0, 0, 0]):
        sample = batch(4, counts=counts)
        prepared = method.prepare(sample)
        assert prepared.mask.kept_ids.shape == (4, 8)
        outcome = method(prepared)
        assert bool(outcome.loss.isfinite())
        assert (float(outcome.parts["caption"].detach()) == 0) == (max(counts) == 0)
        outcome.loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)
        assert method.encode(sample).pooled.isfinite().all()
        assert method.encode({"rgb": sample["rgb"]}).tokens.shape == (4, 16, 32)


def test_text_alone():
    """Masked language modelling: one modality, units of a single axis, a caption's own tokenizer."""
    parts = {role.removeprefix("caption."): part for role, part in TEXT.items()}
    run = RunConfig(
        parts={
            **parts,
            "masker": Part.of("core:random", ratio=0.5),
            "encoder": Part.of("core:vit", width=32, depth=1, heads=2),
            "decoder": Part.of("core:transformer", width=16, depth=1, heads=2),
        },
        train=TrainConfig(),
    )
    method = build_method(resolve(run, installed()), seed=0)
    sample = {"caption": captions(16, counts=[6 + i % 7 for i in range(16)]), "key": keys(16)}
    prepared = method.prepare(sample)
    assert prepared.inputs.shape == (16, 6, 1)
    assert bool((prepared.inputs != 0).all())
    found = losses_of(method, sample)
    assert found[-1]["main"] < found[0]["main"]
    assert method.encode(sample).pooled.shape == (16, 32)


def test_pictures_of_captions_keep_what_is_visible():
    method = joined(Part.of("multimodal:dirichlet", visible=8), {**PICTURE, **TEXT})
    sample = batch(6)
    found = reconstruct(method, sample)["caption"]
    hidden = method.prepare(sample).mask.hidden[:, 16:]
    assert found.modality == "caption"
    assert torch.equal(found.input, sample["caption"])
    assert torch.equal(found.masked, sample["caption"].masked_fill(hidden & (sample["caption"] != 0), -1))
    assert torch.equal(found.rebuilt[~hidden], sample["caption"][~hidden])
    assert torch.equal(found.rebuilt == 0, sample["caption"] == 0)


def test_a_caption_is_a_layout_of_one_axis():
    assert tokenizer().layout == Layout(count=LENGTH, grid=(LENGTH,))
    assert tokenizer().shapes == {"caption": (LENGTH,)}


# ---- captions in one table -------------------------------------------------------------------------------------------


def colours(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200, 100, 50)).save(path)


def table(root, *rows):
    (root / "captions.csv").write_text("path,caption\n" + "".join(f"{row}\n" for row in rows))


def test_captions_in_one_table(tmp_path):
    colours(tmp_path, "train/rgb/a/1.jpg", "train/rgb/a/2.jpg", "test/rgb/a/1.jpg")
    table(tmp_path, "train/rgb/a/1.jpg,A cat.", 'train/a/2,"A  dog, far."', "test/caption/a/1.txt,Another cat.")
    found = find_items(tmp_path, ("rgb", "caption"))
    assert found.train.captions == (("A cat.",), ("A dog, far.",))
    assert found.test.captions == (("Another cat.",),)
    assert found.train.file("caption", 0) == "captions.csv: a/1"
    assert found.train.name(0) == "train/rgb/a/1.jpg"
    assert find_items(tmp_path, ("caption",)).train.stems == ("a/1", "a/2")
    captions = pytest.importorskip("mim_multimodal.captions")
    pytest.importorskip("open_clip")
    source = installed().get("data", "multimodal:aligned").resolve()
    source = source(source.Config(root=tmp_path), {"rgb": (3, 8, 8), "caption": (8,)})
    assert captions.decode_caption(source.read(1, 5)["caption"].tolist()) == "a dog , far ."


def test_a_table_that_lacks_some(tmp_path):
    colours(tmp_path, "train/rgb/1.jpg", "train/rgb/2.jpg", "test/rgb/1.jpg")
    table(tmp_path, "1,One.", "2,")
    with pytest.raises(MimError, match=r"missing(?s:.*)captions.csv: 2"):
        find_items(tmp_path, ("rgb", "caption"))
    found = find_items(tmp_path, ("rgb", "caption"), missing="skip")
    assert (found.train.stems, found.test.stems) == (("1",), ("1",))
    (tmp_path / "captions.csv").write_text("path\n1\n")
    with pytest.raises(MimError, match="'path,caption'"):
        find_items(tmp_path, ("rgb", "caption"))


def test_every_frame_of_the_sample_has_a_sentence():
    found = find_items(SAMPLE, ("rgb", "caption"))
    assert (len(found.train), len(found.test), found.left_out) == (960, 240, 0)
    assert all(text.endswith(".") for (text,) in found.train.captions)
