"""What commands print as tables: nothing of it is lost, however narrow the terminal."""

import pytest
from mim_core.commands.tables import print_table
from mim_core.scores import Score

ROWS = ("majority class", "trained from scratch", "fine-tuned")
TITLE = "fine-tuned on labels: 4 classes of folders, tested on 8 samples that are held out, 2 seeds"


def printed(capsys, monkeypatch, columns, width, corner=TITLE):
    monkeypatch.setenv("COLUMNS", str(width))
    scores = [
        Score(row, column, (100 * y + x) / 1000, 0.111, error=0.222)
        for y, row in enumerate(ROWS, 1)
        for x, column in enumerate(columns, 1)
    ]
    print_table(scores, [], corner)
    return capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("width", [36, 45, 80, 132])
def test_no_digit_and_no_column_is_lost(capsys, monkeypatch, count, width):
    columns = ["accuracy", "mean class accuracy", *(f"IoU of class [{number}]" for number in range(3, count + 1))][
        :count
    ]
    said = printed(capsys, monkeypatch, columns, width)
    assert max(map(len, said.splitlines())) <= width
    for y in (1, 2, 3):
        for x in range(1, count + 1):
            assert f"{(100 * y + x) / 1000:.3f} ± 0.111 (0.222)" in said
    words = said.split()
    for name in (TITLE, *ROWS, *columns):
        assert not set(name.split()) - {*words}, name


def test_names_are_no_markup(capsys, monkeypatch):
    assert "[bold]" in printed(capsys, monkeypatch, ["[bold] of 1"], 80, "score")


def test_what_is_wider_than_the_room_is_broken_and_not_cut_off(capsys, monkeypatch):
    said = printed(capsys, monkeypatch, ["a" * 50], 20, "x" * 50)
    assert (said.count("a"), said.count("x"), said.count("0.111"), said.count("(0.222)")) == (50 + 4, 50, 3, 3)
