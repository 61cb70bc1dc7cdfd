"""A vocabulary of byte pairs trained on the captions at hand, kept in the run's recipe."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from mim_core.cli import main
from mim_core.errors import MimError
from mim_core.runs.load import load_run
from mim_multimodal import captions
from mim_multimodal.own_vocabulary import LEAST, OwnVocabulary, trained

sys.path.insert(0, str(Path(__file__).parent))
from aligned_items import items, source

pytest.importorskip("tokenizers")
TEXTS = ["a red door far left", "a red lamp near right", "Two red doors"] * 3


@pytest.fixture(scope="module")
def own():
    return OwnVocabulary(trained(TEXTS, 300))


def test_the_same_texts_give_the_same_vocabulary(own):
    assert trained(TEXTS, 300) == own.text
    assert trained([*TEXTS, "other words, other words"], 300) != own.text
    assert LEAST < own.size <= 300


def test_words_that_were_seen_are_few_ids_and_all_others_can_be_written(own):
    assert len(own.encode("a red door")) <= 4 < len(own.encode("zebra grazing"))
    for text in ("a  RED door\nfar left", "zebra, \u00e9t\u00e9 \u732b!"):
        assert own.decode(own.encode(text), "_") == " ".join(text.lower().split())
    red = own.encode("red")
    assert own.decode([*red, own.size, *red], "_") == "red _ red"


def test_a_caption_has_start_end_and_padding(own):
    ids = captions.encode_caption("a red door", 8, own).tolist()
    body = own.encode("a red door")
    assert ids == [1, *body, 2, *[0] * (6 - len(body))]
    assert captions.encode_caption("a red door " * 9, 8, own).tolist()[-1] == 2, "cut before its end"
    assert captions.decode_caption(ids, own=own) == "a red door"


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(MimError, match=r"--caption\.tokenizer\.vocabulary 512"):
        trained(TEXTS, 200)
    items(tmp_path)
    (tmp_path / "captions.csv").write_text("path,caption\n" + "".join(f"train/a/{i},a door\n" for i in (1, 2)))
    data = source(
        tmp_path, {"depth": (1, 64, 64), "caption": (6,)}, missing="skip", vocabulary="own", learned=trained(TEXTS, 300)
    )
    with pytest.raises(MimError, match=r"vocabulary has .* ids and the tokenizer 260"):
        data.take_ids({"caption": 260})
    with pytest.raises(MimError, match=r"--caption\.tokenizer\.length 3 at least"):
        source(tmp_path, {"depth": (1, 64, 64), "caption": (2,)}, missing="skip", vocabulary="own")
    with pytest.raises(MimError, match="is no vocabulary"):
        OwnVocabulary("words").encode("a")


def test_a_smaller_tokenizer_than_clips_is_refused(tmp_path):
    pytest.importorskip("open_clip")
    items(tmp_path)
    (tmp_path / "captions.csv").write_text("path,caption\n" + "".join(f"train/a/{i},a door\n" for i in (1, 2)))
    with pytest.raises(MimError, match=r"--data\.vocabulary own"):
        source(tmp_path, {"depth": (1, 64, 64), "caption": (6,)}, missing="skip").take_ids({"caption": 512})


def test_a_run_opens_alone_and_goes_on_with_its_vocabulary(tmp_path, capsys):
    """Where captions came since, and where the data are gone."""
    root = items(tmp_path / "data")
    rows = "".join(f"train/{name},a red door\ntest/{name},a lamp\n" for name in ("a/1", "a/2", "b/1"))
    table = root / "captions.csv"
    table.write_text("path,caption\n" + rows)
    run = tmp_path / "run"
    start = ["pretrain", "multimodal:4m-vit-tiny", "--twin", "--data.root", str(root), "--data.classes", "64"]
    start += ["--semseg.tokenizer.names", "64", "--train.batch-size", "2", "--train.workers", "0", "--quiet"]
    start += ["--train.warmup-epochs", "0", "--out", str(run), "--train.epochs"]
    assert main([*start, "2"]) == 0, capsys.readouterr().err
    learned = load_run(run).recipe.parts["data"].options.learned
    assert "do or" in learned
    table.write_text(table.read_text().replace("a red door", "yellow yellow"))
    assert main([*start, "2"]) == 0, capsys.readouterr().err
    assert load_run(run).recipe.parts["data"].options.learned == learned
    new = items(tmp_path / "new")
    shutil.rmtree(root)
    options = ["--given", "rgb", "--predict", "caption", "--quiet", "--out", str(tmp_path / "made")]
    assert main(["predict", str(run), str(new / "test"), *options]) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "made").rglob("*-caption.txt"))) == 3
    ids = torch.tensor(OwnVocabulary(learned).encode("a red door"))
    assert int(ids.max()) < load_run(run).method.tokenizer.part("caption").names
