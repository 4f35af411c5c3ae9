"""GPU time by use: what runs, kills, restarts and absent operators leave in status.gpu always adds up."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.status import USES, Gpu, Use
from finetune_operator.plan.gpu import Hold, Report, by_use, whole
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import format_time
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Snapshot
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.unit.operator.make import NOW, begun, child_job, ended, job, reporting, result, running, step, with_status

GPU = {"nvidia.com/gpu": "4"}
ENDS = ("reports its end", "is killed", "hangs", "never reports")
SEEN = ("as it ended", "after it was deleted", "not at all")
"""What the operator still sees of the pods of a run that has ended."""


def at(after: float) -> Any:
    return NOW + timedelta(seconds=after)


@dataclass(frozen=True)
class Run:
    """A run of an attempt: seconds from the end of the run before to each event, one after the other."""

    scheduled: int
    begins: int
    trains: int
    tail: int
    end: str = "is killed"
    seen: str = "as it ended"
    redone: int = 0
    nodes: int = 1


def uses(number: int, since: float, run: Run) -> dict[str, Any]:
    milliseconds = {use: ms for use, ms in {"load": 500, "train": 1000 * run.trains - 500}.items() if ms > 0}
    return {
        "run": f"pod-{number}-0",
        "since": format_time(at(since)),
        "milliseconds": milliseconds,
        "redoneSteps": run.redone,
    }


def pods_of(number: int, run: Run, start: float, over: float | None) -> tuple[PodView, ...]:
    """The pods of a run; each next rank gets its node a second later."""
    made = []
    for rank in range(run.nodes):
        plain = running(number, rank) if over is None else ended(70, number, rank)
        begins = start + run.scheduled + run.begins
        scheduled = min(start + run.scheduled + rank, begins)
        released = None if over is None else at(over)
        made.append(
            replace(
                plain,
                uid=f"pod-{number}-{rank}",
                requests=GPU,
                created=at(start),
                scheduled=at(scheduled),
                begun=at(begins),
                ended=released,
                released=released,
            )
        )
    return tuple(made)


def held(pods: tuple[PodView, ...]) -> float:
    """GPU seconds by the pods' own times."""
    return sum(4 * (pod.released - pod.scheduled).total_seconds() for pod in pods if pod.released and pod.scheduled)


def play(view: JobView, number: int, run: Run, start: float) -> tuple[JobView, float, float]:
    """Let an attempt run and end; the job once the attempt after it has begun, its GPU seconds, and the time then."""
    began = start + run.scheduled + run.begins
    over = began + run.trains + run.tail
    child = child_job(number, created=at(start))
    view = with_status(view, step(view, Snapshot((child,), pods_of(number, run, start, None)), after=began))
    report = uses(number, began, run)
    if run.end in ("is killed", "hangs"):
        view = reporting(view, number, began + run.trains, uses=report)
    gone = pods_of(number, run, start, over)
    if run.end == "reports its end":
        said = result(75, number, uses=report).model_dump_json(by_alias=True, exclude_none=True)
        gone = tuple(replace(pod, terminated_message=said) if pod.rank == 0 else pod for pod in gone)
        if run.seen == "not at all":
            view = replace(view, status={**view.status, "result": json.loads(said)})
    if run.end == "hangs":
        gone = tuple(replace(pod, exit_code=76) for pod in gone)
    finished = replace(child, failed_reason="BackoffLimitExceeded", ended=at(over))
    snapshot = {
        "as it ended": Snapshot((finished,), gone),
        "after it was deleted": Snapshot((finished,), departed=gone),
        "not at all": Snapshot((finished,)),
    }[run.seen]
    planned = step(view, snapshot, after=over + 1)
    assert planned.status.attempts
    assert planned.status.attempts[-1].state == "Ended"
    view = with_status(view, planned)
    # Once more, as after a crash: nothing is counted twice.
    assert step(view, snapshot, after=over + 2).status.gpu == planned.status.gpu
    view = with_status(view, step(view, Snapshot((finished,), gone), after=over + 3000))
    return view, held(gone), over + 3000


