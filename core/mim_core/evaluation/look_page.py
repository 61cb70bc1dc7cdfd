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
"""Colours of classes, told apart by most eyes (after Paul Tol); they begin again after the last."""
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
        colours=COLOURS,
        legend=[(each, COLOURS[number % len(COLOURS)]) for number, each in enumerate(look.classes)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(page, shown(text))
    with replaced(picture) as file:
        file.write(_drawn(look))
    return page, picture


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
            axis.set_title(shown(cell.caption or "")[:40], fontsize=6)
        line[0].text(-0.05, 0.5, shown(label)[-24:], fontsize=6, ha="right", va="center", transform=line[0].transAxes)


def _draw_maps(figure: Any, look: Look) -> None:
    across = min(3, len(look.dots))
    down = math.ceil(len(look.dots) / across)
    figure.set_size_inches((4 * across, 4 * down + 0.6))
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, dots in zip(axes, look.dots, strict=False):
        colours = [COLOURS[label % len(COLOURS)] for label in dots.labels]
        axis.scatter(dots.places[:, 0], dots.places[:, 1], s=5, c=colours, alpha=0.75, linewidths=0)
        axis.set_title(dots.title, fontsize=9)
        axis.set_aspect("equal")
    for number, name in enumerate(look.classes[: len(COLOURS)]):
        axes[0].scatter([], [], s=14, c=COLOURS[number], label=shown(name)[:24])
    figure.legend(loc="outside lower center", ncols=5, fontsize=7, frameon=False)
