"""Reports whose data source has a page to turn samples by hand."""

import html
import json
import re
from dataclasses import replace

import pytest
import torch
from mim_core.cli import main
from mim_core.data.noise import Noise
from mim_core.data.source import Picture
from mim_core.evaluation import reconstruction, report
from mim_core.host.loading import installed
from mim_core.scores import PRETRAINED, RAW, UNTRAINED, Score, best_cells, headline, verdict


class Turned(Noise):
    """Noise that can be turned: remembers what it was shown."""

    text: str | None = "<!doctype html>\n<title>Turned \N{SNOWMAN}</title>\n"

    def page(self, modality, rows, names=()):
        self.asked, self.names = (modality, rows), names
        return self.text

    def picture(self, modality, values):
        return Picture("image/png", b"drawn", drawn=True)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy") / "run"
    arguments = ["--use", "data=core:noise", "--train.epochs", "0.00032", "--quiet", "--out", str(folder)]
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", *arguments]) == 0
    return folder


@pytest.fixture
def write(noisy, monkeypatch):
    """Writes the report from a source of this class; returns (report.html, the source)."""

    def run(kind, samples=8):
        made = []

        def make(run, method):
            made.append(kind(Noise.Config(), method.tokenizer.shapes))
            return made[0]

        monkeypatch.setattr(report, "make_source", make)
        return report.write_report(noisy, installed(), samples).read_text(), made[0]

    yield run
    for path in noisy.glob("*report*"):
        path.unlink()


def pages(folder):
    return {path.name for path in folder.iterdir() if "report" in path.name}


def test_a_page_is_written_beside_the_report_and_linked(write, noisy):
    said, source = write(Turned)
    (link,) = re.findall(r'<a href="([^"]+)"', said)
    assert re.fullmatch(r"report-[\w.-]+\.html", link)
    assert pages(noisy) == {"report.html", link}  # and nothing under a temporary name
    assert (noisy / link).read_text(encoding="utf-8") == Turned.text
    assert "Turned" not in said  # the report itself stays small
    modality, rows = source.asked
    assert {name: value.shape for name, value in rows.items()} == dict.fromkeys(
        ("input", "masked", "rebuilt"), (8, *source.shapes[modality])
    )
    differs = rows["input"] != rows["rebuilt"]
    assert differs.any()
    assert not (differs & (rows["masked"] == rows["input"])).any()  # what is visible is shown as it is


def test_no_page_no_link(write, noisy):
    said, _ = write(Noise)
    assert "<a href" not in said
    assert pages(noisy) == {"report.html"}


def test_a_stale_page_goes_and_other_files_stay(write, noisy):
    write(Turned)
    kept = noisy / "report-of-mine.html"
    kept.write_text("a file of the user's")
    assert len(pages(noisy)) == 3
    write(type("Other", (Turned,), {"text": "<!doctype html>\n<title>again</title>\n"}))
    (found,) = pages(noisy) - {"report.html", kept.name}
    assert "again" in (noisy / found).read_text()
    write(Noise)
    assert pages(noisy) == {"report.html", kept.name}


def test_a_head_s_name_is_made_fit_for_a_file(write, noisy, monkeypatch):
    real = reconstruction.reconstruct
    monkeypatch.setattr(report, "reconstruct", lambda *given: {"../a b/<c>": next(iter(real(*given).values()))})
    said, _ = write(Turned)
    (link,) = re.findall(r'<a href="([^"]+)"', said)
    assert link == html.unescape(link) == "report-..-a-b--c-.html"
    assert (noisy / link).exists()


def test_blank_units_are_explained_where_there_are_some(write, monkeypatch):
    assert "not asked for are blank" not in write(Turned)[0]
    real = reconstruction.reconstruct

    def partly(*given):
        return {name: replace(each, unasked=True) for name, each in real(*given).items()}

    monkeypatch.setattr(report, "reconstruct", partly)
    assert "hidden ones that the method was not asked for are blank" in write(Turned)[0]


@pytest.mark.parametrize(("kind", "across"), [(Turned, 6), (Noise, 12)])
def test_rows_stay_together_where_there_are_many_samples(write, kind, across):
    """Input, masked and rebuilt of the first samples, then of the next."""
    said, _ = write(kind, samples=across + 2)
    strips = re.findall(r'<div class="strip( drawn)?"><div>(\w+)</div><div>(.*?)</div></div>', said)
    assert [(label, text.count("<img")) for _, label, text in strips] == [
        *((label, across) for label in ("input", "masked", "rebuilt")),
        *((label, 2) for label in ("input", "masked", "rebuilt")),
    ]
    assert {drawn for drawn, _, _ in strips} == {" drawn" if kind is Turned else ""}


