"""What every tokenizer keeps to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mim_core import randomness
from mim_core.data.source import Sample
from mim_core.parts.layout import Patches, take
from mim_core.parts.mask import Mask
from mim_core.parts.spans import sequence_length
from mim_core.parts.tokenizer import Tokenizer
from mim_core.testing.checks import (
    Contract,
    equal,
    keys,
    near,
    noise,
    on_gpu,
    refusal,
    saying,
    seeded,
    shapes,
    tensors,
    to_gpu,
)


class TokenizerContract(Contract):
    """What every tokenizer keeps to.

    Attributes:
        width: Token width to build it with.
    """

    kind: ClassVar[str] = "tokenizers"
    width: ClassVar[int] = 16

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer under test."""
        tokenizer: Tokenizer = self._make("tokenizer", self.width)
        return tokenizer

    def make_sample(self, tokenizer: Tokenizer, rows: int) -> Sample:
        """A batch that it takes."""
        return noise(tokenizer.shapes, rows, ids=tokenizer.ids)

    def wrong_samples(self, tokenizer: Tokenizer) -> Iterable[tuple[Sample, Sequence[str]]]:
        """Batches that it must refuse, and what the error must name. By default the last axis is one too long."""
        for modality, shape in tokenizer.shapes.items():
            sample = self.make_sample(tokenizer, 2)
            long = (*shape[:-1], shape[-1] + 1)
            yield {**sample, modality: torch.zeros(2, *long)}, [str(shape[-1] + 1)]

    def restore(self, tokenizer: Tokenizer, patches: Patches) -> Mapping[str, Tensor]:
        """The sample again, by modality; override it where `join` serves no or several modalities."""
        (modality,) = tokenizer.shapes
        assert isinstance(patches.values, Tensor), "several modalities: override restore"
        return {modality: tokenizer.join(patches.values, patches.layout)}

    def test_split_keeps_what_is_declared(self) -> None:
        """Layout and unit shape are those that the tokenizer declares."""
        tokenizer = self.make_tokenizer()
        patches: Any = tokenizer.split(self.make_sample(tokenizer, 3))
        assert isinstance(patches, Patches), f"split gives a {type(patches).__name__}, no mim_core.Patches"
        layout, declared = patches.layout, tokenizer.layout
        same = (layout.count, layout.grid) == (declared.count, declared.grid)
        assert same, "split gives another layout than declared"
        if isinstance(patches.values, Tensor):
            wanted = (3, declared.count, *tokenizer.unit_shape)
            assert patches.values.shape == wanted, f"values are {tuple(patches.values.shape)}, declared {wanted}"

    def test_join_undoes_split(self) -> None:
        """The same sample comes back, to the bit."""
        tokenizer = self.make_tokenizer()
        sample = self.make_sample(tokenizer, 3)
        restored = self.restore(tokenizer, tokenizer.split(sample))
        assert set(restored) == set(tokenizer.shapes), f"restored {sorted(restored)} of {sorted(tokenizer.shapes)}"
        for modality, value in restored.items():
            assert torch.equal(value, sample[modality]), f"join(split({modality})) is not {modality}"

    def test_nothing_is_changed_in_place(self) -> None:
        """`split` leaves the sample as it is, `embed` and `join` the values: targets and pictures read them too."""
        tokenizer = self.make_tokenizer()
        sample = self.make_sample(tokenizer, 3)
        before = {name: value.clone() for name, value in sample.items()}
        patches = tokenizer.split(sample)
        changed = [name for name, value in before.items() if not torch.equal(value, sample[name])]
        assert not changed, f"split changes {', '.join(changed)} of the sample in place"
        values = pytree.tree_map_only(Tensor, lambda value: value.clone(), patches.values)
        with torch.no_grad():
            tokenizer.embed(patches.values)
        assert equal(values, patches.values), "embed changes the unit values in place"
        self.restore(tokenizer, patches)
        assert equal(values, patches.values), "join changes the unit values in place"

    def test_nothing_in_split_is_trained(self) -> None:
        """Split has no gradient and does not depend on any parameter."""
        tokenizer = self.make_tokenizer()
        sample = self.make_sample(tokenizer, 3)
        before = tokenizer.split(sample)
        assert not any(value.requires_grad for value in tensors(before)), "split has a gradient"
        with torch.no_grad():
            for parameter in tokenizer.parameters():
                if parameter.requires_grad:  # others stay as they were made: a frozen codec may cut samples
                    parameter.add_(1.0)
        assert equal(before, tokenizer.split(sample)), "split depends on trained weights"

    def test_split_row_does_not_depend_on_the_batch(self) -> None:
        """A batch of 1 gives the row that the whole batch has."""
        tokenizer = self.make_tokenizer()
        sample = self.make_sample(tokenizer, 4)
        whole = tokenizer.split(sample).values
        alone = tokenizer.split({name: value[2:3] for name, value in sample.items()}).values
        assert equal(pytree.tree_map(lambda value: value[2:3], whole), alone), "a sample alone is split otherwise"

    def test_embed(self) -> None:
        """Tokens are [B, N, width] (or [B, N, S, width]), of the weights' type; what is trained has a gradient."""
        tokenizer = self.make_tokenizer()
        tokens = tokenizer.embed(tokenizer.split(self.make_sample(tokenizer, 3)).values)
        assert tokens.shape[:2] == (3, tokenizer.layout.count), f"tokens are {tuple(tokens.shape)}"
        assert tokens.ndim in (3, 4), f"tokens have {tokens.ndim} axes"
        assert tokens.shape[-1] == self.width, f"tokens are {tokens.shape[-1]} wide, not {self.width}"
        wanted = next((parameter.dtype for parameter in tokenizer.parameters()), torch.float32)
        assert tokens.dtype == wanted, f"tokens are {tokens.dtype}, weights {wanted}"
        trained = {name: p for name, p in tokenizer.named_parameters() if p.requires_grad}
        if not trained:
            return
        assert tokens.requires_grad, "embed cuts the gradient off: weights that should be trained have none"
        tokens.square().sum().backward()
        idle = [name for name, p in trained.items() if p.grad is None]
        assert not idle, f"embed does not use {', '.join(idle)}"

    def test_embedding_kept_units_alone(self) -> None:
        """Where ``embeds`` is "kept", gathering before or after `embed` gives the same tokens."""
        tokenizer = self.make_tokenizer()
        if tokenizer.embeds == "all":
            return
        values = tokenizer.split(self.make_sample(tokenizer, 3)).values
        assert isinstance(values, Tensor), "a tokenizer of several modalities must embed all"
        ids = randomness.permutation(keys(3), "kept", values.shape[1])[:, : max(1, values.shape[1] // 3)]
        before, after = tokenizer.embed(take(values, ids)), take(tokenizer.embed(values), ids)
        near(before, after, 'embeds is "kept", and a unit\'s token depends on which others are embedded', 1e-5, 1e-5)

    def test_wrong_sizes_are_named(self) -> None:
        """A sample that does not fit is a ValueError that names the sizes."""
        tokenizer = self.make_tokenizer()
        for sample, names in self.wrong_samples(tokenizer):
            message = refusal(tokenizer.split, sample)
            missing = [name for name in names if name not in message]
            assert not missing, f"the error does not name {missing}: {message}"

    def test_units_that_are_ids(self) -> None:
        """Where ``names`` says how many ids there are, each unit is one of them."""
        tokenizer = self.make_tokenizer()
        if not tokenizer.names:
            return
        values = tokenizer.split(self.make_sample(tokenizer, 3)).values
        assert isinstance(values, Tensor), "ids of several modalities: join their tokenizers"
        assert values.dtype == torch.int64, f"ids are {values.dtype}, not int64"
        assert tuple(values.shape[2:]) == (1,) == tuple(tokenizer.unit_shape), "a unit is one id, of the shape [1]"
        low, high = int(values.min()), int(values.max())
        assert 0 <= low <= high < tokenizer.names, f"ids are {low} to {high}; there are {tokenizer.names}"

    def test_sequences_are_told_once(self) -> None:
        """Where a sequence is hidden in spans, `arrange` writes first what is seen and behind it what is asked: every
        id in one of them, in its order, with the sentinels of the runs in both, and one more at the end."""
        tokenizer = self.make_tokenizer()
        if not tokenizer.layout.sequence:
            return
        (count,), patches = tokenizer.ids.values(), tokenizer.split(self.make_sample(tokenizer, 4))
        assert isinstance(patches.values, Tensor), "a sequence alone"
        length = sequence_length(tokenizer.layout)
        ids = patches.values[:, :length, 0]
        chance = randomness.uniform(keys(4), "hidden", tokenizer.layout.count)
        valid = patches.layout.valid
        present = torch.ones_like(chance, dtype=torch.bool) if valid is None else valid
        hidden = (chance < torch.tensor([0.0, 0.3, 0.6, 1.1])[:, None]) & present
        nothing = Mask.nothing_hidden(4, patches.layout, ids.device)
        written = tokenizer.arrange(patches.values, replace(nothing, hidden=hidden))
        assert isinstance(written, Tensor), "arrange gives no tensor"
        for row in range(4):
            units = int(present[row].sum())
            own, gone = ids[row, :units].tolist(), hidden[row, :units].tolist()
            seen, asked = word_by_word(own, gone, count)
            wanted = [*seen, *asked, *[0] * (tokenizer.layout.count - len(seen) - len(asked))]
            actual = written[row].flatten().tolist()
            assert actual == wanted, f"of {own}, where {gone} are hidden, {actual} is written; it should be {wanted}"

    def test_embed_row_does_not_depend_on_the_batch(self) -> None:
        """In evaluation a sample alone has the tokens that it has in a batch."""
        tokenizer = self.make_tokenizer().eval()
        values = tokenizer.split(self.make_sample(tokenizer, 4)).values
        whole = tokenizer.embed(values)[2:3]
        alone = tokenizer.embed(pytree.tree_map(lambda value: value[2:3], values))
        near(alone, whole, "a sample alone has other tokens than in a batch, in evaluation")

    def test_dtype_and_device_are_kept(self) -> None:
        """Values have the type and the device of the sample; on the meta device shapes follow from shapes."""
        tokenizer = self.make_tokenizer()
        sample = self.make_sample(tokenizer, 3)
        half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in sample.items()}
        measured = not tokenizer.names and any(half[name].dtype == torch.bfloat16 for name in tokenizer.shapes)
        kinds = {value.dtype for value in tensors(tokenizer.split(half).values) if value.is_floating_point()}
        assert not measured or kinds == {torch.bfloat16}, f"split makes {kinds} of bfloat16"
        with saying("split reads a value or makes tensors elsewhere than the sample, so a GPU would wait"):
            patches = tokenizer.to("meta").split({name: value.to("meta") for name, value in sample.items()})
        wanted = self.make_tokenizer().split(sample)
        assert shapes(patches.values) == shapes(wanted.values), "shapes on the meta device differ"
        assert all(value.is_meta for value in tensors(patches.values)), "values left the device of the sample"

    def test_state_dict_round_trip(self) -> None:
        """Another with the same weights gives the same tokens."""
        with seeded(1):
            tokenizer = self.make_tokenizer().eval()
        with seeded(2):
            other = self.make_tokenizer().eval()
        sample = self.make_sample(tokenizer, 3)
        other.load_state_dict({name: value.clone() for name, value in tokenizer.state_dict().items()}, strict=True)
        one, again = (each.embed(each.split(sample).values) for each in (tokenizer, other))
        assert torch.equal(one, again), "the state dict does not hold everything"

    @on_gpu
    def test_gpu_equals_cpu(self) -> None:
        """The same values and tokens on a GPU."""
        tokenizer = self.make_tokenizer().eval()
        sample = self.make_sample(tokenizer, 3)
        here = tokenizer.split(sample).values
        tokens = tokenizer.embed(here)
        gpu_values = tokenizer.cuda().split(to_gpu(sample)).values
        assert all(value.is_cuda for value in tensors(gpu_values)), "values left the GPU"
        for one, other in zip(tensors(here), tensors(gpu_values), strict=True):
            near(other.cpu(), one, "split gives other values on a GPU")
        near(tokenizer.embed(gpu_values).cpu(), tokens, "embed gives other tokens on a GPU", 1e-3, 1e-4)


def word_by_word(ids: list[int], hidden: list[bool], sentinel: int) -> tuple[list[int], list[int]]:
    """What is seen of a sequence and what is asked, word by word (T5, arXiv 1910.10683, figure 2)."""
    seen, asked, inside = list[int](), list[int](), False
    for value, gone in zip(ids, hidden, strict=True):
        if gone and not inside:
            seen.append(sentinel)
            asked.append(sentinel)
            sentinel += 1
        (asked if gone else seen).append(value)
        inside = gone
    return seen, [*asked, sentinel] if ids else []
