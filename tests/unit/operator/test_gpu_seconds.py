"""The metric of GPU seconds: what a process has seen since it started, never twice and never downwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.gpu_seconds import GpuSeconds
from finetune_operator.metrics import Metrics
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import format_time

from tests.unit.operator.make import NOW, job, reporting

RUN = {"id": "pod", "attempt": 1, "gpus": 4, "since": format_time(NOW)}


def counted(**amounts: int) -> JobView:
    return job({"gpu": {"hours": "", "seconds": sum(amounts.values()), "uses": amounts}})


def at_work(milliseconds: dict[str, int], run: str = "pod", **amounts: int) -> JobView:
    """A job whose run began a minute after NOW."""
    view = counted(**amounts)
    view = replace(view, status={"gpu": {**view.status["gpu"], "run": RUN}})
    since = format_time(NOW + timedelta(seconds=60))
    return reporting(view, uses={"run": run, "since": since, "milliseconds": milliseconds})


@pytest.fixture
def seen() -> GpuSeconds:
    return GpuSeconds(lambda: NOW + timedelta(hours=1))


def show(seen: GpuSeconds) -> dict[str, float]:
    return {use: seconds for (_, _, use), seconds in seen.samples().items()}


def test_only_what_was_seen_since_the_start_counts(seen: GpuSeconds) -> None:
    seen.changed(None, counted(train=1000))
    assert show(seen) == {}
    seen.changed(None, counted(train=1500, save=20))
    assert seen.samples()["team", "sft", "train"] == 500
    assert show(seen) == {"train": 500, "save": 20}


def test_a_run_at_hand_counts_as_far_as_its_trainer_reported_and_its_end_only_the_rest(seen: GpuSeconds) -> None:
    seen.changed(None, job())
    seen.changed(None, at_work({"load": 5000}))
    assert show(seen) == {"startup": 240, "load": 20}
    seen.changed(None, at_work({"load": 5000, "train": 100_000}))
    assert show(seen) == {"startup": 240, "load": 20, "train": 400}
    seen.changed(None, counted(startup=240, load=20, train=420, redone=60))
    assert show(seen) == {"startup": 240, "load": 20, "train": 420, "redone": 60}


def test_an_amount_that_becomes_smaller_adds_nothing_until_it_is_reached_again(seen: GpuSeconds) -> None:
    seen.changed(None, job())
    for amount in (100, 40, 90, 130):
        seen.changed(None, counted(train=amount))
    assert show(seen) == {"train": 130}


@pytest.mark.parametrize(
    "view",
    [
        at_work({"train": 100_000}, run="another pod"),
        at_work({"train": 10**12}),
        at_work({"train": -5}),
        replace(at_work({}), status={**at_work({}).status, "progress": {"uses": {"run": "pod", "since": "x"}}}),
    ],
    ids=["of another run", "longer than it can be", "negative", "no time"],
)
def test_a_report_that_cannot_be_true_counts_nothing(seen: GpuSeconds, view: JobView) -> None:
    seen.changed(None, job())
    seen.changed(None, view)
    assert show(seen) == {}


def test_a_job_made_again_under_the_name_starts_from_its_own_account(seen: GpuSeconds) -> None:
    seen.changed(None, job())
    seen.changed(None, counted(train=100))
    again = replace(counted(train=70), uid="another")
    seen.changed(None, again)
    seen.changed(again, None)
    seen.changed(None, replace(counted(train=90), uid="another"))
    assert show(seen) == {"train": 100}


@pytest.mark.parametrize("leading", [True, False])
def test_only_the_leader_shows_them(seen: GpuSeconds, leading: bool) -> None:
    seen.changed(None, job())
    seen.changed(None, counted(train=100))
    metrics: Any = Metrics(leading=lambda: leading, gpu_seconds=seen.samples)
    assert ("finetune_gpu_seconds_total{" in metrics.render()) == leading