def test_sources_have_no_page_unless_they_say_so():
    assert Noise(Noise.Config(), {"a": (3,)}).page("a", {"input": torch.zeros(1, 3)}) is None


def test_a_column_without_a_score_of_the_run_is_not_lost():
    """Such as the pixels of anomalies, where a method scores whole pictures alone."""
    values = {UNTRAINED: 0.5, RAW: 0.6, PRETRAINED: 0.7}
    scores = [Score(row, "image", value) for row, value in values.items()]
    said = verdict([*scores, Score(RAW, "pixel", 0.6)])
    assert said == [f"The pre-trained encoder beats the {row} in every column." for row in list(values)[:2]]


# ---- what a reader sees first ----------------------------------------------------------------------------------------


def test_the_verdict_stands_first_beside_its_controls(small_classifiers):
    assert main(["show", str(small_classifiers / "finetune")]) == 0
    said = (small_classifiers / "finetune/report.html").read_text()
    assert said.index('class="verdict"') < said.index("<h2>")
    assert re.search(r"accuracy \d\.\d{3}, majority class 0\.500: (no )?better than", said)
    assert "prefers-color-scheme: dark" in said
    rows = {"majority class": 0.1, "raw input": 0.5, "untrained encoder": 0.39, "pre-trained encoder": 0.4}
    scores = [Score(row, "linear", value) for row, value in rows.items()]
    scores += [Score(row, "error", value, None, True) for row, value in rows.items() if row != "majority class"]
    scores += [Score("pre-trained encoder, shuffled", "error", 0.0, None, True)]
    assert headline(scores, PRETRAINED) == [
        "linear 0.400, majority class 0.100, raw input 0.500, untrained encoder 0.390: no better than the raw input.",
        "error 0.400, raw input 0.500, untrained encoder 0.390: no better than the untrained encoder.",
        "Try: train longer (--train.epochs), a patch or an input size that suits the data, or finetune, which trains "
        "the whole encoder.",
    ]
    assert best_cells(scores, PRETRAINED) == set()
    better = [replace(score, value=0.6) if score.row == "pre-trained encoder" else score for score in scores[:4]]
    assert best_cells(better, PRETRAINED) == {("pre-trained encoder", "linear")}
    assert headline(better, PRETRAINED)[0].endswith(": better than all of these.")
    assert len(headline(better, PRETRAINED)) == 1
    assert headline([], PRETRAINED) == []
    level = [Score(PRETRAINED, "linear", 0.5004), Score(UNTRAINED, "linear", 0.5)]
    assert "no better than the untrained encoder" in headline(level, PRETRAINED)[0], "it is shown as the same"
    assert best_cells(level, PRETRAINED) == set()
    assert "does not beat the untrained encoder" in " ".join(verdict(level))
    columns = ("image AUROC, highest", "linear", "linear, 100 labels")
    alone = [Score(row, c, 0.5) for row in ("chance", PRETRAINED) for c in columns]
    assert headline(alone, PRETRAINED, labelled=False) == [
        "image AUROC, highest 0.500, chance 0.500: no better than the chance.",
        "linear 0.500, chance 0.500: no better than the chance.",
        "Try: train longer (--train.epochs), a patch or an input size that suits the data.",
    ]


def test_our_row_is_bold_only_where_it_wins(small_classifiers):
    folder = small_classifiers / "finetune"
    kept = (folder / "scores.json").read_text()
    rows = {"majority class": (0.5, 0.5), "trained from scratch": (0.6, 0.8), "fine-tuned": (0.7, 0.7)}
    scores = [
        {"row": row, "column": column, "value": value, "spread": None}
        for row, values in rows.items()
        for column, value in zip(("accuracy", "recall"), values, strict=True)
    ]
    try:
        (folder / "scores.json").write_text(json.dumps({"scores": scores, "notes": []}))
        said = report.write_report(folder, installed()).read_text()
    finally:
        (folder / "scores.json").write_text(kept)
    assert re.findall(r'<td class="wins">([^<]+)', said) == ["0.700"]
    assert "Try: more labelled samples" in said


