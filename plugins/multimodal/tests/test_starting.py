"""--init: a run starts from one with other modalities, or of another size; ids and labels that do not fit are named."""

from pathlib import Path

import pytest
import torch
from mim_core.cli import main
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.parts.position import resampled
from mim_core.recipes.resolve import load_recipe, override, swap
from mim_core.runs.initial_weights import take_weights
from mim_multimodal.tokenizer import ClassMapTokenizer

HERE = Path("RUN")


def method_of(name, seed=0, **tables):
    run = override(load_recipe(f"multimodal:{name}", installed(), twin=True), tables, "test", installed())
    return build_method(run, seed=seed)


def same(one, other, names):
    own, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(own[name], theirs[name]) for name in names)


def of(method, *prefixes):
    found = [name for name in method.state_dict() if name.startswith(prefixes)]
    assert found
    return found


def test_a_run_of_three_modalities_starts_one_of_colour():
    three, one = method_of("multimae-vit-tiny", 1), method_of("rgb-vit-tiny", 2)
    table = one.encoder.position.table.clone()
    said = take_weights(one, three, HERE)
    assert same(one, three, of(one, "tokenizer.", "encoder.blocks", "encoder.cls_token", "heads.rgb.decoder.blocks"))
    assert torch.equal(one.encoder.position.table, table), "positions follow the new run's units"
    assert said == [
        "not used: tokenizer.parts.depth, tokenizer.parts.semseg, heads.rgb.decoder.modality.depth, "
        "heads.rgb.decoder.modality.semseg, heads.norm_rgb.decoder.modality.depth, "
        "heads.norm_rgb.decoder.modality.semseg, heads.depth, heads.semseg"
    ]


def test_a_run_of_colour_starts_one_of_three_modalities():
    three, one = method_of("multimae-vit-tiny", 1), method_of("rgb-vit-tiny", 2)
    before = {name: value.clone() for name, value in three.state_dict().items()}
    said = " ".join(take_weights(three, one, HERE))
    assert same(three, one, of(three, "tokenizer.parts.rgb", "encoder.blocks"))
    assert all(torch.equal(three.state_dict()[name], before[name]) for name in of(three, "tokenizer.parts.depth"))
    assert "starts fresh: tokenizer.parts.depth, tokenizer.parts.semseg" in said
    assert "not used" not in said
    assert "position" not in said, "they lie on the same grids"


def test_another_size_interpolates_positions_and_says_so():
    small = method_of("rgb-vit-tiny", 1)
    large = method_of("rgb-vit-tiny", 2, rgb={"tokenizer": {"size": [64, 64]}})
    said = take_weights(large, small, HERE)
    assert [line.partition(":")[0] for line in said] == [
        f"{path} of rgb"
        for path in ("encoder.position", "heads.rgb.decoder.position", "heads.norm_rgb.decoder.position")
    ]
    assert "trained at a grid of 4 x 4, here 8 x 8; they are interpolated to that grid" in said[0]
    wanted = resampled(small.encoder.position.table, (4, 4), (8, 8))
    assert torch.equal(large.encoder.position.table, wanted)
    assert same(large, small, of(small, "encoder.blocks", "tokenizer."))


def test_what_is_learned_of_the_encoder_must_fit():
    for tables, words in (
        ({"encoder": {"width": 64}}, r"does not fit .*: tokenizer.parts.rgb.proj.weight is \(32, 3, 8, 8\) there"),
        ({"encoder": {"depth": 3}}, "does not fit .*: encoder.blocks.2.norm1.weight"),
        ({"rgb": {"tokenizer": {"patch": [4, 4]}}, "masker": {"visible": 8}}, "tokenizer.parts.rgb.proj.weight"),
    ):
        with pytest.raises(MimError, match=words):
            take_weights(method_of("rgb-vit-tiny", **tables), method_of("rgb-vit-tiny"), HERE)


def test_a_tokenizer_that_does_not_fit_can_be_left_out():
    """Weights of other classes: the others' weights are of use all the same."""
    other = method_of("multimae-vit-tiny", semseg={"tokenizer": {"classes": 20}})
    with pytest.raises(MimError, match=r"(?s)its tokenizer of semseg does not fit .*--use semseg.tokenizer=none"):
        take_weights(method_of("multimae-vit-tiny"), other, HERE)
    run = override(load_recipe("multimodal:multimae-vit-tiny", installed(), twin=True), {}, "test", installed())
    assert "not used: tokenizer.parts.semseg" in " ".join(
        take_weights(build_method(swap(run, "semseg.tokenizer", "none", installed())), other, HERE)
    )


def test_no_modality_in_common_is_refused():
    with pytest.raises(MimError, match=r"no tokenizer of this recipe's. It has depth, points; here: rgb"):
        take_weights(method_of("rgb-vit-tiny"), method_of("points-depth-vit-tiny"), HERE)


def test_a_table_without_a_vector_for_unknown_ids_gives_the_others():
    """The official MultiMAE weights have none for 255."""
    plain = method_of("multimae-vit-tiny", 1, semseg={"tokenizer": {"unknown": False}})
    more = method_of("multimae-vit-tiny", 2)
    own = more.tokenizer.part("semseg").class_embed.weight[-1].detach().clone()
    said = take_weights(more, plain, HERE)
    assert said == ["tokenizer.parts.semseg.class_embed.weight: 14 of 15 vectors are from there, the others are fresh"]
    table = more.tokenizer.part("semseg").class_embed.weight
    assert torch.equal(table[:-1], plain.tokenizer.part("semseg").class_embed.weight)
    assert torch.equal(table[-1], own)
    with pytest.raises(MimError, match=r"class_embed.weight is \(15, 64\) there and \(14, 64\) here"):
        take_weights(plain, more, HERE)


def test_an_id_without_a_vector_is_named():
    tokenizer = ClassMapTokenizer(ClassMapTokenizer.Config(size=(4, 4), patch=(2, 2), classes=5, unknown=False), 8)
    maps = torch.zeros(2, 4, 4, dtype=torch.int64)
    assert tokenizer.embed(tokenizer.split({"semseg": maps}).values).shape == (2, 4, 8)
    for wrong, words in (
        (255, "the id 255, which means no class; .* 0 to 4 only.*--semseg.tokenizer.unknown"),
        (5, "5;"),
    ):
        maps[1, 2, 3] = wrong
        with pytest.raises(MimError, match=words):
            tokenizer.split({"semseg": maps})


def test_the_command_says_what_is_fresh(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    short = ["--train.epochs", "0.02", "--train.warmup-epochs", "0", "--quiet"]
    assert main(["pretrain", "rgb-vit-tiny", "--twin", "--out", str(first), *short], "multimodal") == 0
    capsys.readouterr()
    given = ["pretrain", "multimae-vit-tiny", "--twin", "--init", str(first), "--out", str(second), *short, "--dry-run"]
    assert main(given, "multimodal") == 0
    assert "starts fresh: tokenizer.parts.depth, tokenizer.parts.semseg" in capsys.readouterr().err
