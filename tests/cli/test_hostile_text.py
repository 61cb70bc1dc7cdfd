"""Text of others - names of files, classes and folders, notes - steers neither a terminal nor a page, and a name that
is no UTF-8 is read, or refused by name."""

import io
import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
from mim_core.cli import main
from mim_core.errors import MimError, first_rank, warn
from mim_core.evaluation import report
from mim_core.host.loading import installed
from mim_core.scores import Score
from mim_core.terminal import console, escaped_output, tell
from mim_core.text import shown
from PIL import Image

SCRIPT = "<script>alert(1)<"  # a name cannot hold a slash
STEERING = "\x1b]0;PWNED\x07\x1b[2J\x9b\u202e"
LATIN = os.fsdecode(b"caf\xe9")


def pictures(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (28, 28), (200, 10, 10)).save(folder / name)
    return folder


def short(folder, out, *more):
    data = ["--data.root", str(folder), "--train.batch-size", "4", "--train.epochs", "2", "--train.warmup-epochs", "0"]
    return ["pretrain", "mae-vit-tiny", "--twin", *data, "--train.workers", "0", "--out", str(out), *more]


def test_what_cannot_be_printed_is_escaped():
    assert shown(f"a\n\tb {LATIN} é 漢") == "a\n\tb caf\\xe9 é 漢"
    assert shown(STEERING) == "\\x1b]0;PWNED\\x07\\x1b[2J\\x9b\\u202e"
    assert shown("a\rb\x85\ud812") == "a\\x0db\\x85\\ud812"


def test_every_way_to_the_terminal_escapes(capsys):
    warn(STEERING)
    tell(STEERING + LATIN)
    tell(STEERING, error=True)
    console().print(STEERING, markup=False)
    console(error=True, wide=False).print(STEERING, markup=False)
    out, err = capsys.readouterr()
    assert not {*out, *err} & set("\x1b\x07\x9b\u202e")
    assert (out + err).count("PWNED") == 5


def test_an_error_with_such_a_name(refused):
    assert "\\x1b[2J" in refused(*short(f"no{STEERING}", "run"), plugin="image")


def test_a_bad_file_with_such_a_name(tmp_path, capsys):
    data = pictures(tmp_path / "data", "a.png", "b.png", "c.png", "d.png")
    (data / f"{STEERING}.png").write_text("no picture")
    assert main(short(data, tmp_path / "run", "--data.max-bad", "0.5"), plugin="image") == 0
    said = "".join(capsys.readouterr())
    assert "\\x1b]0;PWNED\\x07\\x1b[2J" in said
    assert not set(said) & set("\x1b\x07\x9b\u202e")


def test_a_page_holds_no_markup_of_others(tmp_path, monkeypatch):
    folder = tmp_path / f"out{SCRIPT}"
    data = pictures(tmp_path / f"data{SCRIPT}", *(f"{n}.png" for n in range(4)))
    assert main(short(data, folder, "--quiet"), plugin="image") == 0
    row = {"row": f"pre-trained {SCRIPT}", "column": f"knn {SCRIPT}", "value": 0.5, "spread": None}
    scores = [{key: value for key, value in row.items() if key in Score.__dataclass_fields__}]
    notes = {"title": f"title {SCRIPT}", "scores": scores, "notes": [f"note {SCRIPT}"]}
    (folder / "scores.json").write_text(json.dumps(notes))
    checkpoint = max((folder / "checkpoints").iterdir())
    state = json.loads((checkpoint / "state.json").read_text())
    del state["digest"]  # as in runs of before
    state["imported"] = {"format": SCRIPT, "file": SCRIPT, "sizes": [SCRIPT]}
    (checkpoint / "state.json").write_text(json.dumps(state))
    run, *rest = report.load_run(folder, installed())
    monkeypatch.setattr(report, "load_run", lambda *_: (replace(run, recipe=SCRIPT), *rest))
    monkeypatch.setattr(report, "_pictures", lambda *_: [_head()])
    page = report.write_report(folder, installed()).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;") >= 12
    assert "<svg" in page or not (folder / "metrics.jsonl").read_text().count("\n") > 1  # curves stay markup


