"""training_loss.png: the loss as logged, and smoothed; training_eval_loss.png where the job evaluates.

Called by workflows on rank 0 after training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.checkpoints.storage import guard

CURVES = {"loss": "training loss", "eval_loss": "evaluation loss"}
"""What is drawn, as the trainer logs it -> what people call it."""
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
    for metric in CURVES:
        if points := [(entry["step"], entry[metric]) for entry in history if metric in entry]:
            _draw(reports, metric, points)


def _draw(reports: Path, metric: str, points: Sequence[tuple[int, float]]) -> None:
    # Imported here: a second of start-up that only the end of a run needs.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, losses = [p[0] for p in points], [p[1] for p in points]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot(steps, losses, color="#9db8d9", linewidth=1, marker=".", markersize=3, label=metric)
    axes.plot(steps, smoothed(losses), color="#1f4e8c", linewidth=2, label="smoothed")
    axes.set(xlabel="step", ylabel=CURVES[metric])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with guard(reports):
        reports.mkdir(parents=True, exist_ok=True)
        figure.savefig(reports / f"training_{metric}.png")
    pyplot.close(figure)
