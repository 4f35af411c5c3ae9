"""`finetune plot`: the curves that the trainer reports in the status, in the terminal or as an image."""

import shutil
import sys
from pathlib import Path
from typing import Any

from finetune_cli import chart, jobs
from finetune_cli.problem import Exit, Problem

LOSS = "loss"
IMAGES = (".png", ".svg", ".pdf")


def curves_of(job: dict[str, Any]) -> dict[str, list[chart.Point]]:
    """Metric -> points. Raises Problem if the job has none."""
    from finetune_api.curves import unpack

    try:
        found = unpack(jobs.status(job))
    except ValueError as error:
        raise Problem(f"The curves of {job['metadata']['name']} cannot be read: {error}", Exit.FAILED) from error
    if not found:
        loss = (jobs.status(job).get("progress") or {}).get("loss")
        text = f" Its newest loss is {loss}." if loss else ""
        raise Problem(f"{job['metadata']['name']} has no curves in its status.{text}", Exit.NOT_FOUND)
    return found


def selected(found: list[dict[str, Any]], metric: str | None, smooth: bool = False) -> dict[str, list[chart.Point]]:
    """One curve of each job. Raises Problem if a job lacks it."""
    out = {}
    for job in found:
        curves = curves_of(job)
        chosen = metric or (LOSS if LOSS in curves else next(iter(curves)))
        if chosen not in curves:
            raise Problem(f"{job['metadata']['name']} has no curve {chosen}. It has: {', '.join(sorted(curves))}")
        out[job["metadata"]["name"]] = smoothed(curves[chosen]) if smooth else curves[chosen]
    return out


def smoothed(points: list[chart.Point]) -> list[chart.Point]:
    """The smoothed line of a curve."""
    from finetune_api import smoothing

    values = smoothing.smoothed([value for _, value in points])
    return [(step, value) for (step, _), value in zip(points, values, strict=True)]


def show(found: dict[str, list[chart.Point]]) -> None:
    """Draw as wide as the terminal."""
    size = shutil.get_terminal_size((100, 24))
    height = max(6, min(20, size.lines - 6))
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    for line in chart.draw(found, size.columns - 1, height, dots=encoding == "utf8"):
        print(line)


def check_image(file: str) -> None:
    """Raises Problem if no image of this kind can be drawn here."""
    import importlib.util

    if Path(file).suffix not in IMAGES:
        raise Problem(f"{file} has no ending that names an image. Endings: {', '.join(IMAGES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise Problem(
            "Images are drawn by matplotlib, which is not installed: pip install './cli[plot]' (in a checkout of"
            " finetune-operator), or pip install matplotlib"
        )


def save(found: dict[str, list[chart.Point]], file: str, metric: str) -> None:
    """Draw an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=metric)
    for name, points in found.items():
        axes.plot([step for step, _ in points], [value for _, value in points], label=name)
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(file)
    except OSError as error:
        raise Problem(f"{file} cannot be written: {error.strerror}") from error
