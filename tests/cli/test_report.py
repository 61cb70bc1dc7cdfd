"""Reports whose data source has a page to turn samples by hand."""

import html
import re

import pytest
import torch
from mim_core.cli import main
from mim_core.data.noise import Noise
from mim_core.data.source import Picture
from mim_core.evaluation import reconstruction, report
from mim_core.host.loading import installed


class Turned(Noise):
    """Noise that can be turned: remembers what it was shown."""

    text: str | None = "<!doctype html>\n<title>Turned \N{SNOWMAN}</title>\n"

    def page(self, modality, rows):
        self.asked = (modality, rows)
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
