"""The card beside every export: data, recipe, scores beside their controls, and what the run started from."""

import json
from types import SimpleNamespace

import pytest
from mim_core.cli import main
from mim_core.host.loading import installed
from mim_core.interop import model_card
from mim_core.recipes.changes import changes_of
from mim_core.runs import origins
from mim_core.runs.load import load_run

SHORT = ("--quiet", "--train.warmup-epochs", "0", "--train.workers", "0", "--train.epochs", "1")


@pytest.fixture
def exported(small_classifiers, capsys):
    """Runs export; returns the card's text."""

    def run(folder, *options):
        assert main(["export", str(folder), *options]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("Model card: ")
        with open(line.removeprefix("Model card: ")) as file:
            return file.read()

    return run


def test_it_says_what_a_reader_must_know(small_classifiers, exported):
    run = small_classifiers / "finetune"
    said = exported(run)
    scores = json.loads((run / "scores.json").read_text())["scores"]
    own = {s["column"]: f"{s['value']:.3f} ({s['error']:.3f})" for s in scores if s["row"] == "fine-tuned"}
    for words in (
        "library_name: timm",
        "trained on labels (Classifier)",
        'timm.create_model("vit_base_patch16_224"',
        "- mean of values from 0 to 1: 0.286",
        "- classes: round, square",
        "the collection `data`",
        "- classes: 2: round, square",
        "| `train.epochs` | 100.0 | 2.0 |",
        "| `method` | core:masked-autoencoder | core:classifier |",
        f"| fine-tuned | {own['accuracy']} | {own['mean class accuracy']} |",
        "| majority class | 0.500 (",
        "- `step-00000002` of a run of mim-core",
    ):
        assert words in said
    assert str(small_classifiers.parent) not in said  # names of folders are the machine's
    assert "license:" not in said.split("---")[1]


def test_names_of_classes_are_text(small_classifiers, exported, monkeypatch, tmp_path):
    """A card may be shown as HTML: names of a downloaded data set must not run there, or fetch pictures."""
    bad = ("<img src=x onerror=alert(1)>", "![x](http://host/pixel)", "`<b>`")
    contents = {"classes": ", ".join(bad)}
    monkeypatch.setattr(model_card, "_contents", lambda *_: contents)
    monkeypatch.setattr(model_card, "_what", lambda *_: model_card._inputs(SimpleNamespace(tokenizer=None), {}, bad))
    said = exported(small_classifiers / "finetune", "--out", str(tmp_path / "x"))
    prose = said.split("```")[0::2]
    assert not [text for text in prose for part in ("<img", "![", "[x]", "`<b>`") if part in text]
    assert model_card._around_code("see `a[0]<b>` [x]<c>") == "see `a[0]<b>` \\[x\\]&lt;c>"


def test_a_value_of_many_lines_is_one_row_of_the_table():
    """Such as the vocabulary that a run learned."""
    assert model_card._cell("byte pairs\na r\n| b") == "byte pairs a r \\| b"
    assert model_card._cell("x" * 200) == f"{'x' * 120} ..."


def test_without_scores_it_says_so(small_classifiers, exported, tmp_path):
    said = exported(small_classifiers, "--to", "hf-vitmae", "--out", str(tmp_path / "hf"))
    assert (tmp_path / "hf/README.md").read_text() == said
    assert "None: this run was not judged." in said
    assert "from_pretrained('hf')" in said
    assert str(tmp_path) not in said
    assert "Weights that were drawn at random." in said


def test_programs_of_both_kinds_keep_their_cards(small_classifiers, capsys, tmp_path):
    pytest.importorskip("onnxscript")
    for name, kind in (("program.pt2", "torch"), ("program.onnx", "onnx"), ("program.safetensors", "timm")):
        assert main(["export", str(small_classifiers), "--to", kind, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    cards = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    assert set(cards) == {"program.pt2.md", "program.onnx.md", "program.md"}
    assert "torch.export.load" in cards["program.pt2.md"]
    assert "onnxruntime" in cards["program.onnx.md"]
    assert "timm.create_model" in cards["program.md"]


def test_a_file_of_the_users_stays(small_classifiers, capsys, tmp_path):
    kept = tmp_path / "e.md"
    kept.write_text("my notes")
    for _ in range(2):
        assert main(["export", str(small_classifiers), "--out", str(tmp_path / "e.safetensors")]) == 0
        assert "no card of mim-core's" in " ".join(capsys.readouterr().err.split())
        assert kept.read_text() == "my notes"
        assert main(["export", str(small_classifiers), "--out", str(tmp_path / "f.safetensors")]) == 0
        assert "my notes" not in (tmp_path / "f.md").read_text()
        capsys.readouterr()


def test_licences_follow_the_weights(small_classifiers, exported, tmp_path):
    """Imported, trained on, fine-tuned, exported for timm, and started from that file."""
    exported(small_classifiers, "--to", "hf-vitmae", "--out", str(tmp_path / "theirs"))
    data = ("--data.root", str(small_classifiers.parent / "data"))
    where = ("image:mae-vit-tiny", str(tmp_path / "theirs"), "--format", "hf-vitmae")
    assert main(["import", *where, "--out", str(tmp_path / "a"), *data]) == 0
    said = exported(tmp_path / "a")
    assert "license: other" in said
    assert "- `theirs`, weights of the format `hf-vitmae`: their licence is not known here" in said
    assert main(["finetune", str(tmp_path / "a"), *SHORT]) == 0
    said = exported(tmp_path / "a/finetune", "--out", str(tmp_path / "b.safetensors"))
    start = said.split("## What it started from")[1]
    assert start.index("`theirs`") < start.index("`step-00000000` of a run")
    begun = ["pretrain", "image:mae-vit-tiny", "--twin", "--init", str(tmp_path / "b.safetensors"), *data]
    assert main([*begun, "--train.steps", "1", *SHORT[:-2], "--out", str(tmp_path / "c")]) == 0
    chain = [(each["file"].split("/")[-1], each["format"]) for each in _chain(tmp_path / "c")]
    assert chain == [
        ("theirs", "hf-vitmae"), ("step-00000000", "run"), ("step-00000004", "run"), ("b.safetensors", "export")
    ]  # fmt: skip
    assert main([*begun, "--train.steps", "2", *SHORT[:-2], "--out", str(tmp_path / "c")]) in (0, 2)
    assert len(_chain(tmp_path / "c")) == 4  # also of a run that went on


def _chain(folder):
    return origins.kept_in(json.loads((load_run(folder).checkpoint / "state.json").read_text()))


@pytest.mark.parametrize(
    ("form", "says", "licence"),
    [
        ("mae", "published under CC BY-NC 4.0", "CC BY-NC 4.0"),
        ("point-mae", "published under MIT", "MIT"),
        ("cmae", "not known here", ""),
        ("gone-with-its-plugin", "not known here", ""),
    ],
)
def test_licences_are_the_publishers(form, says, licence):
    line, found = model_card._origin({"file": "/x/weights.pth", "format": form}, installed())
    assert says in line
    assert "`weights.pth`" in line
    assert found == licence


def test_who_made_it_when_and_how(small_run):
    state = json.loads((load_run(small_run).checkpoint / "state.json").read_text())
    assert state["made"]["command"].startswith("mim-core pretrain image:mae-vit-tiny --twin --train.steps 2")
    assert state["made"]["date"].endswith("+00:00")
    assert state["made"]["device"]


def test_changes_are_those_of_the_recipe(small_run):
    from mim_core.recipes.resolve import load_recipe

    run = load_run(small_run).recipe
    found = changes_of(run, installed())
    assert found["encoder.width"] == (128, 32)  # the twin's
    assert "train.workers" not in found
    assert "masker.ratio" not in found
    assert changes_of(load_recipe("image:mae-vit-tiny", installed()), installed()) == {}
