"""GPU time by use: how long pods held GPUs, and what for.

The pods say how long, from their node to the end of their containers. The trainer says what for: its report has the
time of its run by use, up to the last sign of its ranks (`finetune_api.status.gpu`). What is before it is startup, and
what is after it is lost, unless the trainer reported its end.

status.gpu has the sums over the runs that have ended. A run enters them once, in the write that removes it from
status.gpu.run, so that no crash counts it twice. The run at hand is noted there with whatever is written anyway: what
holds GPUs now may have vanished when an operator looks again. No write is made for that note alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api.kubernetes import quantity
from finetune_api.status import USES, Attempt, FineTuneJobStatus, Gpu, GpuRun, Reason, Result, RunUses, Use
from pydantic import ValidationError

from finetune_operator.plan.attempts import current
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Unreadable, format_time, parse_time, section
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Snapshot

NOTHING = Gpu(hours="0.00", seconds=0, uses={})
TRAINED: tuple[Use, ...] = ("train", "redone")


@dataclass(frozen=True)
class Hold:
    """GPUs that a pod held, with times in seconds since 1970."""

    gpus: int
    since: float
    until: float
    begun: float | None = None
    """When the trainer's container began. None: never, or nobody knows."""
    ended: float | None = None
    """When the trainer's container ended. None: with the pod, or nobody knows."""


@dataclass(frozen=True)
class Report:
    """What the trainer reported of a run."""

    began: float
    uses: Mapping[Use, float]
    """Seconds."""
    tail: Use
    """What the time after the report counts for, until the trainer's container ended."""


def with_gpu(
    view: JobView, status: FineTuneJobStatus, before: FineTuneJobStatus, snapshot: Snapshot, now: datetime
) -> FineTuneJobStatus:
    """The status with the run at hand noted or, once its pods are gone, counted. ``before``: the status as it is on the
    server."""
    known = status.gpu.run if status.gpu else None
    candidates = _holders(view, status, snapshot)
    if known is None and not candidates:
        return status
    pods = _of_run(known, candidates)
    run = _noted(known, pods, view)
    attempt = current(status, "train")
    child = snapshot.child_job("train", run.attempt)
    if _is_over(run, pods, candidates, attempt, child):
        return status.model_copy(update={"gpu": _counted(view, status, run, pods, child, now)})
    if run == known or status == before:
        return status
    return status.model_copy(update={"gpu": (status.gpu or NOTHING).model_copy(update={"run": run})})


def gpus_of(view: JobView, pod: PodView) -> int:
    """How many GPUs a pod holds while it has a node."""
    resource = str(section(view.spec, "resources").get("gpuResource") or "nvidia.com/gpu")
    try:
        return int(quantity(pod.requests.get(resource, "0")))
    except (ValueError, KeyError):
        return 0


def _holders(view: JobView, status: FineTuneJobStatus, snapshot: Snapshot) -> list[PodView]:
    """The pods that hold or held GPUs and are not counted, of the oldest attempt that has any. Oldest first."""
    counted = parse_time(status.gpu.counted) if status.gpu and status.gpu.counted else None
    seen = {pod.uid: pod for pod in (*snapshot.departed, *snapshot.pods) if pod.kind == "train"}
    pods = [pod for pod in seen.values() if pod.scheduled is not None and gpus_of(view, pod)]
    pods = [pod for pod in pods if counted is None or pod.created > counted]
    oldest = min((pod.attempt for pod in pods), default=0)
    if status.gpu and status.gpu.run:
        oldest = status.gpu.run.attempt
    return sorted((pod for pod in pods if pod.attempt == oldest), key=lambda pod: (pod.created, pod.rank))


def _of_run(known: GpuRun | None, pods: Sequence[PodView]) -> list[PodView]:
    """Those of the run at hand: one for each rank. A child job that was suspended has pods of several runs."""
    heads = [pod.uid for pod in pods if pod.rank == 0]
    if known is not None and known.id is not None and heads and known.id not in heads:
        return []  # all pods of the run are gone, and these are of the next
    first: dict[int, PodView] = {}
    for pod in pods:
        first.setdefault(pod.rank, pod)
    return list(first.values())


def _noted(known: GpuRun | None, pods: Sequence[PodView], view: JobView) -> GpuRun:
    """The note about the run, with pods that got a node since."""
    gpus = sum(gpus_of(view, pod) for pod in pods)
    if known is not None and known.gpus >= gpus:
        return known
    since = sum(gpus_of(view, pod) * _scheduled(pod) for pod in pods) / gpus
    head = next((pod.uid for pod in pods if pod.rank == 0), None)
    moment = format_time(datetime.fromtimestamp(round(since), UTC))
    return GpuRun(id=head, attempt=pods[0].attempt, gpus=gpus, since=moment)


def _is_over(
    run: GpuRun,
    pods: Sequence[PodView],
    candidates: Sequence[PodView],
    attempt: Attempt | None,
    child: ChildJobView | None,
) -> bool:
    """Whether the run has ended and its pods hold nothing any more. Between the end of its pods and that of their child
    job there is a second or two, for which no write is made."""
    if any(pod.released is None and not pod.gone for pod in pods):
        return False
    if attempt is None or attempt.number != run.attempt or attempt.state == "Ended":
        return True
    return len(candidates) > len(pods) or (child is not None and child.suspended)


