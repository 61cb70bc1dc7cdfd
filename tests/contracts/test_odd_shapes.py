"""What images do not have: several modalities in one layout, units that lie freely, several masks of a sample. The same
method and the same contracts carry them."""

from dataclasses import dataclass

import pytest
import torch
from mim_core.methods.masked_autoencoder import Head, MaskedAutoencoder
from mim_core.parts.decoder import TransformerDecoder
from mim_core.parts.encoder import ViTEncoder
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.masker import GridMasker, RandomMasker
from mim_core.parts.target import Target, ValueTarget
from mim_core.parts.tokenizer import JoinedTokenizer, PatchTokenizer, Tokenizer
from mim_core.testing import MaskerContract, MethodContract, TargetContract, TokenizerContract, keys, seeded

WIDTH = 24


def vit(layout, **options):
    return ViTEncoder(ViTEncoder.Config(width=WIDTH, depth=2, heads=2, **options), layout)


def decoder(encoder, layout, target, **options):
    return TransformerDecoder(
        TransformerDecoder.Config(width=16, depth=1, heads=2, **options), encoder, layout, target.size
    )


def random_masker(**options):
    return RandomMasker(RandomMasker.Config(**options))


# ---- two modalities ----


def joined(width=WIDTH):
    return JoinedTokenizer(
        {
            "rgb": PatchTokenizer(PatchTokenizer.Config(modality="rgb", size=(8, 12), patch=(4, 4)), width),
            "depth": PatchTokenizer(PatchTokenizer.Config("depth", (8, 8), (2, 4), channels=1), width),
        }
    )


def two_heads(average="sample", ratio=0.6):
    tokenizer = joined()
    encoder = vit(tokenizer.layout)
    heads = {}
    for name in ("rgb", "depth"):
        target = ValueTarget(ValueTarget.Config(normalize=name == "rgb"), tokenizer.part(name))
        heads[name] = Head(decoder(encoder, tokenizer.layout, target), target, 1.0, name, average)
    return MaskedAutoencoder(tokenizer, random_masker(ratio=ratio), encoder, heads)


class TestJoinedTokenizer(TokenizerContract):
    def make_tokenizer(self):
        return joined(self.width)

    def restore(self, tokenizer, patches):
        names = [name for name, _ in patches.layout.segments]
        return {n: tokenizer.part(n).join(patches.segment(n).values, patches.segment(n).layout) for n in names}

    def test_joining_all_at_once_is_refused(self):
        tokenizer = joined()
        with pytest.raises(ValueError, match="one segment at a time"):
            tokenizer.join(torch.zeros(1, 14, 1), tokenizer.layout)


class TestTwoHeads(MethodContract):
    def make_method(self):
        with seeded():
            return two_heads()


class TestTwoHeadsOverTheBatch(MethodContract):
    def make_method(self):
        with seeded():
            return two_heads("batch")


def test_average_per_sample_is_multimaes():
    """Mean over the hidden units of each sample, then over the samples that hide any of that modality."""
    method = TestTwoHeads().make_method()
    sample = TestTwoHeads().make_sample(method, 3)
    hidden = {"rgb": torch.zeros(3, 6, dtype=torch.bool), "depth": torch.zeros(3, 8, dtype=torch.bool)}
    hidden["rgb"][0, :5] = hidden["rgb"][1, 2] = True  # sample 2 hides no rgb
    hidden["depth"][0, :3] = hidden["depth"][1, 1:8] = hidden["depth"][2, :8] = True
    hidden["depth"][0, 2] = False
    hidden["rgb"][1, 2] = False
    hidden["depth"][2, 7] = False
    with pytest.raises(ValueError, match="the mask has rgb; the units have rgb, depth"):
        method.prepare(sample, {"rgb": hidden["rgb"]})
    prepared = method.prepare(sample, hidden)  # 7 hidden in every row, and 0 to 5 of rgb
    outcome = method(prepared)
    for name in ("rgb", "depth"):
        each = method.heads[name].target.loss(outcome.predictions[name], prepared.targets[name])
        means = [each[row][hidden[name][row]].mean() for row in range(3) if hidden[name][row].any()]
        torch.testing.assert_close(outcome.parts[name], torch.stack(means).mean())
    torch.testing.assert_close(outcome.loss, outcome.parts["rgb"] + outcome.parts["depth"])


