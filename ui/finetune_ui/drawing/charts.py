"""Curves as the browser draws them: columns of the same steps, and a summary for those who do not see them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.curves import Point, unpack
from finetune_api.smoothing import smoothed
from finetune_cli import jobs
from finetune_cli.cluster.client import Object

from finetune_ui.texts import text

ORDER = ("loss", "learningRate", "gradientNorm", "tokensPerSecond")
"""The charts of all stages, before those of the stage."""


def curves_of(job: Object) -> dict[str, list[Point]]:
    """Metric -> points. Empty if this release cannot read them."""
    try:
        return unpack(jobs.status(job))
    except ValueError:
        return {}


def of_job(job: Object) -> list[dict[str, Any]]:
    """A chart for each metric, with that of evaluations in the same chart."""
    curves = curves_of(job)
    groups: dict[str, list[str]] = {}
    for name in curves:
        groups.setdefault(_base(name, curves), []).append(name)
    names = sorted(groups, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return [_chart(name, {each: curves[each] for each in sorted(groups[name], key=len)}) for name in names]


def of_jobs(found: Mapping[str, Object], metric: str) -> dict[str, Any] | None:
    """One chart with a smoothed line for each job that has the metric."""
    lines = {name: curves[metric] for name, job in found.items() if metric in (curves := curves_of(job))}
    if not lines:
        return None
    smooth = {name: _smooth(points) for name, points in lines.items()}
    return {
        "id": identifier(metric),
        "name": metric,
        "data": _columns(smooth),
        "labels": list(lines),
        "soft": [],
        "summaries": [_summary(name, points) for name, points in lines.items()],
    }


def metrics_of(found: Mapping[str, Object]) -> list[str]:
    """Every metric that a job has, the common metrics first."""
    names = {name for job in found.values() for name in curves_of(job)}
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def identifier(name: str) -> str:
    """The name as part of an id."""
    return re.sub(r"\W", "-", name)


def _base(name: str, curves: Mapping[str, Any]) -> str:
    """evalLoss belongs to loss."""
    if name.startswith("eval") and name[4:5].isupper():
        base = name[4].lower() + name[5:]
        return base if base in curves else name
    return name


def _chart(name: str, lines: dict[str, list[Point]]) -> dict[str, Any]:
    columns: dict[str, list[Point]] = {}
    for each, points in lines.items():
        columns[f"{each} ({text('job.raw')})"] = points
        columns[f"{each} ({text('job.smooth')})"] = _smooth(points)
    return {
        "id": identifier(name),
        "name": name,
        "data": _columns(columns),
        "labels": list(columns),
        "soft": list(range(0, len(columns), 2)),
        "summaries": [_summary(each, points) for each, points in lines.items()],
    }


def _smooth(points: Sequence[Point]) -> list[Point]:
    line = smoothed([value for _, value in points])
    return [(step, value) for (step, _), value in zip(points, line, strict=True)]


def _columns(lines: Mapping[str, Sequence[Point]]) -> list[list[float | None]]:
    """The steps of all lines, then the values of each line at these steps. None: no value."""
    steps = sorted({step for points in lines.values() for step, _ in points})
    found: list[list[float | None]] = [list(steps)]
    for points in lines.values():
        values = dict(points)
        numbers = (values.get(step, math.nan) for step in steps)
        found.append([float(f"{value:.6g}") if math.isfinite(value) else None for value in numbers])
    return found


def _summary(name: str, points: Sequence[Point]) -> str:
    found = [(step, value) for step, value in points if math.isfinite(value)]
    if not found:
        return name
    values = [value for _, value in found]
    return text(
        "job.summary",
        name=name,
        first=f"{values[0]:.4g}",
        first_step=found[0][0],
        last=f"{values[-1]:.4g}",
        last_step=found[-1][0],
        low=f"{min(values):.4g}",
        high=f"{max(values):.4g}",
        points=len(found),
    )