def _counted(
    view: JobView,
    status: FineTuneJobStatus,
    run: GpuRun,
    pods: Sequence[PodView],
    child: ChildJobView | None,
    now: datetime,
) -> Gpu:
    """The sums with this run."""
    before = status.gpu or NOTHING
    uses, final = _uses(status, run, pods)
    report = _report(status, run, uses, final=final)
    at_latest = now.timestamp()
    if child is not None and child.ended is not None:
        at_latest = child.ended.timestamp()
    elif report is not None and final:
        at_latest = report.began + sum(report.uses.values())
    holds = [_hold(view, pod, at_latest) for pod in pods]
    unseen = run.gpus - sum(hold.gpus for hold in holds)
    if unseen > 0:
        # Their pods vanished while no operator looked.
        started = run.gpus * parse_time(run.since).timestamp() - sum(hold.gpus * hold.since for hold in holds)
        holds.append(Hold(unseen, started / unseen, max(at_latest, started / unseen)))
    spent = whole(by_use(holds, report))
    sums = dict(before.uses)
    for use, amount in spent.items():
        sums[use] = sums.get(use, 0) + amount
    seconds = sum(sums.values())
    # Pods that nobody saw end were created before they had their node.
    newest = max([pod.created for pod in pods] + ([parse_time(run.since)] if unseen > 0 else []))
    return Gpu(
        hours=f"{seconds / 3600:.2f}",
        goodput=f"{sums['train'] / seconds:.2f}" if seconds else None,
        seconds=seconds,
        uses={use: amount for use, amount in sums.items() if amount},
        redone_steps=before.redone_steps + (max(0, uses.redone_steps) if uses else 0),
        counted=format_time(newest),
    )


def _hold(view: JobView, pod: PodView, at_latest: float) -> Hold:
    since = _scheduled(pod)
    until = max(since, pod.released.timestamp() if pod.released else at_latest)
    begun = pod.begun.timestamp() if pod.begun else None
    return Hold(gpus_of(view, pod), since, until, begun, pod.ended.timestamp() if pod.ended else None)


def _scheduled(pod: PodView) -> float:
    assert pod.scheduled is not None, "else it holds nothing"
    return pod.scheduled.timestamp()


def _uses(status: FineTuneJobStatus, run: GpuRun, pods: Sequence[PodView]) -> tuple[RunUses | None, bool]:
    """What the trainer last reported of the run, and whether that was at its end."""
    results = [_result(pod) for pod in pods] + [status.result]
    for result in results:
        if result is not None and result.uses is not None and result.uses.run == run.id:
            return result.uses, True
    uses = status.progress.uses if status.progress else None
    return (uses, False) if uses is not None and uses.run == run.id else (None, False)


def _result(pod: PodView) -> Result | None:
    try:
        return Result.model_validate_json(pod.terminated_message) if pod.terminated_message else None
    except ValidationError:
        return None


def _report(status: FineTuneJobStatus, run: GpuRun, uses: RunUses | None, *, final: bool) -> Report | None:
    if uses is None:
        return None
    try:
        began = parse_time(uses.since).timestamp()
    except Unreadable:
        return None  # What the trainer writes is evidence; its absence is harmless.
    seconds = {use: uses.milliseconds[use] / 1000 for use in USES if uses.milliseconds.get(use, 0) > 0}
    attempt = current(status, "train")
    hung = attempt is not None and attempt.number == run.attempt and attempt.reason == Reason.HUNG
    lost: Use = "stalled" if hung else "redone" if any(use in seconds for use in TRAINED) else "load"
    return Report(began, seconds, "idle" if final else lost)


def by_use(holds: Sequence[Hold], report: Report | None) -> dict[Use, float]:
    """GPU seconds by use. Their sum is the time of the holds, whatever the report says."""
    spent: dict[Use, float] = dict.fromkeys(USES, 0.0)
    for hold in holds:
        for use, seconds in _of_hold(hold, report).items():
            spent[use] += hold.gpus * seconds
    return spent


def _of_hold(hold: Hold, report: Report | None) -> dict[Use, float]:
    """Seconds of one pod by use: startup, what the report says, what is after the report, and what is after the
    trainer. Each part ends within the pod's time, as the clocks of nodes differ."""
    spent: dict[Use, float] = dict.fromkeys(USES, 0.0)
    reported = sum(report.uses.values()) if report else 0.0
    if report is not None:
        began, tail = report.began, report.tail
    else:  # It never reported: what its container did is lost.
        began, tail = hold.until if hold.begun is None else hold.begun, "redone"
    began = min(max(began, hold.since), hold.until)
    ended = min(max(began, hold.until if hold.ended is None else hold.ended), hold.until)
    last = min(max(began, report.began + reported if report else began), ended)
    spent["startup"] = began - hold.since
    if report is not None and reported > 0:
        for use, seconds in report.uses.items():
            spent[use] += seconds / reported * (last - began)
    spent[tail] += ended - last
    spent["idle"] += hold.until - ended
    return spent


def whole(spent: Mapping[Use, float]) -> dict[Use, int]:
    """In whole seconds whose sum is the rounded sum."""
    rounded = {use: int(seconds) for use, seconds in spent.items()}
    left = round(sum(spent.values())) - sum(rounded.values())
    for use in sorted(spent, key=lambda use: rounded[use] - spent[use])[:left]:
        rounded[use] += 1
    return rounded
