"""Schedulers by name: the learning rate of each step."""

from typing import Any, get_args

import pytest
import torch
from finetune_api.training import TrainingSpec
from finetune_trainer.training import arguments
from transformers import get_scheduler

from tests.trainer.support import tiny

STEPS, RATE = 20, 1e-8  # a rate below the end that transformers' polynomial has by itself
WARMUP = 0.2  # four steps
NAMES = get_args(TrainingSpec.model_fields["scheduler"].annotation)


def rates(steps: int = STEPS, **training: Any) -> list[float]:
    """The rate of each optimizer step and the rate after the last, as parts of the peak."""
    spec = tiny.job(training={"maxSteps": steps, "learningRate": RATE, "warmupRatio": WARMUP, **training}).training
    settings = arguments.schedule(spec, steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule: Any = get_scheduler(
        settings["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=settings["warmup_steps"],
        num_training_steps=steps,
        scheduler_specific_kwargs=settings["lr_scheduler_kwargs"],
    )
    found = []
    for _ in range(steps + 1):
        found.append(schedule.get_last_lr()[0] / RATE)
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("scheduler", "settings", "middle", "end"),
    [
        ("linear", {}, 0.5, 0.0),
        ("cosine", {}, 0.5, 0.0),
        # Waves of 8 steps, the second of which begins in the middle; it is at zero when all is over.
        ("cosine_with_restarts", {}, 1.0, 0.0),
        ("cosine_with_restarts", {"schedulerCycles": 4}, 1.0, 0.0),
        ("cosine_with_restarts", {"schedulerCycles": 3}, 0.5, 0.0),
        ("cosine_with_min_lr", {}, 0.55, 0.1),
        ("cosine_with_min_lr", {"minLearningRateRatio": 0.0}, 0.5, 0.0),
        ("polynomial", {}, 0.5, 0.0),
        ("polynomial", {"minLearningRateRatio": 0.2}, 0.6, 0.2),
        ("constant", {}, 1.0, 1.0),
        ("constant_with_warmup", {}, 1.0, 1.0),
        ("inverse_sqrt", {}, (4 / 12) ** 0.5, (4 / 20) ** 0.5),
        ("warmup_stable_decay", {}, 1.0, 0.0),
        ("warmup_stable_decay", {"decayRatio": 0.8, "minLearningRateRatio": 0.2}, 0.6, 0.2),
    ],
)
def test_the_rate_rises_to_its_peak_and_then_follows_its_schedule(
    scheduler: str, settings: dict[str, Any], middle: float, end: float
) -> None:
    found = rates(scheduler=scheduler, **settings)
    assert found[2] == pytest.approx(0.6 if settings.get("decayRatio") else 0.5)
    assert found[4] == pytest.approx(1.0)
    assert found[12] == pytest.approx(middle)
    assert found[STEPS] == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize("scheduler", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_reach_the_peak_despite_rounding(scheduler: str, steps: int) -> None:
    """Ratios of few steps are rounded up: warm-up and decay together would be longer than the run."""
    shares: dict[str, Any] = {"decayRatio": 0.5} if scheduler == "warmup_stable_decay" else {}
    found = rates(steps, scheduler=scheduler, warmupRatio=0.5, **shares)
    assert max(found[:steps]) == pytest.approx(1.0)
    assert all(0 <= rate <= 1 for rate in found)
