"""Units that are ids, sequences whose spans are hidden, and one decoder for all heads (4M)."""

from dataclasses import replace

import pytest
import torch
from mim_core.host.loading import installed
from mim_core.methods.masked_autoencoder import Head, MaskedAutoencoder
from mim_core.parts.decoder_joint import JointDecoder
from mim_core.parts.encoder import ViTEncoder
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Mask
from mim_core.parts.masker import RandomMasker
from mim_core.parts.spans import Spans, places_for, sentinels_for
from mim_core.parts.target_ids import IdTarget
from mim_core.parts.tokenizer import JoinedTokenizer
from mim_core.parts.tokenizer_ids import BinTokenizer, IdTokenizer, SequenceTokenizer
from mim_core.testing import TargetContract, keys, noise


class TestIdTarget(TargetContract):
    part = "core:ids"
    lowest = None

    def make_tokenizer(self):
        return IdTokenizer(IdTokenizer.Config(size=(4, 6), names=7), 16)

    def make_sample(self, tokenizer, rows):
        return noise(tokenizer.shapes, rows, ids=tokenizer.ids)

    def truth(self, values):
        return 8 * torch.nn.functional.one_hot(values, 7).float()

    def test_truth_has_the_lowest_loss(self):
        """A probability has no lowest loss: any other id costs more."""
        target, _, _, values = self.case()
        assert bool((target.loss(self.truth(values), values) < 0.01).all())
        assert bool((target.loss(self.truth((values + 1) % 7), values) > 7).all())


def test_bins_by_hand():
    """(1, -1) of -3 to 3 in 6 bins: the fifth and the third, 4 * 6 + 2; beyond the ends the outermost."""
    tokenizer = BinTokenizer(BinTokenizer.Config(size=(2, 4), patch=(2, 2), channels=2, levels=6), 8)
    x = torch.tensor([1.0, -1.0])[None, :, None, None].expand(1, 2, 2, 4).clone()
    x[:, :, :, 2:] = torch.tensor([99.0, -99.0])[:, None, None]
    assert tokenizer.split({"input": x}).values.flatten().tolist() == [26, 30]
    back = tokenizer.join(torch.tensor([[[26], [-1]]]), tokenizer.layout)
    assert back[0, :, 0].tolist() == [[1.5, 1.5, 0.0, 0.0], [-0.5, -0.5, 0.0, 0.0]]


def test_ids_that_are_none_are_no_units():
    tokenizer = IdTokenizer(IdTokenizer.Config(size=(1, 3), names=5), 8)
    patches = tokenizer.split({"input": torch.tensor([[[4, 255, -1]]])})
    assert patches.layout.valid.tolist() == [[True, False, False]]


def plain_spans(ids, hidden, sentinel):
    """What is seen and what is asked, by T5's rule in a plain loop."""
    seen, asked, number, before = [], [], 0, False
    for name, away in zip(ids, hidden, strict=True):
        if away and not before:
            seen.append(sentinel + number)
            asked.append(sentinel + number)
            number += 1
        (asked if away else seen).append(name)
        before = away
    return seen, [*asked, sentinel + number] if ids else []


def test_spans_equal_a_plain_loop():
    generator = torch.Generator().manual_seed(3)
    lengths, most = torch.randint(0, 10, (200,), generator=generator), 9
    there = torch.arange(most) < lengths[:, None]
    ids = torch.randint(1, 50, (200, most), generator=generator) * there
    hidden = (torch.rand(200, most, generator=generator) < torch.rand(200, 1, generator=generator)) & there
    spans = Spans(there & ~hidden, hidden)
    places = spans.write(ids, 50)
    assert places.shape == (200, places_for(most))
    for row in range(200):
        n = int(lengths[row])
        seen, asked = plain_spans(ids[row, :n].tolist(), hidden[row, :n].tolist(), 50)
        assert (len(seen), len(asked)) == (int(spans.seen[row]), int(spans.told[row]))
        assert places[row].tolist() == [*seen, *asked, *[0] * (places_for(most) - len(seen) - len(asked))]
        assert max(seen + asked, default=0) < 50 + sentinels_for(most)


