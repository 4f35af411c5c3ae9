"""What /metrics says of jobs, and when its counters count."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from finetune_api.live_metrics import PROGRESS_METRICS
from finetune_operator.exposition import Family, Histogram, Samples, render
from finetune_operator.job_metrics import job_samples
from finetune_operator.metrics import FAMILIES, Metrics
from finetune_operator.milestones import record
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Raw, format_time

from tests.unit.operator import make

PAGE = Path(__file__).resolve().parents[3] / "docs" / "monitoring.md"


def at(seconds: int) -> str:
    """A time after make.NOW."""
    return format_time(make.NOW + timedelta(seconds=seconds))


def condition(kind: str, status: str, seconds: int) -> Raw:
    return {"type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": at(seconds)}


def attempt(number: int = 1, state: str = "Running", **facts: Any) -> Raw:
    return {"number": number, "job": f"demo-{number}", "state": state, "startTime": at(0), **facts}


def training(step: int, seconds: int, number: int = 1, **facts: Any) -> Raw:
    """Progress of a trainer that began with step 0, unless said otherwise."""
    progress = {"attempt": number, "kind": "train", "activity": "Training", "step": step, "totalSteps": 200}
    return {**progress, "startStep": 0, "lastUpdateTime": at(seconds), **facts}


RUNNING: Raw = {
    "phase": "Running",
    "conditions": [condition("Accepted", "True", 0), condition("Running", "True", 60)],
    "attempt": 1,
    "attempts": [attempt(runningTime=at(60), restarts={"number": 2})],
    "progress": training(
        50, 90, loss="1.25", tokensPerSecond="800", etaSeconds=300, memoryBytes=2**30, slowestRank={"ratio": "1.31"}
    ),
    "checkpoint": {"attempt": 1, "step": 40, "path": "p", "time": at(80), "seconds": 3},
}


def lines(jobs: list[JobView], seconds: int = 100) -> dict[str, str]:
    """The series of a leader, by name with labels."""
    now = make.NOW + timedelta(seconds=seconds)
    text = Metrics(leading=lambda: True, jobs=lambda: job_samples(jobs, now)).render()
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_a_running_job_shows_what_its_status_says() -> None:
    told = lines([make.job(RUNNING, resources={"nodes": 2, "gpusPerNode": 4})])
    of_job = 'namespace="team",name="demo",stage="sft"'
    live = {
        name: value
        for name, value in told.items()
        if name.startswith("finetune_job_") and name.endswith(f"{{{of_job}}}")
    }
    assert {name.split("{")[0].removeprefix("finetune_job_"): value for name, value in live.items()} == {
        "gpus": "8",
        "attempt": "1",
        "restarts": "2",
        "step": "50",
        "progress_ratio": "0.25",
        "eta_seconds": "300",
        "loss": "1.25",
        "tokens_per_second": "800",
        "step_seconds": "2",
        "slowest_rank_ratio": "1.31",
        "checkpoint_age_seconds": "20",
        "checkpoint_save_seconds": "3",
        "peak_memory_bytes": "1073741824",
    }
    assert told[f'finetune_job_phase_seconds{{{of_job},phase="Running"}}'] == "40"
    assert told[f'finetune_job_info{{{of_job},persistentvolumeclaim="workspace"}}'] == "1"
    assert len([name for name in told if 'name="demo"' in name]) == 15


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_job_has_no_series_of_its_own(phase: str) -> None:
    told = lines([make.job({**RUNNING, "phase": phase})])
    assert told[f'finetune_jobs{{namespace="team",stage="sft",phase="{phase}"}}'] == "1"
    assert not any('name="demo"' in name for name in told)


def test_a_job_that_waits_has_one_series() -> None:
    waits = {"phase": "Queued", "conditions": [condition("QuotaReserved", "False", 10)], "progress": training(5, 9)}
    told = [name for name in lines([make.job(waits)]) if 'name="demo"' in name]
    assert told == ['finetune_job_phase_seconds{namespace="team",name="demo",stage="sft",phase="Queued"}']


def test_a_status_that_nobody_understands_is_no_error() -> None:
    strange: Raw = {"phase": "Running", "conditions": "no", "attempts": [7], "progress": {"step": "x", "loss": "nan"}}
    told = lines([make.job(strange, resources={"nodes": "many"})])
    assert told['finetune_jobs{namespace="team",stage="sft",phase="Running"}'] == "1"


def test_a_standby_says_nothing_of_jobs() -> None:
    metrics = Metrics(jobs=lambda: job_samples([make.job(RUNNING)], make.NOW))
    metrics.attempts["sft", "done"] += 1
    assert "finetune_job" not in metrics.render()
    assert "finetune_attempts" not in metrics.render()


def change(before: Raw, after: Raw) -> Metrics:
    """What counts when a job's status changes."""
    metrics = Metrics(leading=lambda: True)
    old = replace(make.job(before), created=at(0))
    record(metrics, old, replace(old, status=after))
    return metrics


