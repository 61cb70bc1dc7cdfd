"""What a reader of an exported model must know: its data, its recipe, its scores beside their controls, what it started
from and under which licence. Written beside every export."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, Template

from mim_core.disk import write_whole
from mim_core.errors import MimError, warn
from mim_core.evaluation.report import in_rows, scores_of
from mim_core.host.registry import Registry
from mim_core.methods.build import open_source
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.recipes.changes import changes_of
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.toml import to_toml
from mim_core.runs import origins
from mim_core.runs.load import OpenedRun
from mim_core.runs.state import MADE, StateError, read_state
from mim_core.text import counted, shown
from mim_core.version import __version__

MARK = "- mim-core\n"
"""Stands in every card, so that a file of the user's is told from one."""
CELL, LINE = 120, 400
"""Letters of a value in a table, and in a line of its own; of a longer one the beginning is shown."""
LIBRARIES = {"timm": "timm", "torch": "torch", "onnx": "onnx", "plain": "torch"}


def card_of(path: Path) -> Path:
    """Where the card of an export goes: ``README.md`` within a folder, ``NAME.md`` beside weights, and ``NAME.pt2.md``
    or ``NAME.onnx.md`` beside a program, of which both may lie in one folder."""
    if path.is_dir():
        return path / "README.md"
    return path.with_suffix(".md") if path.suffix == ".safetensors" else path.with_name(f"{path.name}.md")


def write_card(
    opened: OpenedRun,
    path: Path,
    kind: str,
    load: str,
    notes: Sequence[str],
    known: Mapping[str, Any],
    classes: tuple[str, ...],
    registry: Registry,
) -> Path | None:
    """Writes the card of an export.

    Args:
        opened: The run.
        path: What was exported.
        kind: As what: ``timm``, ``torch``, ``onnx``, or an exporter's name.
        load: How it is loaded, in Python.
        notes: What to know of it.
        known: What is known of the inputs: ``mean``, ``std``, ``crop_pct``.
        classes: Names of a classifier's classes.
        registry: Where importers' licences are looked up.

    Returns:
        Its path; None where a file of the user's has that name, which is a warning.
    """
    run, method, checkpoint = opened
    target = card_of(path)
    if not _may_write(target):
        return None
    state, folder = _state(checkpoint), _run_folder(checkpoint)
    chain = [_origin(each, registry) for each in origins.kept_in(state)]
    text = _template().render(
        library=LIBRARIES.get(kind, "transformers"),
        licence_id=_licence_id({licence for _, licence in chain if licence is not None}),
        title=_plain(f"{run.recipe or folder.name}, {folder.name}"),
        what=_what(method, kind),
        made=f"Of the run `{run.recipe}`, checkpoint `{checkpoint.name}`.\nWritten by mim-core {__version__}.",
        load=load,
        notes=[*map(_around_code, notes)],
        inputs=_inputs(method, known, classes),
        data=_data(run, method, state),
        training=_training(run, state),
        changes={name: tuple(map(_cell, pair)) for name, pair in changes_of(run, registry).items()},
        table=scores_of(folder),
        origins=[line for line, _ in chain],
        parts={role: part.name for role, part in run.parts.items()},
        toml=in_rows(_without_folders(run, to_toml(run, registry))).rstrip(),
    )
    write_whole(target, shown(text))
    return target


def _may_write(target: Path) -> bool:
    """Whether no file of the user's is there."""
    ours = not target.exists() or MARK in target.read_text(encoding="utf-8", errors="replace")
    if not ours:
        warn(f"{target} is no card of mim-core's, so it stays, and no card was written.")
    return ours


