"""What somebody does with the Python SDK in a notebook, on any back end: the tests of each call this."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from finetune import TrainerClient
from finetune_cli.problem import Exit, Problem

NAME = "by-the-sdk"
STEPS = 20
SETTINGS: dict[str, Any] = {
    "training.globalBatchSize": 8,
    "training.microBatchSize": 8,
    "training.cutoffLength": 64,
    "training.learningRate": 0.01,
    "training.recompute": "none",
    "training.logEverySteps": 1,
    "tuning.lora.rank": 4,
}
LOGGED = re.compile(r"step (\d+)/20 +loss")


def play(client: TrainerClient, model: str, dataset: str, timeout: float, **settings: Any) -> None:
    """Train a tiny model, look at it from all sides, and delete the job. `settings` are those of the place."""
    wanted: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "name": NAME,
        "max_steps": STEPS,
        "workspace": "workspace",
        "settings": {**SETTINGS, **settings},
    }
    refused_before_anything_runs(client, wanted)
    assert client.train(**wanted) == NAME
    with pytest.raises(Problem, match=NAME) as twice:
        client.train(**wanted)
    assert twice.value.code is Exit.REFUSED
    assert NAME in [job.name for job in client.list_jobs()]

    # All lines come while it trains, each once.
    lines = list(client.get_job_logs(NAME, follow=True))
    assert steps(lines) == list(range(1, STEPS + 1)), lines
    seen: list[str] = []
    job = client.wait_for_job_status(NAME, timeout=timeout, callbacks=[lambda each: seen.append(each.status)])
    assert seen[-1] == job.status == "Succeeded"
    assert steps(list(client.get_job_logs(NAME))) == steps(lines)

    assert job.spec.training.max_steps == STEPS
    assert job.details.artifact is not None
    assert job.details.artifact.digest.startswith("sha256:")
    assert (job.artifact or "").endswith(f"jobs/{NAME}/artifact")
    assert job.metrics["steps"] == STEPS
    curve = job.curves["loss"]
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    assert job.metrics["finalLoss"] == pytest.approx(curve[-1][1], rel=1e-3)
    shown = job._repr_html_()
    assert "20/20 (100%)" in shown
    assert "<svg" in shown

    happened = [event.reason for event in client.get_job_events(NAME)]
    assert happened[0] == "Created"
    assert any(what.startswith("Succeeded") for what in happened), happened

    client.delete_job(NAME)
    end = time.monotonic() + timeout
    while NAME in [job.name for job in client.list_jobs()]:
        assert time.monotonic() < end, "the job is not deleted"
        time.sleep(0.2)
    with pytest.raises(Problem, match=NAME) as gone:
        client.get_job(NAME)
    assert gone.value.code is Exit.NOT_FOUND


def refused_before_anything_runs(client: TrainerClient, wanted: dict[str, Any]) -> None:
    """A wrong value and an unknown field are named, and no job is made."""
    for field, value, said in (
        ("training.learningRate", -1, "spec.training.learningRate: -1 given"),
        ("training.learningrate", 1, "spec.training.learningrate: unknown field"),
        ("stage", "sfft", "spec.stage: "),
    ):
        with pytest.raises(Problem, match="The job is not valid") as caught:
            client.train(**{**wanted, "settings": {field: value}})
        assert said in str(caught.value)
        assert caught.value.code is Exit.USAGE
    assert NAME not in [job.name for job in client.list_jobs()]


def steps(lines: list[str]) -> list[int]:
    """The steps that lines of a log report."""
    return [int(found[1]) for line in lines if (found := LOGGED.search(line))]