def test_what_is_taken_for_what(small_classifiers):
    from mim_core.evaluation.mistakes import mistakes_of
    from mim_core.runs.load import load_run

    run, method, _ = load_run(small_classifiers / "finetune")
    source = report.make_source(run, method)
    with torch.no_grad():
        method.head[-1].bias += torch.tensor([9.0, -9.0])  # it says "round" of everything
    found = mistakes_of(method, source, torch.device("cpu"), 3)
    assert (found.classes, found.matrix, found.others) == (("round", "square"), [[2, 0], [2, 0]], [0, 0])
    assert (found.asked, found.split, found.wrong) == (4, 4, 2)
    assert {(each.truth, each.answer) for each in found.worst} == {("square", "round")}
    assert all(each.name.startswith("square/") and each.share > 0.9 for each in found.worst)
    assert found.worst[0].share >= found.worst[1].share
    said = (small_classifiers / "finetune/report.html").read_text()
    assert "What is taken for what" in said


def test_date_device_size_command_and_changes(small_run):
    said = report.write_report(small_run, installed()).read_text()
    assert re.search(r"<td>made on</td><td>\d{4}-\d\d-\d\d \d\d:\d\d UTC, \w", said)
    assert "<td>command</td><td>mim-core pretrain image:mae-vit-tiny --twin" in said
    assert re.search(r"<td>size</td><td>[\d,]+ parameters; inputs image 1 x 28 x 28", said)
    assert re.search(r"<td>encoder.width</td><td>128</td><td>32</td>", said)
    assert said.index("encoder.width</td>") < said.index("All options")
    assert "Not judged yet: mim-image evaluate" in said


def test_without_an_evaluation_of_its_own_the_next_step_is_said(small_run):
    from mim_core.runs.load import load_run

    run, method, _ = load_run(small_run)
    plain = replace(run, evaluate=replace(run.evaluate, on=()))
    said = report._unjudged(plain, method, small_run)
    assert said == f"image:mae-vit-tiny names no evaluation of its own. Next: mim-image evaluate {small_run}"


def test_curves_have_points_and_errors(tmp_path):
    from mim_core.evaluation import curves
    from mim_core.recipes.config import TrainConfig

    train = TrainConfig()
    assert [train.readings(steps) for steps in (1, 49, 100, 499, 500, 100_000)] == [1, 1, 2, 9, 10, 10]
    assert all(steps // train.readings(steps) >= 50 for steps in range(50, 3000))
    assert replace(train, log_every=7).readings(20) == 7
    scores = [{"row": "encoder now", "column": "k-NN", "value": 0.8, "spread": None}]
    assert curves._error({"test": 100, "scores": scores}, "k-NN") == pytest.approx(0.04)
    assert curves._error({"scores": scores}, "k-NN") == 0
    assert curves._error({"test": 100, "scores": [{**scores[0], "spread": 0.01}]}, "k-NN") == 0.01


def test_what_a_method_measures_has_curves():
    from mim_core.evaluation import curves

    first = {"step": 1, "epoch": 0.1, "loss": 2.0, "loss/rgb": 1.0, "grad_norm": 1.0, "lr": 0.1, "time/data": 0.5}
    first |= {"effective_rank": 3.0, "usage/rgb": 0.5, "usage/depth": 0.25, "perplexity/rgb": 7.0, "mfu": 0.3}
    lines = [first, {**first, "step": 2, "epoch": 0.2}]
    panels = [
        ("effective rank", ["effective_rank"]),
        ("usage", ["usage/rgb", "usage/depth"]),
        ("perplexity", ["perplexity/rgb"]),
    ]
    assert curves.further(lines) == panels
    drawn = curves.draw(lines, [])
    for title, names in panels:
        assert f"<!-- {title} -->" in drawn
        assert len(names) == 1 or all(f"<!-- {name} -->" in drawn for name in names)
    assert "<!-- mfu -->" not in drawn
    del lines[1]["usage/depth"]  # of an older version
    assert curves.draw(lines, [])


def test_the_page_to_turn_has_names(write, noisy):
    _, source = write(type("Named", (Turned,), {"name_of": lambda self, index: f"shape {index}"}), samples=3)
    assert list(source.names) in ([], ["shape 0", "shape 1", "shape 2"])


def test_long_numbers_are_rounded_and_words_are_not():
    assert report._option([0.043835616438356165, 3, "0.123456789"]) == "0.0438356, 3, 0.123456789"
    assert report._option(1e-6) == "1e-06"
