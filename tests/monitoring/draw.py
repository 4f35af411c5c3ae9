"""Draws a dashboard of Grafana from the answers of a Prometheus: each panel's queries, and where it stands. Plain: no
Grafana runs here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tests.monitoring.server import Prometheus

COLUMNS, UNIT = 24, 0.32
"""Grafana's grid, and the height of one of its rows in inches."""
BACKGROUND, PANEL, TEXT, FAINT = "#f4f5f5", "#ffffff", "#24292e", "#6e7781"
COLORS = ["#3274d9", "#56a64b", "#ff780a", "#e02f44", "#a352cc", "#8ab8ff", "#e0b400", "#37872d"]


def draw(
    dashboard: Path, prometheus: Prometheus, variables: Mapping[str, str], start: float, end: float, to: Path
) -> int:
    """Write the picture. Returns how many panels have data."""
    panels = json.loads(dashboard.read_text())["panels"]
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    figure = plt.figure(figsize=(16, rows * UNIT), facecolor=BACKGROUND)
    step = max(1.0, (end - start) / 300)
    filled = 0
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / COLUMNS, 1 - place["y"] / rows
        width, height = place["w"] / COLUMNS, place["h"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.006, top - height * 0.7, panel["title"], fontsize=11, color=TEXT, weight="bold")
            continue
        frame = (left + 0.003, top - height + 0.12 / rows, width - 0.006, height - 0.24 / rows)
        figure.add_axes(frame, facecolor=PANEL, xticks=[], yticks=[]).patch.set_edgecolor("#d8d9da")
        figure.text(left + 0.009, top - 0.95 / rows, panel["title"], fontsize=9, color=TEXT, weight="bold")
        inside = (left + 0.05, top - height + 1.75 / rows, width - 0.062, height - 3.1 / rows)
        answers = [
            (
                target["legendFormat"],
                _ask(prometheus, panel["type"], _filled(target["expr"], variables, end - start), start, end, step),
            )
            for target in panel["targets"]
        ]
        filled += any(series for _, series in answers)
        unit = panel["fieldConfig"]["defaults"]["unit"]
        if not any(series for _, series in answers):
            figure.text(left + width / 2, top - height / 2, "No data", ha="center", fontsize=9, color=FAINT)
        elif panel["type"] == "timeseries":
            stacked = "custom" in panel["fieldConfig"]["defaults"]
            _lines(figure.add_axes(inside, facecolor=PANEL), answers, unit, start, end, stacked=stacked)
        elif panel["type"] == "table":
            _table(figure, left + 0.012, top - 1.9 / rows, 1.0 / rows, answers, unit)
        else:
            _numbers(figure, left, width, top - height * 0.68, answers, unit)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=80, facecolor=BACKGROUND)
    plt.close(figure)
    return filled


def _filled(expression: str, variables: Mapping[str, str], seconds: float) -> str:
    """With the values of the dashboard's variables."""
    builtin = {"__rate_interval": "20s", "__range": f"{math.ceil(seconds)}s"}
    for name, value in {**builtin, **variables}.items():
        expression = expression.replace(f"${name}", value)
    return expression


def _ask(prometheus: Prometheus, kind: str, expression: str, start: float, end: float, step: float) -> list[Any]:
    if kind == "timeseries":
        return prometheus.over_time(expression, start, end, step)
    return [series for series in prometheus.at_once(expression, end) if math.isfinite(float(series["value"][1]))]


def _name(legend: str, labels: Mapping[str, str]) -> str:
    if legend == "__auto":
        return " ".join(value for name, value in labels.items() if name != "__name__")
    for name, value in labels.items():
        legend = legend.replace(f"{{{{{name}}}}}", value)
    return legend


def _lines(axes: Axes, answers: list[Any], unit: str, start: float, end: float, *, stacked: bool) -> None:
    named = [(_name(legend, one["metric"]), one["values"]) for legend, series in answers for one in series]
    below: dict[float, float] = {}
    for index, (name, values) in enumerate(named):
        color, points = COLORS[index % len(COLORS)], [(t, float(v)) for t, v in values if math.isfinite(float(v))]
        gap = 3 * (end - start) / 300
        holes = [(a[0] + gap / 3, math.nan) for a, b in pairwise(points) if b[0] - a[0] > gap]
        points = sorted(points + holes)
        times = [t for t, _ in points]
        if stacked:
            lower = [below.get(t, 0.0) for t in times]
            upper = [low + value for low, (_, value) in zip(lower, points, strict=True)]
            below |= dict(zip(times, upper, strict=True))
            axes.fill_between(times, lower, upper, color=color, alpha=0.35, linewidth=0)
        else:
            upper = [value for _, value in points]
        axes.plot(times, upper, color=color, linewidth=1.3, label=name)
    axes.set_xlim(start, end)
    shown_values = [float(v) for _, values in named for _, v in values if math.isfinite(float(v))] or [0.0]
    low, high = axes.get_ylim()
    if stacked or 0 <= min(shown_values) <= max(shown_values) / 2:
        low = 0.0
    axes.set_ylim(low, high if max(shown_values) > 0 else 1.0)
    marks = [start + (end - start) * share for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    axes.set_xticks(marks, [datetime.fromtimestamp(mark, UTC).strftime("%H:%M:%S") for mark in marks])
    ticks = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [shown(tick, unit) for tick in ticks])
    axes.tick_params(labelsize=7, colors=FAINT, length=0)
    axes.grid(color="#e9eaeb", linewidth=0.7)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.1), ncols=6, fontsize=7, frameon=False, handlelength=1.2)


def _numbers(figure: Any, left: float, width: float, height: float, answers: list[Any], unit: str) -> None:
    named = [(_name(legend, one["metric"]), float(one["value"][1])) for legend, series in answers for one in series][:3]
    for index, (name, value) in enumerate(named):
        middle = left + width * (index + 0.5) / len(named)
        figure.text(middle, height, shown(value, unit), ha="center", fontsize=17, color=COLORS[1])
        if len(named) > 1 or name.strip():
            figure.text(middle, height - 0.011, name, ha="center", va="top", fontsize=8, color=FAINT)


def _table(figure: Any, left: float, top: float, line: float, answers: list[Any], unit: str) -> None:
    rows = [(one["metric"], float(one["value"][1])) for _, series in answers for one in series]
    for index, (labels, value) in enumerate(sorted(rows, key=lambda row: -row[1])[:6]):
        figure.text(left, top - index * line, "   ".join(labels.values()), fontsize=8, color=TEXT)
        figure.text(left + 0.36, top - index * line, shown(value, unit), fontsize=8, color=TEXT)


def shown(value: float, unit: str) -> str:
    """A number with its unit, for people."""
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    if unit == "bytes":
        return f"{value / 2**30:.1f} GiB"
    if unit == "s":
        if value >= 90:
            return f"{value / 60:.1f} min"
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    return f"{value:.4g}" + (" /s" if unit == "reqps" else "")
