"""Writes docs/parts.md from the docstrings of what parts inherit, get and give: ``python tools/parts_page.py``. With
``--check`` it only says whether the page is up to date."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mim_core

PAGE = Path(__file__).parents[1] / "docs/parts.md"
COMMAND = "python tools/parts_page.py"
HEAD = f"""\
# Parts: what they inherit, get and give

<!-- Written by `{COMMAND}` from the docstrings of core/mim_core. Change it there. -->

All names are imported from `mim_core`. [plugins.md](plugins.md) is the tutorial, [hooks.md](hooks.md) says how parts
are registered. Letters in shapes: B samples of a batch, R masks of them (the rows of one sample are adjacent), N units
of a sample, K kept units, Q queries, D the encoder's width, P class and register tokens. A `Sample` is a batch, a dict:
tensors by modality, `key` int64 [B], from which all draws come, and `index` int64 [B]. Options are a part's `Config`, a
frozen dataclass within the class.
"""
SECTIONS = {
    "Base classes": (
        "Tokenizer", "Masker", "Encoder", "Decoder", "Target", "Scorer", "Teacher", "Method", "DataSource"
    ),
    "What they hand each other": (
        "Layout", "Patches", "Draw", "Mask", "Encoded", "Student", "Lesson", "Losses", "Prepared", "Outcome",
        "Features", "Parts", "Progress", "Labelled",
    ),
    "Functions": (
        "bits", "uniform", "permutation", "make_key", "torch_seed", "hide_first", "hide_guided", "rounded",
        "check_ratio", "take", "token", "encode_all", "gather", "batch_mean", "build_method",
    ),
}  # fmt: skip


def text_of(documented: object) -> str:
    """A docstring as Markdown: what stands under Attributes, Args and Raises are lists, a blank line before each."""
    lines: list[str] = []
    listed = False
    for line in (inspect.getdoc(documented) or "").replace("``", "`").splitlines():
        if line in ("Attributes:", "Args:", "Raises:"):
            listed = True
            lines += ["", line, ""] if lines and lines[-1] else [line, ""]
        elif listed and re.match(r"    \S", line):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`{colon}{rest}")
        elif listed and line.startswith("     "):
            lines[-1] += f" {line.strip()}"
        else:
            listed = listed and not line
            lines.append(line)
    return "\n".join(lines).strip()


def signature(function: Callable[..., Any], name: str) -> str:
    """``name(...) -> ...``, with annotations as the source has them."""
    spec = inspect.signature(function)
    shown: list[str] = []
    for each in spec.parameters.values():
        star = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        if each.kind is each.KEYWORD_ONLY and not any(word.startswith("*") for word in shown):
            shown.append("*")
        word = star + each.name + ("" if each.annotation is each.empty else f": {_type(each.annotation)}")
        shown.append(word if each.default is each.empty else f"{word} = {_default(each.default)}")
    given = "" if spec.return_annotation is spec.empty else f" -> {_type(spec.return_annotation)}"
    return f"{name}({', '.join(shown)}){given}"


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return text.strip("'")


def _default(value: Any) -> str:
    text = repr(value)
    return "..." if text.startswith("<") else text.replace("'", '"')


def members(cls: type) -> list[tuple[str, Any]]:
    """(signature, function) of the public methods that a class defines, in their order."""
    methods = []
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        function = function.fget if isinstance(function, property) else function
        if name.startswith("_") or not inspect.isfunction(inspect.unwrap(function)):
            continue
        kind = {staticmethod: "@staticmethod ", classmethod: "@classmethod ", property: "@property "}
        methods.append((kind.get(type(value), "") + signature(inspect.unwrap(function), name), function))
    return methods


def section(name: str) -> str:
    """One class or function."""
    thing = getattr(mim_core, name)
    if not inspect.isclass(thing):
        return f"### {name}\n\n```python\n{signature(inspect.unwrap(thing), name)}\n```\n\n{text_of(thing)}"
    head = [f"### {name}", text_of(thing)]
    methods = members(thing)
    if methods:
        head.append("```python\n" + "\n".join(shown for shown, _ in methods) + "\n```")
        head.append("\n".join(f"- `{function.__name__}`: {_short(function)}" for _, function in methods))
    return "\n\n".join(head)


def _short(function: Callable[..., Any]) -> str:
    """The docstring up to its lists, as one line."""
    text = re.split(r"\n\n?(?:Args|Raises|Attributes):", inspect.getdoc(function) or "")[0]
    return " ".join(text.replace("``", "`").split())


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in SECTIONS.items():
        parts += [f"## {title}", *map(section, names)]
    return _wrap("\n\n".join(part.strip("\n") for part in parts) + "\n")


def _wrap(text: str) -> str:
    """The page with its prose wrapped like that of all pages."""
    spec = importlib.util.spec_from_file_location("wrap_docs", Path(__file__).with_name("wrap_docs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.page(text))


def main(arguments: list[str]) -> int:
    """Writes the page, or with ``--check`` compares it."""
    if "--check" not in arguments:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print(f"{PAGE} is not what the docstrings say. Run: {COMMAND}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
