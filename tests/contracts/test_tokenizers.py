"""Every registered tokenizer keeps the contract, on one, two and three axes."""

import pytest
import torch
from mim_core.interop.codes import CodeTokenizer, codes_text
from mim_core.interop.frozen import parts_text
from mim_core.interop.frozen_features import FrozenFeatures
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.recipes.config import Part
from mim_core.testing import TokenizerContract, noise, uncovered


class _Patches(TokenizerContract):
    def wrong_samples(self, tokenizer):
        """One position too many along the last axis: the error names the patch and the size."""
        config = tokenizer.config
        size = (*config.size[:-1], config.size[-1] + 1)
        patch = " x ".join(map(str, config.patch))
        yield noise({config.modality: (config.channels, *size)}, 2), [f"patch of {patch}", " x ".join(map(str, size))]
        wrong = noise({config.modality: (config.channels + 1, *config.size)}, 2)
        yield wrong, [f"B, {config.channels}", f"2 x {config.channels + 1} x"]


class TestImagePatches(_Patches):
    part = "image:patch"
    options = {"size": (24, 40), "patch": (8, 8), "channels": 3}


class TestGreyOblongPatches(_Patches):
    part = "image:patch"
    options = {"size": (12, 20), "patch": (3, 5), "channels": 1}


class TestSignal(_Patches):
    part = "core:patch"
    options = {"modality": "ecg", "size": (60,), "patch": (6,), "channels": 12}


class TestImage(_Patches):
    part = "core:patch"
    options = {"size": (16, 8), "patch": (4, 2), "channels": 5}


class TestVolume(_Patches):
    part = "core:patch"
    options = {"modality": "video", "size": (4, 8, 12), "patch": (2, 4, 3), "channels": 2}


class TestIds(TokenizerContract):
    part = "core:ids"
    options = {"size": (4, 6), "names": 40}


class TestIdsOfAVolume(TokenizerContract):
    part = "core:ids"
    options = {"size": (2, 3, 4), "names": 9}


class TestSequence(TokenizerContract):
    part = "core:sequence"
    options = {"length": 9, "vocabulary": 20}


class TestBins(TokenizerContract):
    part = "core:bins"
    options = {"size": (8, 12), "patch": (4, 4), "channels": 2, "levels": 5}

    def make_sample(self, tokenizer, rows):
        """Patches that lie in the middle of their bins: of others, the middle comes back."""
        sample = super().make_sample(tokenizer, rows)
        patches = tokenizer.split(sample)
        return {**sample, "input": tokenizer.join(patches.values, patches.layout)}


FRAMES = {"modality": "rgb", "size": (16, 24), "patch": (8, 8), "channels": 3}


def quantised():
    sizes = {"width": 16, "depth": 1, "heads": 2}
    return {
        "method": Part.of("core:vq"),
        "tokenizer": Part.of("core:patch", **FRAMES),
        "encoder": Part.of("core:codebook", codes=9, size=4, **sizes),
        "decoder": Part.of("core:plain", **sizes),
        "target": Part.of("core:values", normalize=False),
    }


class TestCodes(TokenizerContract):
    part = "core:codes"
    kept = {}

    def make_tokenizer(self):
        """With weights drawn once: the same codes each time, as those of a run are."""
        torch.manual_seed(0)
        tokenizer = CodeTokenizer(CodeTokenizer.Config(random=True, parts=codes_text(**quantised())), self.width)
        tokenizer.quantised.load_state_dict(self.kept.setdefault("state", tokenizer.quantised.state_dict()))
        return tokenizer

    def test_join_undoes_split(self):
        """What comes back is what the codes stand for, and has the codes that it was made of, or nearly so; its shape
        is the sample's."""
        tokenizer = self.make_tokenizer()
        sample = self.make_sample(tokenizer, 3)
        patches = tokenizer.split(sample)
        assert tokenizer.join(patches.values, patches.layout).shape == sample["rgb"].shape

    def wrong_samples(self, tokenizer):
        yield {"rgb": torch.zeros(2, 3, 16, 25)}, ["16 x 25"]


def near_rows(tokenizer, sample):
    """What `split` gives of one sample alone, beside its row in the batch."""
    alone = tokenizer.split({name: value[2:3] for name, value in sample.items()}).values
    return alone, tokenizer.split(sample).values[2:3]


