"""A plot for each metric of the stage: training_loss.png, training_eval_loss.png, …

Workflows call this on rank 0 after training. A "/" in the name of a metric becomes "_" in the name of the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.smoothing import smoothed

from finetune_trainer.reporting.names import LOGGED
from finetune_trainer.workspace.storage import save_errors

DRAWN = ("loss", "perplexity", "learning_rate", "grad_norm", *LOGGED)
"""Metrics with a plot, and the same with the prefix eval_."""


def write(reports: Path, history: Sequence[dict[str, Any]]) -> None:
    """Write the plots of the trainer's log history into ``reports``."""
    curves = {
        metric: points
        for metric in (prefix + name for prefix in ("", "eval_") for name in DRAWN)
        if (points := [(entry["step"], entry[metric]) for entry in history if metric in entry])
    }
    # Imported here: it takes a second, and only the end of a run needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    with save_errors(reports):
        reports.mkdir(parents=True, exist_ok=True)
        for metric, points in curves.items():
            steps, values = zip(*points, strict=True)
            axes.clear()
            axes.plot(steps, values, color="#9db8d9", linewidth=1, marker=".", markersize=3, label=metric)
            axes.plot(steps, smoothed(values), color="#1f4e8c", linewidth=2, label="smoothed")
            axes.set(xlabel="step", ylabel=metric)
            axes.grid(alpha=0.3)
            axes.legend()
            figure.tight_layout()
            figure.savefig(reports / f"training_{metric.replace('/', '_')}.png")
    pyplot.close(figure)
