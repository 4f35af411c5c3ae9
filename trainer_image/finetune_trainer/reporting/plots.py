"""One picture a metric: training_loss.png, training_eval_loss.png, and so on for all that the stage measures.

Called by workflows on rank 0 after training. A "/" in a metric's name is "_" in the file's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.checkpoints.storage import guard
from finetune_trainer.reporting.metrics import LOGGED

DRAWN = ("loss", "perplexity", "learning_rate", "grad_norm", *LOGGED)
"""What is drawn, and the same with eval_ before it."""
SMOOTHING = 0.8
"""Weight of the past in the smoothed line."""


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start so that the first value isn't favoured."""
    result: list[float] = []
    total = weight = 0.0
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(total / weight)
    return result


def write(reports: Path, history: Sequence[dict[str, Any]]) -> None:
    """Draw them from the trainer's log history."""
    curves = {
        metric: points
        for metric in (prefix + name for prefix in ("", "eval_") for name in DRAWN)
        if (points := [(entry["step"], entry[metric]) for entry in history if metric in entry])
    }
    # Imported here: a second of start-up that only the end of a run needs.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    with guard(reports):
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