def _template() -> Template:
    environment = Environment(loader=PackageLoader("mim_core", "templates"), trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("model-card.md.jinja")


def _licence_id(licences: set[str]) -> str:
    """As model cards name licences; "other" where there are several or one is not known, empty where none is."""
    known = next(iter(licences), "")
    return known.lower().replace(" ", "-") if len(licences) == 1 and known else "other" if licences else ""


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        return read_state(checkpoint)
    except StateError as error:
        raise MimError(f"{checkpoint} is damaged: {error}") from error


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def _what(method: Method, kind: str) -> str:
    size = f"{sum(p.numel() for p in method.parameters()):,} parameters."
    if isinstance(method, Supervised):
        return f"A model that was trained on labels ({type(method).__name__}), as {kind}. {size}"
    return f"An encoder that was pre-trained by masked modeling ({type(method).__name__}), as {kind}. {size}"


def _inputs(method: Method, known: Mapping[str, Any], classes: tuple[str, ...]) -> dict[str, str]:
    shapes: Mapping[str, tuple[int, ...]] = getattr(method.tokenizer, "shapes", {})
    ids: Mapping[str, int] = getattr(method.tokenizer, "ids", {})
    entries = {
        name: f"[B, {', '.join(map(str, shape))}], {'int64, ids' if name in ids else 'normalised'}"
        for name, shape in shapes.items()
    }
    counts = method.told() if isinstance(method, Supervised) else {}
    entries |= {name: f"[B], whole numbers from 0 to {count - 1}: one of the classes" for name, count in counts.items()}
    texts = {
        "mean": "mean of values from 0 to 1",
        "std": "deviation",
        "crop_pct": "crop, share of the resized side",
    }
    entries |= {texts.get(name, name.replace("_", " ")): _cell(value, LINE) for name, value in known.items()}
    return {**entries, **({"classes": _plain(", ".join(classes))} if classes else {})}


def _data(run: ResolvedRun, method: Method, state: Mapping[str, Any]) -> dict[str, str]:
    """What the data are, as far as they are still there; no path, which is the machine's."""
    part = run.parts.get("data")
    if part is None:
        return {"source": "none is stated"}
    root = getattr(part.options, "root", None)
    name = "" if root is None else Path(root).name.replace("`", "'")
    entries = {"source": f"`{part.name}`" + (f", the collection `{name}`" if name else "")}
    entries |= {"items": f"{state['items']:,}"} if "items" in state else {}
    try:
        entries |= {name: _plain(text) for name, text in _contents(run, method).items()}
    except MimError:
        entries["left open"] = "the data are no longer there, so no more is known"
    return entries


def _contents(run: ResolvedRun, method: Method) -> dict[str, str]:
    """What the data hold; where a method learns from labels, with its own labels and splits."""
    source = open_source(run, method.tokenizer)  # type: ignore[arg-type]
    return (method.training_source(source) if isinstance(method, Supervised) else source).contents()


def _training(run: ResolvedRun, state: Mapping[str, Any]) -> dict[str, str]:
    """How long, on what, and when."""
    made, train = state.get(MADE, {}), run.train
    steps = counted(state["step"], "step")
    entries = {
        "trained": f"{steps} of {train.batch_size} samples" if state["step"] else "not at all: imported weights",
        "learning rate": f"{train.base_lr:g} for a batch of {train.lr_batch}, weight decay {train.weight_decay:g}",
        "device": made.get("device", ""),
        "day": made.get("date", "")[:10],
        "torch": str(state.get("torch", "")),
    }
    return {name: text for name, text in entries.items() if text}


def _origin(origin: Mapping[str, str], registry: Registry) -> tuple[str, str | None]:
    """A line about weights that the run started from, and their licence: empty where it is not known, None where they
    are the user's own run."""
    name = Path(origin["file"]).name
    if origin["format"] in (origins.RUN, origins.EXPORT):
        return f"`{name}` of a run of mim-core", None
    try:
        importer = registry.get("importers", origin["format"]).resolve()
    except MimError:
        importer = None
    licence = getattr(importer, "licence", "")
    note = f"such weights are published under {licence}" if licence else "their licence is not known here"
    return f"`{name}`, weights of the format `{origin['format']}`: {note}", licence


def _cell(value: Any, most: int = CELL) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = " ".join(text.split())  # a table's row is one line
    text = Path(text).name if text.startswith("/") else text if len(text) <= most else f"{text[:most]} ..."
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Names of the user's as text of Markdown: no HTML, no code, and no pictures or links of theirs."""
    return re.sub(r"[\[\]\\`]", r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))


def _around_code(text: str) -> str:
    """The same of a text with code in it, which stays."""
    return "`".join(_plain(part) if i % 2 == 0 else part for i, part in enumerate(text.split("`")))


def _without_folders(run: ResolvedRun, toml: str) -> str:
    """The recipe with names in place of whole paths."""
    for part in run.parts.values():
        for value in vars(part.options).values():
            if isinstance(value, Path) and value.is_absolute():
                toml = toml.replace(f'"{value}"', f'"{value.name}"')
    return toml