def _head():
    rows = {SCRIPT: ["data:image/png;base64,x"]}
    return {"name": SCRIPT, "where": SCRIPT, "needs_truth": False, "rows": rows, "films": [], "drawn": False,
            "page": None, "link": "report-x.html"}  # fmt: skip


# ---- names that are no UTF-8 -----------------------------------------------------------------------------------------


def test_files_and_classes_of_such_names(tmp_path, capsys):
    data = tmp_path / "data"
    for name in (LATIN, "other"):
        pictures(data / name, *(f"{LATIN}{n}.png" for n in range(8)))
    run = tmp_path / "run"
    assert main(short(data, run), plugin="image") == 0
    assert main(["evaluate", str(run), "--on", "knn"], plugin="image") == 0
    assert main(["finetune", str(run), "--train.epochs", "1", "--train.warmup-epochs", "0"], plugin="image") == 0
    out, err = capsys.readouterr()
    assert "could not" not in err
    assert "Report: " in out


def test_a_run_s_folder_of_such_a_name_is_refused_by_name(tmp_path, refused):
    data = pictures(tmp_path / "data", "a.png", "b.png")
    for more in ((), ("--dry-run",)):
        said = refused(*short(data, tmp_path / LATIN, "--quiet", *more), plugin="image")
        assert "caf\\xe9 is not UTF-8" in said
    assert not (tmp_path / LATIN).exists()
    assert "caf\\xe9 is not UTF-8" in refused("evaluate", tmp_path / LATIN, "--on", "knn")


def test_a_data_folder_of_such_a_name_is_refused_by_name(tmp_path, refused):
    data = pictures(tmp_path / LATIN, "a.png", "b.png")
    for more in ((), ("--dry-run",)):
        said = refused(*short(data, tmp_path / "run", "--quiet", *more), plugin="image")
        assert "--data.root" in said
        assert "caf\\xe9: this name is not UTF-8" in said
    assert not (tmp_path / "run").exists()


# ---- who speaks, and what a failed report is -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "0"}, True),
        ({"RANK": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, False),
    ],
)
def test_one_rank_speaks(environ, first, monkeypatch, capsys):
    for name in ("RANK", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert first_rank() is first
    warn("something")
    assert bool(capsys.readouterr().err) is first


def test_a_report_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    data = pictures(tmp_path / "data", *(f"{n}.png" for n in range(4)))
    broken = report._pictures

    def fail(*_):
        raise RuntimeError("no pictures today")

    monkeypatch.setattr(report, "_pictures", fail)
    run = tmp_path / "run"
    assert main(short(data, run), plugin="image") == 0
    out, err = capsys.readouterr()
    assert "report.html could not be written" in err
    assert f"no pictures today Once that is fixed: mim-core show {run}" in err
    assert "Report:" not in out
    assert (run / "checkpoints").is_dir()
    with pytest.raises(RuntimeError, match="no pictures today"):
        main(["show", str(run)])
    monkeypatch.setattr(report, "_pictures", broken)
    assert main(["show", str(run)]) == 0
    shutil.rmtree(run / "checkpoints")
    assert not report.try_report(run, installed())
    with pytest.raises(MimError):
        report.write_report(run, installed())


# ---- values of options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [("--train.epochs", STEERING), (f"--{STEERING}", "1"), (STEERING,), ("--data.crop", "0.2", STEERING)]
)
def test_values_of_options_are_shown_and_not_obeyed(given, capfd):
    assert main(["pretrain", "mae-vit-tiny", "--twin", *given], plugin="image") == 2
    said = "".join(capfd.readouterr())
    assert "PWNED" in said
    assert not set(said) & set("\x1b\x07\x9b\u202e")


def test_colours_of_a_terminal_stay_and_nothing_else_does(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with escaped_output():
        print(f"\x1b[31mred\x1b[0m {STEERING}", file=sys.stderr)
    assert screen.getvalue() == f"\x1b[31mred\x1b[0m {shown(STEERING)}\n"