@pytest.mark.parametrize(
    ("end", "counted"),
    [
        ({"reason": "Completed", "exitCode": 0}, "done"),
        ({"reason": "InvalidData", "exitCode": 65}, "user_error"),
        ({"reason": "Disrupted"}, "disruption"),
        ({"reason": "Disrupted", "exitCode": 137}, "disruption"),
        ({"reason": "NoSpace", "exitCode": 73}, "fatal"),
        ({"reason": "GPUOutOfMemory", "exitCode": 71}, "gpu_out_of_memory"),
        ({"reason": "Hung", "exitCode": 76}, "retry"),
        ({"reason": "Unknown"}, "retry"),
        ({"reason": "SuspendedByUser", "exitCode": 75}, "user"),
    ],
)
def test_the_end_of_an_attempt_counts_once(end: Raw, counted: str) -> None:
    before = {**RUNNING, "attempts": [attempt()]}
    after = {**RUNNING, "attempts": [attempt(state="Ended", **end)]}
    assert change(before, after).attempts == {("sft", counted): 1}
    assert not change(after, after).attempts


def test_the_first_step_is_timed_from_the_creation_of_the_job() -> None:
    before = {**RUNNING, "attempts": [attempt()], "progress": training(0, 70)}
    metrics = change(before, {**before, "progress": training(1, 75)})
    assert metrics.first_step.sums == {(): 75}
    assert not metrics.recovery.sums


def test_a_recovery_is_timed_from_the_end_of_the_attempt_before() -> None:
    listed = [attempt(state="Ended", reason="Disrupted", endTime=at(100)), attempt(2)]
    before = {**RUNNING, "attempt": 2, "attempts": listed, "progress": training(40, 130, 2, startStep=40)}
    metrics = change(before, {**before, "progress": training(41, 160, 2, startStep=40)})
    assert metrics.recovery.sums == {("Disrupted",): 60}
    assert not metrics.first_step.sums


def test_a_restart_in_the_same_pods_is_a_recovery() -> None:
    told = {"number": 1, "reason": "Hung", "time": at(100)}
    before = {**RUNNING, "progress": {**training(0, 101, restart=told), "activity": "Loading"}}
    metrics = change(before, {**before, "progress": training(41, 130, startStep=40, restart=told)})
    assert metrics.recovery.sums == {("Hung",): 30}


def test_what_a_user_paused_needs_no_recovery() -> None:
    listed = [attempt(state="Ended", reason="SuspendedByUser", endTime=at(100)), attempt(2)]
    before = {**RUNNING, "attempt": 2, "attempts": listed, "progress": training(40, 130, 2, startStep=40)}
    assert not change(before, {**before, "progress": training(41, 160, 2, startStep=40)}).recovery.sums


def test_the_wait_for_quota_is_timed_by_the_condition() -> None:
    before = {"phase": "Queued", "conditions": [condition("QuotaReserved", "False", 10)]}
    after = {"phase": "Starting", "conditions": [condition("QuotaReserved", "True", 130)]}
    assert change(before, after).queued.sums == {(): 120}
    assert not change(after, after).queued.sums


def test_a_leader_shows_zeros_from_the_start() -> None:
    """Else a dashboard would never see the first end of an attempt: `increase` needs a value before it."""
    told = lines([])
    assert told['finetune_attempts_total{stage="sft",end_class="disruption"}'] == "0"
    assert told['finetune_recovery_seconds_count{cause="Disrupted"}'] == "0"
    assert told["finetune_time_to_first_step_seconds_sum"] == "0"
    assert told['finetune_operator_trainer_restarts_total{reason="Hung"}'] == "0"


def test_with_metrics_from_pods_the_operator_leaves_out_what_they_show() -> None:
    told = job_samples([make.job(RUNNING)], make.NOW, "pods")
    assert "finetune_job_checkpoint_age_seconds" in told
    assert not {f"finetune_job_{name}" for name in PROGRESS_METRICS} & set(told)


def test_both_formats_have_the_same_samples() -> None:
    histogram = Histogram((1, 5))
    for value in (0.5, 1, 4, 9):
        histogram.observe(value, 'a "quoted" \\ cause')
    metrics: list[tuple[Family, Samples | Histogram]] = [
        (Family("x_total", "counter", "Some.", ("reason",)), {("Hung",): 2}),
        (Family("y_seconds", "histogram", "Time.", ("cause",)), histogram),
    ]
    plain, open_metrics = render(metrics), render(metrics, open_metrics=True)
    assert [line for line in plain.splitlines() if line[0] != "#"] == [
        'x_total{reason="Hung"} 2',
        r'y_seconds_bucket{cause="a \"quoted\" \\ cause",le="1.0"} 2',
        r'y_seconds_bucket{cause="a \"quoted\" \\ cause",le="5.0"} 3',
        r'y_seconds_bucket{cause="a \"quoted\" \\ cause",le="+Inf"} 4',
        r'y_seconds_sum{cause="a \"quoted\" \\ cause"} 14.5',
        r'y_seconds_count{cause="a \"quoted\" \\ cause"} 4',
    ]
    assert "# TYPE x_total counter" in plain
    assert "# TYPE x counter" in open_metrics
    assert open_metrics.endswith("# EOF\n")
    assert [line for line in open_metrics.splitlines() if line[0] != "#"] == [
        line for line in plain.splitlines() if line[0] != "#"
    ]


def test_the_page_lists_every_metric_with_its_labels() -> None:
    page = PAGE.read_text()
    for family in FAMILIES:
        row = f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels) or '–'} |"
        assert row in page, f"docs/monitoring.md lacks this row: {row} {family.explanation} |"