def test_a_modality_that_is_all_hidden_or_all_visible_is_finite():
    method = TestTwoHeads().make_method()
    sample = TestTwoHeads().make_sample(method, 2)
    hidden = {"rgb": torch.zeros(2, 6, dtype=torch.bool), "depth": torch.ones(2, 8, dtype=torch.bool)}
    outcome = method(method.prepare(sample, hidden))
    outcome.loss.backward()
    assert outcome.parts["rgb"].item() == 0
    assert outcome.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


# ---- points: units that lie freely ----


class GroupTokenizer(Tokenizer):
    """Groups of neighbouring entries of a list of points, centred; a small network over each group."""

    embeds = "all"  # BatchNorm sees all groups

    @dataclass(frozen=True)
    class Config:
        groups: int = 16
        size: int = 4

    def __init__(self, config, width):
        super().__init__()
        self.config = config
        self.layout = Layout(count=config.groups)
        self.shapes = {"points": (config.groups * config.size, 3)}
        self.unit_shape = (config.size, 3)
        self.first, self.norm = torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width)
        self.last = torch.nn.Linear(width, width)

    def split(self, sample):
        points = sample["points"]
        if points.shape[1:] != self.shapes["points"]:
            raise ValueError(f"points must be [B, {self.shapes['points']}], got {tuple(points.shape)}")
        groups = points.reshape(len(points), self.config.groups, self.config.size, 3)
        centers = groups[:, :, 0]
        return Patches(groups - centers[:, :, None], Layout(self.config.groups, positions=centers))

    def embed(self, values):
        x = self.first(values)
        x = self.norm(x.flatten(0, 2)).view_as(x)
        return self.last(x.relu()).amax(dim=2)

    def join(self, values, layout):
        return (values + layout.positions[:, :, None]).flatten(1, 2)


class ChamferTarget(Target):
    """The points of a group, in any order: squared distance to the nearest, both ways."""

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config, tokenizer):
        super().__init__()
        self.unit_shape, self.size = tokenizer.unit_shape, tokenizer.unit_shape[0] * 3

    def make(self, sample, patches, mask, lesson=None):
        return mask.take(patches.values, mask.query_ids)

    def loss(self, prediction, values):
        guess = prediction.float().reshape(values.shape)
        apart = (guess[..., :, None, :] - values[..., None, :, :]).square().sum(dim=-1)
        return apart.amin(dim=-1).mean(dim=-1) + apart.amin(dim=-2).mean(dim=-1)

    def to_input_space(self, prediction, patches, mask):
        return prediction.reshape(*prediction.shape[:2], *self.unit_shape)


def on_a_lattice(tokenizer, rows, seed=0):
    """Points at multiples of 1/64, so that centring and its reverse are exact."""
    draws = torch.randint(-64, 65, (rows, *tokenizer.shapes["points"]), generator=torch.Generator().manual_seed(seed))
    return {"points": draws / 64, "key": keys(rows, seed), "index": torch.arange(rows)}


class TestGroupTokenizer(TokenizerContract):
    def make_tokenizer(self):
        return GroupTokenizer(GroupTokenizer.Config(), self.width)

    def make_sample(self, tokenizer, rows):
        return on_a_lattice(tokenizer, rows)


class TestChamferTarget(TargetContract):
    def make_tokenizer(self):
        return GroupTokenizer(GroupTokenizer.Config(), 8)

    def make_target(self, tokenizer):
        return ChamferTarget(ChamferTarget.Config(), tokenizer)

    def make_sample(self, tokenizer, rows):
        return on_a_lattice(tokenizer, rows)

    def truth(self, values):
        return values.flatten(2)


class TestFreeUnits(MaskerContract):
    layouts = (Layout(count=16, positions=torch.rand(16, 3)),)
    expected_hidden = {64: 38, 16: 9}

    def make_masker(self):
        return random_masker(ratio=0.6, rounding="down")


class TestPoints(MethodContract):
    def make_method(self):
        with seeded():
            tokenizer = GroupTokenizer(GroupTokenizer.Config(), WIDTH)
            encoder = vit(tokenizer.layout, position="coordinates")
            target = ChamferTarget(ChamferTarget.Config(), tokenizer)
            head = Head(decoder(encoder, tokenizer.layout, target, position="coordinates"), target)
            return MaskedAutoencoder(tokenizer, random_masker(ratio=0.6, rounding="down"), encoder, {"main": head})

    def make_sample(self, method, rows, seed=0):
        return on_a_lattice(method.tokenizer, rows, seed)

    def test_mask_belongs_to_its_own_points(self):
        """Each sample's positions are its own: moving one sample's points moves only its latent."""
        method = self.make_method().eval()
        sample = self.make_sample(method, 4)
        moved = {**sample, "points": sample["points"].clone()}
        moved["points"][1] += 0.5  # centred values are the same; the centres are not
        before, after = method(method.prepare(sample)).latent, method(method.prepare(moved)).latent
        assert [bool(torch.allclose(a, b, atol=1e-5)) for a, b in zip(before, after, strict=True)] == [
            True,
            False,
            True,
            True,
        ]