def test_a_sequence_is_written_where_its_mask_says_so():
    tokenizer = SequenceTokenizer(SequenceTokenizer.Config(length=5, vocabulary=10), 8)
    patches = tokenizer.split({"input": torch.tensor([[3, 4, 5, 6, 0]])})
    assert patches.layout.valid[0].tolist() == [True] * 4 + [False] * 8
    hidden = torch.tensor([[False, True, True, False, *[True] * 8]])
    none = torch.zeros(1, 1, dtype=torch.int64)
    mask = Mask(hidden, none, none, none.float(), spans=True)
    values = tokenizer.arrange(patches.values, mask)
    assert values.flatten().tolist() == [3, 10, 6, 10, 4, 5, 11, 0, 0, 0, 0, 0]
    target = IdTarget(IdTarget.Config(), tokenizer)
    asked = Mask(hidden, none, torch.tensor([[3, 4, 5]]), torch.ones(1, 3), spans=True)
    wanted = target.make({}, Patches(values, patches.layout), asked)
    assert wanted.tolist() == [[4, 5, 11]], "each is asked for the one behind it"


def joined():
    """Two maps of ids and a sequence, and a decoder for their heads."""
    torch.manual_seed(0)
    tokenizer = JoinedTokenizer(
        {
            "one": IdTokenizer(IdTokenizer.Config(modality="one", size=(2, 3), names=11), 24),
            "words": SequenceTokenizer(SequenceTokenizer.Config(modality="words", length=5, vocabulary=9), 24),
            "other": IdTokenizer(IdTokenizer.Config(modality="other", size=(2, 2), names=7), 24),
        }
    )
    layout = tokenizer.layout
    encoder = ViTEncoder(
        ViTEncoder.Config(width=24, depth=1, heads=2, class_token=False, segments=True, position="sincos-first"), layout
    )
    decoder = JointDecoder(JointDecoder.Config(width=24, depth=2, heads=2), encoder, layout)
    return tokenizer, encoder, decoder


def method_of(total="sum", **weights):
    tokenizer, encoder, decoder = joined()
    heads = {}
    for name in ("one", "words", "other"):
        target = IdTarget(IdTarget.Config(), tokenizer.part(name))
        answer = decoder.head(target.size, name, encoder)
        heads[name] = Head(answer, target, weights.get(name, 1.0), name)
    masker = RandomMasker(RandomMasker.Config())
    return MaskedAutoencoder(tokenizer, masker, encoder, heads, decoder=decoder, total=total).eval()


SAMPLE = {
    "one": torch.arange(6).reshape(1, 2, 3),
    "words": torch.tensor([[3, 11, 6, 11, 4, 5, 8, 12, 0, 0, 0, 0]]),
    "other": torch.arange(4).reshape(1, 2, 2),
}


def asking(query_ids, valid=None, kept=(0, 2, 6, 18)):
    """A mask that shows some units and asks others."""
    query_ids = torch.tensor([query_ids])
    hidden = torch.ones(1, 22, dtype=torch.bool)
    kept_ids = torch.tensor([list(kept)])
    hidden.scatter_(1, kept_ids, False)
    there = torch.ones_like(query_ids, dtype=torch.bool) if valid is None else torch.tensor([valid])
    return Mask(hidden, kept_ids, query_ids, there.float(), query_valid=there)


ASKED = [1, 3, 9, 10, 11, 12, 19, 20]


def answers(method, sample, mask):
    """Each head's answers to its own queries, without what fills the rows."""
    with torch.no_grad():
        found = method(method.prepare(sample, mask=mask)).predictions
    return {name: found[name][mask.own_queries(method.tokenizer.layout, name)[1]][None] for name in found}


def test_a_sequence_never_sees_its_future():
    method = method_of()
    whole = answers(method, SAMPLE, asking(ASKED))
    for place in (10, 11, 12):  # of the joined layout; the sequence begins at 6
        other = {**SAMPLE, "words": SAMPLE["words"].clone()}
        other["words"][0, place - 6] = 1
        found = answers(method, other, asking(ASKED))
        same = ASKED.index(place) - 2
        assert torch.equal(found["words"][0, :same], whole["words"][0, :same])
        assert bool((found["words"][0, same:4] != whole["words"][0, same:4]).any(dim=-1).all()), "it sees its past"
        assert torch.equal(found["one"], whole["one"])


def test_what_is_asked_is_not_told():
    """The id that an answer should be, the last one of all, changes nothing but the loss."""
    method, other = method_of(), {**SAMPLE, "words": SAMPLE["words"].clone()}
    other["words"][0, 7] = 2
    one, two = (method(method.prepare(sample, mask=asking(ASKED))) for sample in (SAMPLE, other))
    assert all(torch.equal(one.predictions[name], two.predictions[name]) for name in one.predictions)
    assert float(one.parts["words"].detach()) != float(two.parts["words"].detach())


