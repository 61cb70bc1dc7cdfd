"""Wraps the prose of the Markdown pages at 100 columns: ``python tools/wrap_docs.py``. With ``--check`` it only names
the lines that are longer. Tables, headings, code and lines that cannot be broken stay as they are."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH = 100
ITEM = re.compile(r"(\s*)([-*]|\d+\.) (?=\S)")
FIXED = re.compile(r"\s*(\||#|<|!\[|>)|    ")


def pages() -> list[Path]:
    """The pages that are wrapped. Those of data have the form of their makers."""
    globs = ("*.md", "docs/**/*.md", "plugins/*/README.md")
    return sorted(path for pattern in globs for path in ROOT.glob(pattern))


def blocks(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Runs of lines: (whether they are prose that may be wrapped, the lines). An item of a list starts a run."""
    fenced, prose = False, list[str]()
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        deeper = bool(prose) and ITEM.match(prose[0]) is not None and not FIXED.match(line.strip())
        fixed = fenced or fence or not line.strip() or (FIXED.match(line) is not None and not deeper)
        if prose and (fixed or ITEM.match(line)):
            yield True, prose
            prose = []
        if fixed:
            yield False, [line]
        else:
            prose.append(line)
        fenced ^= fence
    if prose:
        yield True, prose


def wrapped(lines: list[str]) -> list[str]:
    """A paragraph, or an item of a list with its indent."""
    item = ITEM.match(lines[0])
    first = item[0] if item else re.match(r"\s*", lines[0])[0]  # type: ignore[index]
    rest = " " * len(first)
    text = " ".join(" ".join([lines[0][len(first) :], *lines[1:]]).split())
    options = {"break_long_words": False, "break_on_hyphens": False}
    pieces = textwrap.wrap(_tied(text), WIDTH, initial_indent=first, subsequent_indent=rest, **options)  # type: ignore
    return [line.replace("\0", " ") for line in pieces]


def _tied(text: str) -> str:
    """Code spans and texts of links hold together, and no line starts with what would be an item of a list."""
    text = re.sub(r"\[[^\]]{1,40}\]\(", lambda link: link[0].replace(" ", "\0"), text)
    text = re.sub(r"`[^`]+`", lambda span: span[0].replace(" ", "\0") if len(span[0]) <= 60 else span[0], text)
    return re.sub(r" (?=([-*+#>|]|\d+[.)]) )", "\0", text)


def page(text: str) -> str:
    """A whole page."""
    return "\n".join(line for prose, lines in blocks(text) for line in (wrapped(lines) if prose else lines)) + "\n"


def too_long(text: str) -> list[int]:
    """Numbers of the lines of prose that are longer than they may be and could be broken."""
    numbers, number = [], 0
    for prose, lines in blocks(text):
        if prose and wrapped(lines) != lines:
            numbers += [number + i for i, line in enumerate(lines, 1) if len(line) > WIDTH]
        number += len(lines)
    return numbers


def main(arguments: list[str]) -> int:
    """Wraps all pages, or with ``--check`` names the lines that are too long."""
    faults = 0
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if "--check" not in arguments:
            path.write_text(page(text), encoding="utf-8")
        for number in too_long(text) if "--check" in arguments else ():
            faults += 1
            print(f"{path.relative_to(ROOT)}:{number} is longer than {WIDTH} columns. Run: python tools/wrap_docs.py")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
