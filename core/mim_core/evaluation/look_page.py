"""A look at a run as a page, and as one picture."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from mim_core.disk import replaced, write_whole
from mim_core.evaluation.looks import Look, Strip
from mim_core.evaluation.report import address, environment
from mim_core.text import shown

COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888", "#ee8866", "#44bb99", "#7766cc"),
)
"""Colours of classes, told apart by most eyes (after Paul Tol); behind the last they begin again in the next shape."""
SHAPES = ("", "M-1-1h2v2h-2z", "M0-1.5L1.5 0L0 1.5L-1.5 0z", "M0-1.3L1.3 1H-1.3z")
"""Shapes of the dots, as paths of SVG about a circle's radius: the circle itself, a square, a diamond, a triangle."""
MARKERS = ("o", "s", "D", "^")
"""The same as matplotlib calls them."""
CAPTION = 22
"""Letters below a picture of the whole; the end of a longer name is shown."""
INCHES = 1.15
"""Side of a picture within the whole."""


def write_look(look: Look, folder: Path, name: str, title: str, checkpoint: str) -> tuple[Path, Path]:
    """Writes ``folder/show-NAME.html`` and ``.png``; returns both paths.

    Args:
        look: What is shown.
        folder: Of the run, or another.
        name: Of `looks.LOOKS`.
        title: Of the run.
        checkpoint: Its name.
    """
    page, picture = folder / f"show-{name}.html", folder / f"show-{name}.png"
    made = environment()
    made.filters["zip"] = lambda one, *others: zip(one, *others, strict=True)
    text = made.get_template("look.html.jinja").render(
        look=look,
        title=title,
        checkpoint=checkpoint,
        report=(folder / "report.html").exists(),
        address=address,
        mark=_mark,
        shapes=SHAPES,
        legend=[(each, *_mark(number)) for number, each in enumerate(look.classes)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(page, shown(text))
    with replaced(picture) as file:
        file.write(_drawn(look))
    return page, picture


def _mark(label: int) -> tuple[str, int]:
    """Colour and number of the shape of a class."""
    return COLOURS[label % len(COLOURS)], label // len(COLOURS) % len(SHAPES)


def _ending(text: str) -> str:
    """The end of a name that is too long for its picture."""
    plain = shown(text)
    return plain if len(plain) <= CAPTION else f"\N{HORIZONTAL ELLIPSIS}{plain[1 - CAPTION :]}"


def _drawn(look: Look) -> bytes:
    """The whole as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    if look.dots:
        _draw_maps(figure, look)
    else:
        _draw_strips(figure, look.strips)
    figure.suptitle(look.title, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_strips(figure: Any, strips: list[Strip]) -> None:
    from matplotlib.image import imread

    film = any(strip.film for strip in strips)
    rows = [(strip.label, [cell]) for strip in strips for cell in strip.cells] if film else [
        (strip.label, strip.cells) for strip in strips
    ]  # fmt: skip
    across = max(len(cells) for _, cells in rows)
    figure.set_size_inches(
        (7.5 if film else across * INCHES + 1, min(100, len(rows) * INCHES * (0.8 if film else 1.2)))
    )
    axes = figure.subplots(len(rows), across, squeeze=False)
    for line, (label, cells) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, cell in zip(line, cells, strict=False):
            axis.imshow(imread(io.BytesIO(cell.picture.content)), interpolation="nearest", cmap="gray")
            axis.set_title(_ending(cell.caption), fontsize=6)
        line[0].text(-0.05, 0.5, _ending(label), fontsize=6, ha="right", va="center", transform=line[0].transAxes)


def _draw_maps(figure: Any, look: Look) -> None:
    across = min(3, len(look.dots))
    down = math.ceil(len(look.dots) / across)
    lines = math.ceil(min(len(look.classes), len(COLOURS) * len(SHAPES)) / 5)
    figure.set_size_inches((4 * across, 4 * down + 0.3 + 0.15 * lines))
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, dots in zip(axes, look.dots, strict=False):
        marks = [_mark(label) for label in dots.labels]
        for number, marker in enumerate(MARKERS):
            own = [row for row, (_, shape) in enumerate(marks) if shape == number]
            colours = [marks[row][0] for row in own]
            axis.scatter(*dots.places[own].T, s=5, c=colours, marker=marker, alpha=0.75, linewidths=0)
        axis.set_title(dots.title, fontsize=9)
        axis.set_aspect("equal")
    for number, name in enumerate(look.classes[: len(COLOURS) * len(SHAPES)]):
        colour, shape = _mark(number)
        axes[0].scatter([], [], s=14, c=colour, marker=MARKERS[shape], label=shown(name)[:24])
    figure.legend(loc="outside lower center", ncols=5, fontsize=7, frameon=False)