class TestFeatures(TokenizerContract):
    part = "core:features"
    kept = {}

    def make_tokenizer(self):
        """With weights drawn once, as those of a run are."""
        torch.manual_seed(0)
        text = parts_text(
            tokenizer=Part.of("core:patch", **FRAMES), encoder=Part.of("core:vit", width=24, depth=1, heads=2)
        )
        tokenizer = FrozenFeatures(FrozenFeatures.Config(random=True, parts=text, modality="colour"), self.width)
        tokenizer.looks.load_state_dict(self.kept.setdefault("state", tokenizer.looks.state_dict()))
        return tokenizer

    def test_join_undoes_split(self):
        """The map of features comes back, not the picture: split alike, to the bit."""
        tokenizer = self.make_tokenizer()
        patches = tokenizer.split(self.make_sample(tokenizer, 3))
        maps = tokenizer.join(patches.values, patches.layout)
        assert tokenizer.gives_features
        assert maps.shape == (3, 24, 2, 3)
        assert torch.equal(maps.flatten(2).transpose(1, 2), patches.values)

    def test_split_row_does_not_depend_on_the_batch(self):
        """But for the order of summation."""
        tokenizer = self.make_tokenizer()
        torch.testing.assert_close(*near_rows(tokenizer, self.make_sample(tokenizer, 4)))

    def wrong_samples(self, tokenizer):
        yield {"colour": torch.zeros(2, 3, 16, 25)}, ["16 x 25"]


def test_every_tokenizer_has_a_contract():
    assert not [part for plugin in ("core", "image") for part in uncovered("tokenizers", globals().values(), plugin)]


def test_values_are_in_row_column_channel_order():
    tokenizer = PatchTokenizer(PatchTokenizer.Config(size=(4, 6), patch=(2, 3), channels=2), 8)
    x = torch.arange(48.0).reshape(1, 2, 4, 6)
    values = tokenizer.split({"input": x}).values
    for row in range(2):
        for column in range(2):
            unit = x[0, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            assert torch.equal(values[0, 2 * row + column], unit.permute(1, 2, 0))


def test_embedding_is_the_convolution():
    tokenizer = PatchTokenizer(PatchTokenizer.Config(size=(4, 8, 6), patch=(2, 4, 3), channels=2), 8)
    x = torch.randn(2, 2, 4, 8, 6)
    torch.testing.assert_close(
        tokenizer.embed(tokenizer.split({"input": x}).values), tokenizer.proj(x).flatten(2).transpose(1, 2)
    )


def test_another_size_is_taken_if_the_patch_divides_it():
    tokenizer = PatchTokenizer(PatchTokenizer.Config(size=(8, 8), patch=(4, 4)), 8)
    x = torch.randn(1, 3, 12, 20)
    patches = tokenizer.split({"input": x})
    assert patches.layout.grid == (3, 5)
    assert torch.equal(tokenizer.join(patches.values, patches.layout), x)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": (28, 28), "patch": (16, 16)}, r"16 x 16 does not divide the input of 28 x 28; patches that do: 2, 4"),
        ({"size": (28,) * 3, "patch": (4, 4)}, "size 28 x 28 x 28 has 3 axes and patch 4 x 4 has 2"),
        ({"size": (4, 4, 4, 4), "patch": (2, 2, 2, 2)}, "1 to 3 axes"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"size": (8, 8), "patch": (16, 16)}, "16 x 16 does not divide"),
        ({"size": (8, 8), "patch": (0, 4)}, "0 x 4 does not divide"),
    ],
)
def test_options_that_make_no_tokenizer(options, text):
    with pytest.raises(ValueError, match=text):
        PatchTokenizer(PatchTokenizer.Config(**options), 8)


def test_a_missing_modality_is_named():
    tokenizer = PatchTokenizer(PatchTokenizer.Config(modality="depth", size=(8, 8), patch=(4, 4)), 8)
    with pytest.raises(KeyError, match="'depth'"):
        tokenizer.split(noise({"image": (3, 8, 8)}, 1))


def test_one_number_is_a_square():
    """Of two axes; of one and three it is what it says, or refused."""
    one = PatchTokenizer.Config(size=(8,), patch=(4, 4))
    assert one.size == (8, 8)
    assert PatchTokenizer(one, 6).shapes == {"input": (3, 8, 8)}
    assert PatchTokenizer.Config(size=(8,), patch=(4,)).size == (8,)
    with pytest.raises(ValueError, match="size 8 has 1 axes and patch 2 x 4 x 4 has 3"):
        PatchTokenizer(PatchTokenizer.Config(size=(8,), patch=(2, 4, 4)), 6)