# ---- several masks of each sample; clips ----


class _Single(MethodContract):
    masks = 1

    def make_method(self):
        with seeded():
            config = PatchTokenizer.Config(modality="image", size=(12, 16), patch=(4, 4), channels=2)
            tokenizer = PatchTokenizer(config, WIDTH)
            return self.around(tokenizer, random_masker(ratio=0.5, masks=self.masks))

    def around(self, tokenizer, masker):
        encoder = vit(tokenizer.layout)
        target = ValueTarget(ValueTarget.Config(), tokenizer)
        head = Head(decoder(encoder, tokenizer.layout, target), target)
        return MaskedAutoencoder(tokenizer, masker, encoder, {"main": head})


class TestFourMasks(_Single):
    masks = 4

    def test_rows_of_a_sample_are_adjacent(self):
        """The loss of four masks is the mean of the four, each injected alone."""
        method = self.make_method().eval()
        sample = self.make_sample(method, 3)
        prepared = method.prepare(sample)
        outcome = method(prepared)
        assert outcome.prediction.shape[0] == outcome.latent.shape[0] == 12
        alone = [method(method.prepare(sample, prepared.mask.hidden[k::4])) for k in range(4)]
        torch.testing.assert_close(outcome.loss, torch.stack([o.loss for o in alone]).mean())
        for k, single in enumerate(alone):
            torch.testing.assert_close(outcome.prediction[k::4], single.prediction, rtol=1e-4, atol=1e-5)


class TestTubes(_Single):
    def make_method(self):
        with seeded():
            config = PatchTokenizer.Config(modality="video", size=(4, 8, 12), patch=(2, 4, 4), channels=3)
            masker = GridMasker(GridMasker.Config(ratio=0.7, block=(-1, 1, 1), rounding="down"))
            return self.around(PatchTokenizer(config, WIDTH), masker)


class TestEncoderThatSeesAll(_Single):
    def around(self, tokenizer, masker):
        encoder = vit(tokenizer.layout, sees="all")
        target = ValueTarget(ValueTarget.Config(), tokenizer)
        return MaskedAutoencoder(
            tokenizer, masker, encoder, {"main": Head(decoder(encoder, tokenizer.layout, target), target)}
        )


def test_an_encoder_that_drops_units_needs_equal_counts():
    method = _Single().make_method()
    sample = _Single().make_sample(method, 2)
    hidden = torch.zeros(2, 12, dtype=torch.bool)
    hidden[0, :3] = hidden[1, :5] = True
    with pytest.raises(ValueError, match="needs visible units, as many in every row"):
        method.prepare(sample, hidden)
    assert (
        TestEncoderThatSeesAll()
        .make_method()(TestEncoderThatSeesAll().make_method().prepare(sample, hidden))
        .loss.isfinite()
    )


def test_a_mask_of_another_size_is_named():
    method = _Single().make_method()
    with pytest.raises(ValueError, match=r"the mask has 10 units; the sample has 12 \(grid \(3, 4\)\)"):
        method.prepare(_Single().make_sample(method, 2), torch.eye(2, 10, dtype=torch.bool))


def test_a_masker_that_keeps_nothing_is_refused():
    tokenizer = PatchTokenizer(PatchTokenizer.Config(size=(4, 4), patch=(4, 2)), WIDTH)
    with pytest.raises(ValueError, match="would keep 0 of 2 units"):
        _Single().around(tokenizer, random_masker(ratio=0.75))


@pytest.mark.parametrize("key", [torch.rand(2), torch.arange(3), torch.zeros(2, 1, dtype=torch.int64)])
def test_keys_that_are_none_are_refused(key):
    method = _Single().make_method()
    with pytest.raises(ValueError, match=r"key must be int64 \[2\], one per sample; got torch"):
        method.prepare({**_Single().make_sample(method, 2), "key": key})