@pytest.mark.parametrize("gone", ["one", "words", "other"])
def test_a_modality_never_sees_another(gone):
    method = method_of()
    whole = answers(method, SAMPLE, asking(ASKED))
    spans = {"one": (0, 6), "words": (6, 18), "other": (18, 22)}
    low, high = spans[gone]
    found = answers(method, SAMPLE, asking(ASKED, [not low <= unit < high for unit in ASKED]))
    for name, values in whole.items():
        if name != gone:
            torch.testing.assert_close(found[name], values, atol=1e-5, rtol=1e-5)
    part = answers(method, SAMPLE, asking([1, 19, 20]))
    assert (part["one"][0, 0] - whole["one"][0, 0]).abs().max() > 1e-4, "queries of one modality see each other"


def test_what_fills_a_row_changes_nothing():
    method = method_of()
    whole = answers(method, SAMPLE, asking(ASKED))
    filled = answers(method, SAMPLE, asking([*ASKED, 4, 21, 7], [*[True] * 8, False, False, False]))
    for name, values in whole.items():
        torch.testing.assert_close(filled[name], values, atol=1e-5, rtol=1e-5)


def test_the_order_of_queries_changes_nothing():
    method, order = method_of(), [4, 0, 6, 2, 3, 1, 7, 5]
    mask = asking(ASKED)
    turned = replace(mask, query_ids=mask.query_ids[:, order])
    one, two = (method(method.prepare(SAMPLE, mask=each)) for each in (mask, turned))
    for name in one.parts:
        torch.testing.assert_close(two.parts[name], one.parts[name], atol=1e-6, rtol=1e-5)


def test_totals_by_hand():
    """4M's "mod" is the mean of the heads, one without answers too; its "token" weighs by answers times ids."""
    mask = asking([1, 3, 9, 10, 11])
    found = {total: method_of(total) for total in ("sum", "mean", "answers")}
    loss = {total: method(method.prepare(SAMPLE, mask=mask)) for total, method in found.items()}
    parts = {name: float(value.detach()) for name, value in loss["sum"].parts.items()}
    assert parts["other"] == 0
    assert float(loss["sum"].loss.detach()) == pytest.approx(sum(parts.values()), rel=1e-6)
    assert float(loss["mean"].loss.detach()) == pytest.approx(sum(parts.values()) / 3, rel=1e-6)
    names = {name: head.target.size for name, head in found["sum"].heads.items()}
    weights = {"one": 2 * names["one"], "words": 3 * names["words"]}
    wanted = sum(parts[name] * weight for name, weight in weights.items()) / sum(weights.values())
    assert float(loss["answers"].loss.detach()) == pytest.approx(wanted, rel=1e-6)


def test_two_heads_of_one_segment_are_refused():
    tokenizer, encoder, decoder = joined()
    target = IdTarget(IdTarget.Config(), tokenizer.part("one"))
    heads = {name: Head(decoder.head(11, "one", encoder), target, 1.0, "one") for name in ("a", "b")}
    with pytest.raises(ValueError, match="'a' and 'b' ask for one segment"):
        MaskedAutoencoder(tokenizer, RandomMasker(RandomMasker.Config()), encoder, heads, decoder=decoder)
    with pytest.raises(ValueError, match="this method has none"):
        MaskedAutoencoder(tokenizer, RandomMasker(RandomMasker.Config()), encoder, {"a": heads["a"]})


def test_modalities_of_two_sizes_are_refused():
    one, two = (BinTokenizer(BinTokenizer.Config(size=(8, n), patch=(4, 4)), 8) for n in (8, 12))
    with pytest.raises(ValueError, match="a takes input as 1 x 8 x 8 and b as 1 x 8 x 12"):
        JoinedTokenizer({"a": one, "b": two})


def test_one_vector_scores_and_embeds():
    method = method_of()
    answer = method.heads["words"].decoder
    told = torch.tensor([[0, 4]])
    assert torch.equal(answer.embed(told)[0, 1], answer.pred.weight[4])
    assert answer.kind is method.encoder.segment["words"], "encoder and decoder have one vector of a modality"
    assert keys(1).dtype == torch.int64
    assert isinstance(Layout.on_grid(2).parts()[0][1], Layout)
    assert installed().get("decoders", "core:joint").resolve() is JointDecoder
