"""Every block of docs/plugins.md, in order, in an empty folder: files are written, commands run, outputs compared.

The word after the language says what a block is: ``file=PATH`` is written, ``append=PATH`` goes to the end of a file,
``console`` holds commands after ``$`` and what they print, ``exit=N`` is their exit code. In an output a line ``...``
stands for any lines, and ``...`` within a line for any text; runs of blanks count as one.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/plugins.md"
FENCE = re.compile(r"^```(\w*)(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    options: dict
    text: str


def blocks(page):
    found = []
    for match in FENCE.finditer(page):
        options = dict(word.split("=", 1) for word in match[2].split())
        found.append(Block(page[: match.start()].count("\n") + 1, match[1], options, match[3]))
    return found


def commands(text):
    """(command, lines that it should print) of a console block."""
    found = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def fits(wanted, printed):
    """Whether an output is what the page shows."""
    lines = [re.escape(" ".join(line.split())).replace(re.escape("..."), ".*") for line in wanted]
    pattern = "".join("(?:.*\n)*?" if line == ".*" else f"{line}\n" for line in lines)
    shown = "".join(" ".join(line.split()) + "\n" for line in printed.splitlines())
    return re.fullmatch(pattern, shown) is not None


def test_outputs_are_compared():
    assert fits(["a", "...", "z 1"], "a\nb\nc\nz    1\n")
    assert fits(["a ... c"], "a b b c\n")
    assert fits(["..."], "")
    assert not fits(["a", "...", "z 1"], "a\nb\nz 2\n")
    assert not fits([], "something\n")
    assert not fits(["a"], "a\nb\n")


def test_every_block_says_what_it_is():
    found = blocks(PAGE.read_text())
    assert len(found) > 15
    assert PAGE.read_text().count("```") == 2 * len(found)
    for block in found:
        if block.language == "console":
            assert block.text.startswith("$ "), f"line {block.line}"
            assert set(block.options) <= {"exit"}, f"line {block.line}"
        else:
            assert len(block.options) == 1, f"line {block.line}: a block that nothing is done with"
            assert set(block.options) <= {"file", "append"}, f"line {block.line}"


def test_the_sizes_that_are_promised():
    files = {block.options.get("file"): block.text.count("\n") for block in blocks(PAGE.read_text())}
    assert files["mim-checker/mim_checker/masker.py"] <= 25
    assert files["mim-checker/mim_checker/method.py"] <= 60


@pytest.mark.slow
def test_the_whole_page(environment, tmp_path):
    folder = tmp_path
    for block in blocks(PAGE.read_text()):
        for kind in ("file", "append"):
            if kind in block.options:
                path = tmp_path / block.options[kind]
                assert path.exists() == (kind == "append"), f"line {block.line}: {path}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text((path.read_text() + "\n\n" if kind == "append" else "") + block.text)
        if block.language != "console":
            continue
        for command, wanted in commands(block.text):
            if command.startswith("cd "):
                folder = (folder / command[3:]).resolve()
                continue
            printed = environment.run(command, folder, int(block.options.get("exit", 0)), together=True).stdout
            assert fits(wanted, printed), f"line {block.line}: {command}\n{printed}"
