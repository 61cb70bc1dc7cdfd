"""Writes docs/hooks.md from the hookspecs: ``python tools/hooks_page.py``. With ``--check`` it only says whether the
page is up to date."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import textwrap
from pathlib import Path

from mim_core.host import hookspecs, kinds, registry
from mim_core.version import PLUGIN_API

PAGE = Path(__file__).parents[1] / "docs/hooks.md"
COMMAND = "python tools/hooks_page.py"
HEAD = f"""\
# Hooks

<!-- Written by `{COMMAND}` from core/mim_core/host/hookspecs.py. Change it there. -->

The plugin interface is number {PLUGIN_API} (`mim_core.PLUGIN_API`). A plugin module may say which one it was written
for, `MIM_PLUGIN_API = {PLUGIN_API}`, and is then refused by a mim-core that has another.
"""


def sections() -> list[tuple[str, list[str]]]:
    """(title, names of its hooks) in the order of the file; titles are its ``# ---- title ----`` comments."""
    source = inspect.getsource(hookspecs)
    groups: list[tuple[str, list[str]]] = []
    titles = {
        number: line.strip("# -") for number, line in enumerate(source.splitlines(), 1) if line.startswith("# ----")
    }
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("mim_"):
            title = next(text for number, text in sorted(titles.items(), reverse=True) if number < node.lineno)
            if not groups or groups[-1][0] != title:
                groups.append((title, []))
            groups[-1][1].append(node.name)
    return groups


def text_of(documented: object) -> str:
    """A docstring as Markdown: code blocks fenced, backticks alike."""
    lines: list[str] = []
    code = False
    for line in (inspect.getdoc(documented) or "").replace("``", "`").splitlines():
        indented = line.startswith("    ")
        if line.strip() and indented != code:
            while lines and not lines[-1]:
                lines.pop()
            language = "toml" if line.strip().startswith("[") else "python"
            lines += ["", f"```{language}"] if indented else ["```", ""]
            code = indented
        lines.append(line[4:] if code else line)
    return "\n".join([*lines, "```"] if code else lines)


def signature(function: object, name: str) -> str:
    """``def name(...) -> ...`` in a fenced block."""
    text = _plain(inspect.signature(function))  # type: ignore[arg-type]
    return f"```python\ndef {name}{text}\n```"


def _plain(sig: inspect.Signature) -> str:
    """A signature whose annotations have no quotation marks; defaults keep theirs."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(sig))


def hook(name: str) -> str:
    """One hook: its signature, what it is for, and where its parts are listed."""
    function = getattr(hookspecs, name)
    lines = [f"### {name}", "", signature(function, name), "", text_of(function)]
    kind = name.removeprefix("mim_register_")
    if kind in kinds.KINDS:
        lines += ["", f"Listed by `mim-core list {kind}`."]
    return "\n".join(lines)


def register(cls: type) -> str:
    """How the object that registers is called."""
    call = cls.__call__
    text = _plain(inspect.signature(call)).replace("(self, ", "(")
    arguments = text_of(call).replace("Args:\n", "").split("\n\n", 1)[1]
    shown = textwrap.dedent(arguments.replace("```python\n", "").replace("\n```", "")).strip()
    items = [f"- `{line.strip().partition(': ')[0]}`: {line.strip().partition(': ')[2]}" for line in shown.splitlines()]
    return "\n".join([f"`{cls.__name__}`:", "", f"```python\nregister{text}\n```", "", *items])


def page() -> str:
    """The whole page."""
    parts = [HEAD, text_of(hookspecs)]
    parts += ["\n## What `register` takes", register(registry.Register), register(registry.RecipeRegister)]
    parts += [register(registry.EvaluationRegister)]
    for title, names in sections():
        parts += [f"\n## {title[0].upper()}{title[1:]}", *map(hook, names)]
    return _wrap("\n\n".join(part.strip("\n") for part in parts))


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
    print(f"{PAGE} is not what the hookspecs say. Run: {COMMAND}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
