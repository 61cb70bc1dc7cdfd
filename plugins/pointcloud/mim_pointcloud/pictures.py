"""Clouds as pictures: a PNG of one, and a page on which several can be turned."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from mim_core import Picture
from PIL import Image
from torch import Tensor

Axis = Literal["x", "y", "z"]
Array = npt.NDArray[Any]

SIDE = 288
"""Side of a picture in pixels: sharp where a report shows it at up to about 220."""
FINER = 2
"""Drawn this much larger and then reduced, so that edges are smooth."""
TURN, LIFT = 35.0, 22.0
"""Where the eye stands, in degrees: around the upright axis, and above the ground."""
HEIGHTS = np.array([[52, 64, 140], [38, 122, 142], [84, 178, 120], [236, 186, 66]], np.float64)
"""Colours from the lowest point to the highest."""
VISIBLE, HIDDEN, REBUILT = "#9aa5ae", "#2b6cb0", "#e4572e"
"""Colours of the page's traces."""
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Visible, hidden and rebuilt points</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0; overflow: hidden; background: white; color: #5b6670; }
p { position: fixed; z-index: 9; left: .8rem; bottom: .5rem; margin: 0; font: 13px system-ui, sans-serif; }
a { color: #1f5f9e; }
@media (prefers-color-scheme: dark) { body { background: #15191d; color: #9aa6b0; } a { color: #7db7ec; } }
</style>
</head>
<body>
<p><a href="report.html">Back to the report</a> · names show and hide points</p>
"""
FIT = """
const plot = document.getElementById("{plot_id}");
let fitted = 0;
function fit() {
  const scene = plot.querySelector(".gl-container canvas") || plot;
  const box = scene.getBoundingClientRect();
  const size = Math.min(1, box.width / Math.max(1, box.height)) * 1.15;
  if (Math.abs(size - fitted) < 0.02) return;
  fitted = size;
  Plotly.relayout(plot, {"scene.aspectratio": {x: size, y: size, z: size}});
}
window.addEventListener("resize", fit);
if (matchMedia("(prefers-color-scheme: dark)").matches) {
  const lines = {"font.color": "#e4e8eb", "paper_bgcolor": "#15191d"};
  for (const axis of "xyz") lines[`scene.${axis}axis.gridcolor`] = lines[`scene.${axis}axis.zerolinecolor`] = "#333b42";
  Plotly.relayout(plot, lines);
}
fit();
"""
"""The box's size follows the narrower side of the window: parallel projection shows a scene at the height's scale."""
BUTTONS_OFF = ("resetCameraLastSave3d", "sendChartToCloud", "sendDataToCloud")
"""Of plotly's buttons: a second way back to the first view, and those that would hand the data to a service."""


# ---- one cloud as a PNG ----------------------------------------------------------------------------------------------


def cloud_picture(
    values: Float[Tensor, "P C"], rgb: int | None = None, up: Axis = "y", extent: float = 1.05
) -> Picture:
    """One cloud as a PNG, always from the same side and at the same scale, so that pictures of one shape compare.

    Near points cover far ones, and far ones are paler. A point that is not a finite number is not drawn; one beyond
    the axes is drawn at the border.

    Args:
        values: Coordinates x y z, then further channels.
        rgb: The first of three channels with colours in [0, 1]; None: coloured by height.
        up: The axis that points upwards.
        extent: Half the length of each axis, the origin in the middle; the default holds the unit sphere.
    """
    cloud = values.detach().float().cpu().numpy()
    points = cloud[:, :3]
    drawn = np.isfinite(points).all(axis=1)
    if rgb is None:
        height = (points[drawn, "xyz".index(up)] / extent + 1) / 2
        at = np.linspace(0, 1, len(HEIGHTS))
        colours = np.stack([np.interp(height, at, channel) for channel in HEIGHTS.T], axis=1)
    else:
        colours = np.nan_to_num(cloud[drawn, rgb : rgb + 3]).clip(0, 1) * 255.0
    side = SIDE * FINER
    # by the number of all points, so that a masked cloud's are as large
    radius = min(12.0, max(1.5, 0.3 * side / max(1, len(cloud)) ** 0.5))
    pixels = _spheres(_seen(points[drawn].astype(np.float64), up) / extent, colours, side, radius)
    image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    return Picture("image/png", _small(image), drawn=True)


def _small(image: Image.Image) -> bytes:
    """As PNG with 128 colours, a third of the size; white stays white."""
    reduced = image.quantize(127, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = (reduced.getpalette() or [])[: 127 * 3]
    places = np.asarray(reduced).copy()
    places[(np.asarray(image) == 255).all(axis=2)] = 127
    paletted = Image.fromarray(places)
    paletted.putpalette(palette + [255] * (128 * 3 - len(palette)))
    content = io.BytesIO()
    paletted.save(content, "png", optimize=True)
    return content.getvalue()


def _seen(points: Array, up: Axis) -> Array:
    """Coordinates [n, 3] as the eye has them: to the right, upwards, and towards the eye."""
    third = "xyz".index(up)
    points = np.roll(points, 2 - third, axis=1)  # a rotation: the upright axis comes last
    turn, lift = np.radians(TURN), np.radians(LIFT)
    right = np.array([-np.sin(turn), np.cos(turn), 0.0])
    towards = np.array([np.cos(lift) * np.cos(turn), np.cos(lift) * np.sin(turn), np.sin(lift)])
    return points @ np.stack([right, np.cross(towards, right), towards], axis=1)


def _spheres(seen: Array, colours: Array, side: int, radius: float) -> Array:
    """Points as small shaded spheres on white, uint8 [side, side, 3]; parallel projection of [-1, 1].

    Every pixel keeps the largest of rank times discs plus place in the disc, so the nearest sphere wins there.
    """
    reach = int(np.ceil(radius))
    across, down = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    inside = across**2 + down**2 <= radius**2
    across, down = across[inside], down[inside]
    order = seen[:, 2].argsort(kind="stable")
    place = np.clip((seen[order, :2] * [1, -1] + 1) / 2 * (side - 1), reach, side - 1 - reach).round().astype(np.int64)
    front = np.full(side * side, -1, np.int64)
    ranks = np.arange(len(order)) * len(across)
    for number, (x, y) in enumerate(zip(across, down, strict=True)):
        np.maximum.at(front, (place[:, 1] + y) * side + place[:, 0] + x, ranks + number)
    pixels = np.full((side * side, 3), 255.0)
    covered = front >= 0
    point, spot = order[front[covered] // len(across)], front[covered] % len(across)
    lit = 1 - ((across + 0.5 * radius) ** 2 + (down + 0.5 * radius) ** 2) / (4.5 * radius**2 + 1)  # light from top left
    fade = np.clip((seen[point, 2] + 1) / 1.8, 0, 1)[:, None] * 0.5 + 0.5
    pixels[covered] = 255 - fade * (255 - colours[point] * lit[spot][:, None])
    return pixels.round().astype(np.uint8).reshape(side, side, 3)


# ---- several clouds to turn ------------------------------------------------------------------------------------------


def page(rows: Mapping[str, Float[Tensor, "B P C"]], up: Axis = "y", names: Sequence[str] = ()) -> str:
    """One HTML file, plotly.js in it, on which shapes can be turned: visible, hidden and rebuilt points can be
    switched on and off, a slider goes from shape to shape, and all axes have one scale.

    Args:
        rows: "input", "masked" and "rebuilt". What is NaN in "masked" is hidden.
        up: The axis that points upwards.
        names: Of the shapes; empty where they have none.

    Raises:
        ValueError: Rows are missing or differ in shape.
    """
    clouds = _clouds(rows)
    points, masked, rebuilt = (clouds[name][..., :3] for name in ("input", "masked", "rebuilt"))
    hidden: Array = np.asarray(np.isnan(masked).any(axis=2))
    extent = 1.15 * float(np.abs(np.nan_to_num(points, nan=0.0, posinf=0.0, neginf=0.0)).max(initial=1e-6))
    shapes = [(points[i][~hidden[i]], points[i][hidden[i]], rebuilt[i][hidden[i]]) for i in range(len(points))]
    named = [f", {escape(name)}" for name in names] if len(names) == len(shapes) else [""] * len(shapes)
    titles = [
        f"Shape {i + 1} of {len(shapes)}{name}:<br>{_counts_text(shape, extent)}"
        for i, (shape, name) in enumerate(zip(shapes, named, strict=True))
    ]
    return _html(shapes, titles, extent, up)


def _clouds(rows: Mapping[str, Tensor]) -> dict[str, Array]:
    names = ("input", "masked", "rebuilt")
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(f"a page needs the rows {', '.join(names)}; missing: {', '.join(missing)}")
    sizes = {tuple(rows[name].shape) for name in names}
    if len(sizes) > 1 or rows["input"].ndim != 3 or rows["input"].shape[0] == 0 or rows["input"].shape[2] < 3:
        raise ValueError(f"rows must share one shape [B, P, 3 or more], got {sorted(sizes)}")
    return {name: rows[name].detach().to("cpu", torch.float32).numpy() for name in names}


def _counts_text(shape: tuple[Array, Array, Array], extent: float) -> str:
    """How many points there are of each kind, and how many cannot be seen."""
    visible, hidden, rebuilt = shape
    outside = int((~(np.abs(rebuilt) <= extent)).any(axis=1).sum())
    text = f"{len(visible):,} visible points, {len(hidden):,} hidden, {len(rebuilt):,} rebuilt"
    return text + (f" (of these {outside:,} outside the axes)" if outside else "")


def _coordinates(points: Array) -> dict[str, list[Any]]:
    """Four digits after the point; what is not finite is left out."""
    kept = points[np.isfinite(points).all(axis=1)].astype(np.float64).round(4)
    return {axis: kept[:, number].tolist() for number, axis in enumerate("xyz")}


def _html(shapes: list[tuple[Array, Array, Array]], titles: list[str], extent: float, up: Axis) -> str:
    import plotly.graph_objects as go

    figure = go.Figure(_traces(shapes[0]))
    axis = {"range": [-extent, extent], "showbackground": False, "showspikes": False, "title": {"text": ""}}
    axis |= {"gridcolor": "#e3e7ea", "zerolinecolor": "#c9d0d5", "tickfont": {"color": "#8a949c", "size": 10}}
    under: dict[str, Any] = {"y": 1, "yanchor": "top", "pad": {"t": 36}}  # plotly's buttons
    figure.update_layout(
        title={"text": titles[0], "font": {"size": 15}, "x": 0.02, "xanchor": "left", **under},
        font={"family": "system-ui, sans-serif", "color": "#1c2126"},
        margin={"l": 0, "r": 0, "t": 112, "b": 0},
        paper_bgcolor="white",
        legend={
            "itemsizing": "constant",
            "orientation": "h",
            "x": 0.02,
            "y": 1.0,
            "yanchor": "bottom",  # above the scene, in the margin
            "font": {"size": 14},
        },
        scene={
            **{f"{name}axis": axis for name in "xyz"},
            "aspectmode": "manual",
            "aspectratio": dict.fromkeys("xyz", 1.0),  # one scale on all axes; FIT makes the box fill the window
            "camera": _camera(up),
            "uirevision": "kept",  # the view stays when another shape is chosen
        },
        sliders=[_slider(shapes, titles)],
    )
    plot = figure.to_html(
        include_plotlyjs=True,
        full_html=False,
        default_width="100%",
        default_height="100vh",
        post_script=FIT,
        config={"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": list(BUTTONS_OFF)},
    )
    return f"{HEAD}{plot}\n</body>\n</html>\n"


def _traces(shape: tuple[Array, Array, Array]) -> list[dict[str, Any]]:
    kinds = (("visible", VISIBLE), ("hidden", HIDDEN), ("rebuilt", REBUILT))
    size = min(6.0, max(1.5, 118 / max(1, len(shape[0]) + len(shape[1])) ** 0.5))  # pixels across: fewer, larger
    look = {"type": "scatter3d", "mode": "markers", "hoverinfo": "skip"}
    return [
        {**look, **_coordinates(points), "name": name, "marker": {"size": size, "color": colour, "line": {"width": 0}}}
        for (name, colour), points in zip(kinds, shape, strict=True)
    ]


def _slider(shapes: list[tuple[Array, Array, Array]], titles: list[str]) -> dict[str, Any]:
    """A step puts the coordinates of one shape into the traces, which stay switched on or off as they are."""
    steps = []
    for number, (shape, title) in enumerate(zip(shapes, titles, strict=True)):
        traces = [_coordinates(points) for points in shape]
        new = {axis: [each[axis] for each in traces] for axis in "xyz"}
        steps.append({"label": str(number + 1), "method": "update", "args": [new, {"title.text": title}, [0, 1, 2]]})
    return {"steps": steps, "currentvalue": {"prefix": "Shape "}, "pad": {"l": 24, "r": 24, "b": 40, "t": 0}}


def _camera(up: Axis) -> dict[str, Any]:
    """The picture's side, from a little closer than plotly has it."""
    turn, lift = np.radians(TURN), np.radians(LIFT)
    eye = 1.7 * np.array([np.cos(lift) * np.cos(turn), np.cos(lift) * np.sin(turn), np.sin(lift)])
    third = "xyz".index(up)
    x, y, z = np.roll(eye, third - 2).tolist()
    upwards = {axis: float(axis == up) for axis in "xyz"}
    return {"eye": {"x": x, "y": y, "z": z}, "up": upwards, "projection": {"type": "orthographic"}}
