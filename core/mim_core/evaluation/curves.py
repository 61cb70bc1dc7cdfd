"""A run's metrics as curves, and as the facts that its report states."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim_core.evaluation.online import MAJORITY, NOW, RAW
from mim_core.runs import logs
from mim_core.runs.run import PHASES
from mim_core.text import counted, duration, speed

Lines = list[dict[str, Any]]


def read(folder: Path) -> tuple[Lines, Lines]:
    """(lines of metrics.jsonl, lines of probes.jsonl) of a run."""
    return logs.read(folder / logs.METRICS), logs.read(folder / logs.PROBES)


def facts(metrics: Lines) -> dict[str, str]:
    """How long was trained, how fast, where the time went, and the loss at the end."""
    if not metrics:
        return {}
    last, previous, seconds, samples = metrics[-1], 0, 0.0, 0.0
    spent = dict.fromkeys(PHASES, 0.0)
    for line in metrics:
        steps = line["step"] - previous
        stretch, previous = steps * line["seconds_per_step"], line["step"]
        seconds, samples = seconds + stretch, samples + stretch * line["samples_per_second"]
        for phase in PHASES:
            spent[phase] += stretch * line[f"time/{phase}"]
    shares = ", ".join(f"{phase.replace('_', ' ')} {value / seconds:.0%}" for phase, value in spent.items())
    steps = counted(last["step"], "step")
    rows = {
        "trained": f"{steps}, {counted(last['epoch'], 'epoch')}, {duration(seconds)} in the loop",
        "speed": f"{speed(samples / seconds)} samples/s",
        "time": f"{shares} (data: waiting for it)",
    }
    if "mfu" in last:
        rows["device"] = f"{last['mfu']:.1%} of its peak FLOP/s at the end"
    rows["loss"] = f"{last['loss']:.4f} at the end"
    return rows


ELSEWHERE = ("step", "epoch", "loss", "lr", "grad_norm")
SPEED = ("samples_per_second", "seconds_per_step", "flops_per_second", "mfu", "memory")
"""Metrics that have panels of their own, and those of the machine."""


ACROSS = 4
"""Panels in a row."""


def further(metrics: Lines) -> list[tuple[str, list[str]]]:
    """(title, names) of the metrics that a method has beside losses: those of a family, such as ``usage/rgb`` and
    ``usage/depth``, are one panel."""
    names = [name for name in metrics[0] if name not in (*ELSEWHERE, *SPEED)]
    families: dict[str, list[str]] = {}
    for name in names:
        family = name.partition("/")[0]
        if family not in ("loss", "time") and isinstance(metrics[0][name], (int, float)):
            families.setdefault(family, []).append(name)
    return [(family.replace("_", " "), members) for family, members in families.items()]


def draw(metrics: Lines, probes: Lines) -> str:
    """Loss, learning rate, gradient norm, scores where they were taken, and the method's own metrics over the epochs,
    as one SVG, up to four panels in a row."""
    if len(metrics) < 2:
        return ""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    losses = [name for name in metrics[0] if name == "loss" or name.startswith("loss/")]
    panels = [("loss", losses), ("learning rate", ["lr"]), ("gradient norm", ["grad_norm"])]
    own = further(metrics)
    longest = max(len(names) for _, names in [*panels, *own])
    below = 0.2 * math.ceil(longest / 2) if longest > 1 else 0.0  # for their names
    count = len(panels) + bool(probes) + len(own)
    rows, across = math.ceil(count / ACROSS), min(count, ACROSS)
    figure = Figure(figsize=(11, rows * (2.8 + below)), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.subplots(rows, across, squeeze=False).ravel().tolist()
    _draw_lines(axes, panels, metrics)
    if probes:
        _draw_scores(axes[len(panels)], probes)
    _draw_lines(axes[len(panels) + bool(probes) :], own, metrics)
    for axis in axes[count:]:
        axis.remove()
    content = io.StringIO()
    figure.savefig(content, format="svg")
    text = content.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")  # light on dark pages


def _draw_lines(axes: Sequence[Any], panels: Sequence[tuple[str, Sequence[str]]], metrics: Lines) -> None:
    """A panel on each of the axes: the metrics of these names over the epochs."""
    epochs = [line["epoch"] for line in metrics]
    for axis, (title, names) in zip(axes, panels, strict=False):
        for name in names:
            axis.plot(epochs, [line.get(name, math.nan) for line in metrics], linewidth=1.2, label=name)
        _dress(axis, title, names)


def _draw_scores(axis: Any, probes: Lines) -> None:
    """Each column of the encoder's scores; raw input and majority class as dashed lines of the first column."""
    columns = list(dict.fromkeys(score["column"] for score in probes[0]["scores"]))
    for column in columns:
        scores = [
            (p["epoch"], s["value"]) for p in probes for s in p["scores"] if (s["row"], s["column"]) == (NOW, column)
        ]
        if scores:
            (line,) = axis.plot(*zip(*scores, strict=True), linewidth=1.2, marker=".", label=column)
            errors = [_error(p, column) for p in probes if any(s["column"] == column for s in p["scores"])]
            low, high = ([y + sign * e for (_, y), e in zip(scores, errors, strict=False)] for sign in (-1, 1))
            axis.fill_between([x for x, _ in scores], low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for score in probes[0]["scores"]:
        if score["row"] in (RAW, MAJORITY) and score["column"] == columns[0]:
            axis.axhline(score["value"], linewidth=0.8, linestyle="--", color="gray")
            axis.text(0, score["value"], score["row"], fontsize=7, va="bottom", color="gray")
    _dress(axis, "features, held out, ± standard error", [*columns, ""])


def _error(probe: dict[str, Any], column: str) -> float:
    """A score's standard error: the deviation over draws where there are some, else that of a share of the test
    samples; 0 where their number is not known, as in logs of earlier versions."""
    score = next(s for s in probe["scores"] if (s["row"], s["column"]) == (NOW, column))
    if score.get("spread") is not None:
        return float(score["spread"])
    value, count = score["value"], probe.get("test", 0)
    return math.sqrt(value * (1 - value) / count) if count and 0 <= value <= 1 else 0.0


def _dress(axis: Any, title: str, names: Sequence[str]) -> None:
    axis.patch.set_alpha(0)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # on no curve