def account(view: JobView) -> Gpu:
    return Gpu.model_validate(view.status["gpu"])


seconds = st.integers(0, 5000)
runs = st.builds(
    Run,
    scheduled=seconds,
    begins=seconds,
    trains=st.integers(1, 5000),
    tail=seconds,
    end=st.sampled_from(ENDS),
    seen=st.sampled_from(SEEN),
    redone=st.integers(0, 9),
    nodes=st.just(2),
)


@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.lists(runs, min_size=1, max_size=3))
def test_the_uses_of_any_history_add_up_to_the_time_of_its_pods(history: list[Run]) -> None:
    view, moment, total = begun(backoffLimit=99, resources={"nodes": 2, "gpusPerNode": 4}), 0.0, 0.0
    for number, run in enumerate(history, 1):
        view, spent, moment = play(view, number, run, moment)
        total += spent
    gpu = account(view)
    assert sum(gpu.uses.values()) == gpu.seconds
    # A note about pods that vanished has their start to the second, on average.
    assert abs(gpu.seconds - total) <= 4 * 2 * len(history)
    assert gpu.redone_steps == sum(run.redone for run in history if run.end != "never reports")
    assert gpu.run is None


ONE = Run(scheduled=10, begins=20, trains=100, tail=7)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(("end", "lost"), [("is killed", "redone"), ("hangs", "stalled"), ("reports its end", "idle")])
def test_what_is_after_the_last_report_is_lost(end: str, seen: str, lost: Use) -> None:
    if (end, seen) in {("hangs", "not at all"), ("hangs", "after it was deleted")}:
        lost = "redone"  # nobody knows that it hung
    view, _, _ = play(begun(backoffLimit=9), 1, replace(ONE, end=end, seen=seen), 0)
    assert account(view).uses == {"startup": 80, "load": 2, "train": 398, lost: 28}
    assert account(view).goodput == f"{398 / 508:.2f}"


def test_a_run_that_never_reported_is_lost_from_the_start_of_its_container() -> None:
    view, _, _ = play(begun(backoffLimit=9), 1, replace(ONE, end="never reports"), 0)
    assert account(view).uses == {"startup": 80, "redone": 428}
    assert (account(view).hours, account(view).goodput) == ("0.14", "0.00")


def test_the_run_at_hand_is_noted_only_with_what_is_written_anyway() -> None:
    view = begun()
    starting = pods_of(1, ONE, 0, None)
    waiting = tuple(
        replace(pod, running=False, phase="Pending", waiting_reason="ContainerCreating") for pod in starting
    )
    view = with_status(view, step(view, Snapshot((child_job(),)), after=1))
    assert "gpu" not in step(view, Snapshot((child_job(),), waiting), after=11).status.to_dict()
    view = with_status(view, step(view, Snapshot((child_job(),), starting), after=30))
    noted = {"id": "pod-1-0", "attempt": 1, "gpus": 4, "since": format_time(at(10))}
    assert view.status["gpu"]["run"] == noted
    later = reporting(view, after=130, uses=uses(1, 30, ONE))
    assert step(later, Snapshot((child_job(),), starting), after=131).status.gpu == account(view)


def test_pods_without_gpus_cost_nothing() -> None:
    """Those that prepare, and those that make the artifact of a checkpoint on the CPU."""
    bare = tuple(replace(pod, requests={"cpu": "8"}) for pod in pods_of(1, ONE, 0, 500))
    view = begun(backoffLimit=9)
    view = with_status(view, step(view, Snapshot((child_job(),), bare), after=30))
    planned = step(view, Snapshot((child_job(failed_reason="x", ended=at(500)),), bare), after=501)
    assert planned.status.gpu is None
    assert step(job(), Snapshot(), after=1).status.gpu is None


