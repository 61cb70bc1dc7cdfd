"""Training with several seeds: a run for each, and one table."""

import csv
import json
import shutil
import statistics
from types import SimpleNamespace

import pytest
from mim_core.cli import main
from mim_core.commands import seeds as training
from mim_core.runs import checkpoint

SHORT = ["--train.workers", "0", "--train.batch-size", "16", "--train.warmup-epochs", "0", "--train.steps", "4"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, first_pictures):
    folder = tmp_path_factory.mktemp("seeds") / "run"
    data = ["--data.root", str(first_pictures(200, 60)), "--train.steps", "2", "--train.workers", "0"]
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", "--quiet", *data, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def both(pretrained):
    """Two seeds fine-tuned, and two from scratch."""
    assert main(["finetune", str(pretrained), *SHORT, "--seeds", "2", "--train.seed", "5", "--quiet"]) == 0
    scratch = ["--scratch", "--seeds", "2", "--train.seed", "5", "--quiet"]
    assert main(["finetune", str(pretrained), *SHORT, *scratch]) == 0
    return pretrained


def table(folder):
    return json.loads((folder / "scores.json").read_text())


def cells(folder):
    return {(s["row"], s["column"]): s for s in table(folder)["scores"]}


def test_the_table_is_the_mean_and_the_deviation_of_its_runs(both):
    folder = both / "scratch"
    seeds = [cells(folder / f"seed-{seed}") for seed in (5, 6)]
    assert table(folder)["seeds"] == [5, 6]
    for row in ("trained from scratch", "fine-tuned"):
        values = [each[row, "accuracy"]["value"] for each in seeds]
        found = cells(folder)[row, "accuracy"]
        assert found["value"] == pytest.approx(statistics.fmean(values))
        spread = statistics.stdev(values)
        assert (found["spread"] or 0.0) == pytest.approx(spread)
        assert found["error"] == pytest.approx(statistics.fmean([s[row, "accuracy"]["error"] for s in seeds]))
    assert cells(folder)["majority class", "accuracy"]["spread"] is None
    notes = table(folder)["notes"]
    assert any("over 2 seeds, 5, 6" in note for note in notes)
    assert sum(note.startswith("Fine-tuning ") for note in notes) == 1


def test_what_wants_one_run_names_those_of_the_seeds(both, tmp_path, capsys):
    assert main(["export", str(both / "scratch"), "--to", "torch"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds a run of each seed: seed-5, seed-6. Name one, such as" in said


def test_runs_of_the_seeds_differ_and_share_their_start(both):
    recipes = [(both / f"finetune/seed-{seed}/recipe.toml").read_text() for seed in (5, 6)]
    different = [pair for pair in zip(*(recipe.splitlines() for recipe in recipes), strict=True) if pair[0] != pair[1]]
    assert different == [("seed = 5", "seed = 6")]
    losses = [(both / f"finetune/seed-{seed}/metrics.jsonl").read_text() for seed in (5, 6)]
    assert losses[0] != losses[1]


def test_what_is_done_is_not_done_again_and_what_lacks_is(both, tmp_path, capsys):
    folder = tmp_path / "some"
    shutil.copytree(both / "finetune", folder)
    shutil.rmtree(folder / "seed-6")
    (folder / "scores.json").unlink()
    before = (folder / "seed-5/metrics.jsonl").read_text()
    again = ["finetune", str(both), *SHORT, "--seeds", "2", "--train.seed", "5", "--out", str(folder)]
    assert main(again) == 0
    assert (folder / "seed-5/metrics.jsonl").read_text() == before
    assert cells(folder)["fine-tuned", "accuracy"]["value"] == pytest.approx(
        cells(both / "finetune")["fine-tuned", "accuracy"]["value"]
    )
    assert "2 seeds" in capsys.readouterr().out


def test_evaluate_judges_all_of_them(both, capsys):
    folder = both / "finetune"
    before = cells(folder)
    assert main(["evaluate", str(folder), "--evaluate.batch-size", "30"]) == 0
    after = cells(folder)
    assert after["fine-tuned", "accuracy"]["value"] == pytest.approx(before["fine-tuned", "accuracy"]["value"])
    assert ("trained from scratch", "accuracy") in after
    assert main(["evaluate", str(folder), "--on", "knn"]) == 0
    features = json.loads((folder / "probes.json").read_text())
    assert {score["column"] for score in features["scores"]} >= {"k-NN"}
    assert "over 2 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("finetune", [], "holds the runs of 2 seeds"),
        ("finetune/seed-5", ["--seeds", "2"], "holds a run of one seed"),
        ("new", ["--seeds", "0"], "--seeds must be 1 to 100"),
    ],
)
def test_what_is_refused(both, place, options, message, capsys):
    out = ["--out", str(both / place)]
    assert main(["finetune", str(both), *SHORT, "--train.seed", "5", *out, *options, "--quiet"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert checkpoint.newest(both / "finetune/seed-5") is not None
    assert not (both / "new").exists()


def test_a_plan_says_how_often(both, capsys):
    out = ["--out", str(both / "planned"), "--dry-run"]
    assert main(["finetune", str(both), *SHORT, "--seeds", "3", *out]) == 0
    assert "The same 3 times, with the seeds 0 to 2" in " ".join(capsys.readouterr().out.split())
    assert not (both / "planned").exists()


def test_scores_of_each_class_are_written_and_shown(both):
    folder = both / "finetune/seed-5"
    rows = list(csv.DictReader((folder / "classes.csv").read_text().splitlines()))
    matrix = list(csv.reader((folder / "confusion.csv").read_text().splitlines()))
    counts = [[int(cell) for cell in row[1:]] for row in matrix[1:]]
    accuracy = sum(row[number] for number, row in enumerate(counts)) / sum(map(sum, counts))
    assert accuracy == pytest.approx(cells(folder)["fine-tuned", "accuracy"]["value"])
    assert [int(row["samples"]) for row in rows] == [sum(row) for row in counts]
    for number, (row, own) in enumerate(zip(rows, counts, strict=True)):
        assert float(row["recall"]) == pytest.approx(own[number] / sum(own), abs=1e-6)
        got = sum(each[number] for each in counts)
        assert (row["precision"] == "") == (got == 0)
        assert got == 0 or float(row["precision"]) == pytest.approx(own[number] / got, abs=1e-6)
    assert json.loads((folder / "classes.json").read_text())[0]["class"] == rows[0]["class"]
    page = (folder / "report.html").read_text()
    assert "Scores of each class" in page
    assert all(row["class"] in page for row in rows)


def test_what_comes_next_is_said_in_the_name_of_the_program(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(training.loop, "train", lambda *_, **__: True)
    monkeypatch.setattr(training, "judge", lambda *_, **__: True)
    run = SimpleNamespace(world=SimpleNamespace(first=True), folder=tmp_path)
    assert training._finished(run, None, quiet=False, alone=True, program="mim-pointcloud")
    said = capsys.readouterr().out
    assert f"Next: mim-pointcloud predict {tmp_path} FILES, or mim-pointcloud export {tmp_path}" in said