def test_the_pods_of_a_child_job_that_was_suspended_are_a_run_of_their_own() -> None:
    """Somebody, such as a queue, suspends the child job and lets it run again: the same attempt."""
    view, first = begun(), pods_of(1, ONE, 0, None)
    view = with_status(view, step(view, Snapshot((child_job(),), first), after=30))
    ending = tuple(replace(pod, released=at(200), ended=at(200)) for pod in first)
    view = with_status(view, step(view, Snapshot((child_job(suspended=True),), departed=ending), after=203))
    assert account(view).seconds == 4 * 190
    second = tuple(
        replace(pod, uid="pod-again", created=at(300), scheduled=at(300), begun=at(301))
        for pod in pods_of(1, ONE, 0, None)
    )
    view = with_status(view, step(view, Snapshot((child_job(),), second, departed=ending), after=310))
    over = tuple(replace(pod, released=at(400), ended=at(400), phase="Failed", exit_code=70) for pod in second)
    finished = child_job(failed_reason="x", ended=at(401))
    view = with_status(view, step(view, Snapshot((finished,), over, departed=ending), after=402))
    assert account(view).seconds == 4 * (190 + 100)


def test_a_pod_that_is_gone_before_its_end_is_seen_is_counted_with_what_it_said() -> None:
    """A live read shows that it is gone; the watch is late, and shows its last words a moment later."""
    view, pods = begun(), pods_of(1, ONE, 0, None)
    view = with_status(view, step(view, Snapshot((child_job(),), pods), after=30))
    finished = child_job(failed_reason="x", ended=at(201))
    planned = step(view, Snapshot((finished,), departed=pods), after=202)
    assert planned.status.gpu
    assert planned.status.gpu.run, "it is not over"
    view = with_status(view, planned)
    said = result(75, 1, uses=uses(1, 30, ONE)).model_dump_json(by_alias=True, exclude_none=True)
    ended = tuple(
        replace(pod, released=at(200), ended=at(200), terminated_message=said if pod.rank == 0 else "") for pod in pods
    )
    counted = account(with_status(view, step(view, Snapshot((finished,), departed=ended), after=203)))
    assert counted.run is None
    assert (counted.uses["load"], counted.uses["train"]) == (2, 398), "by its own words"


def test_a_run_whose_note_is_of_another_pod_is_counted_without_an_operator_that_saw_its_end() -> None:
    view = begun()
    view = with_status(view, step(view, Snapshot((child_job(),), pods_of(1, ONE, 0, None)), after=30))
    second = tuple(
        replace(pod, uid="pod-again", created=at(300), scheduled=at(300)) for pod in pods_of(1, ONE, 0, None)
    )
    view = with_status(view, step(view, Snapshot((child_job(),), second), after=310))
    assert account(view).seconds == 4 * 300, "nobody knows when its pods ended: at the latest now"
    assert account(view).run is None


holds = st.builds(
    lambda gpus, since, long, begun, ended: Hold(gpus, since, since + long, begun, ended),
    gpus=st.integers(1, 16),
    since=st.floats(0, 1e6),
    long=st.floats(0, 1e6),
    begun=st.none() | st.floats(-1e6, 3e6),
    ended=st.none() | st.floats(-1e6, 3e6),
)
reports = st.builds(
    Report,
    began=st.floats(-1e6, 3e6),
    uses=st.dictionaries(st.sampled_from(USES), st.floats(0.001, 1e9)),
    tail=st.sampled_from(USES),
)


@given(st.lists(holds, max_size=5), st.none() | reports)
def test_whatever_clocks_and_reports_say_the_parts_are_the_whole(held: list[Hold], report: Report | None) -> None:
    spent = by_use(held, report)
    total = sum(hold.gpus * (hold.until - hold.since) for hold in held)
    assert sum(spent.values()) == pytest.approx(total, abs=1e-3)
    assert min(spent.values()) >= -1e-6
    assert sum(whole(spent).values()) == round(sum(spent.values()))
