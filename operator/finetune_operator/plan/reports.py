"""The trainer's reports: whose progress the status shows, where an attempt resumed, and since when reports are missed.

status.progress is the trainer's. The operator changes it only where no trainer will: it removes the progress of an
attempt that is over, and completes that of a job that has ended.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_api.micro_batch import first_micro_batch
from finetune_api.status import Attempt, FineTuneJobStatus, Progress, Result, finished

from finetune_operator.manifests.access import binding_name
from finetune_operator.names import Kind
from finetune_operator.plan.attempts import current, current_kind
from finetune_operator.plan.completion import terminal
from finetune_operator.plan.context import Context
from finetune_operator.views.metadata import Unreadable, format_time, parse_time
from finetune_operator.views.pod import PodView

SILENT_SECONDS = 300.0
"""The trainer reports every 15 s from its start, also while it loads, evaluates, compiles, saves and uploads. A restart
or an overload of the API server may take some minutes."""
REPORTS_MISSED = 4
"""Reports in a row that must be missed, for administrators who let the trainer report rarely."""


def own_progress(status: FineTuneJobStatus, kind: Kind, attempt: Attempt) -> Progress | None:
    """The progress that the attempt itself reported. Preparing and training number their attempts separately, and
    releases before `kind` left it to the activity whose progress it is."""
    progress = status.progress
    if progress is None or progress.attempt != attempt.number:
        return None
    reported = progress.kind or ("train" if progress.activity == "Training" else "prepare")
    return progress if reported == kind else None


def with_restarts(status: FineTuneJobStatus, kind: Kind, attempt: Attempt, result: Result | None = None) -> Attempt:
    """The entry of an attempt with the newest restart within its pods that its trainer has reported, in its progress or
    in its result. `result`: what its pod left as its termination message. The micro-batch is that since the restart."""
    progress = own_progress(status, kind, attempt)
    results = [found for found in (status.result, result) if found is not None]
    reported = [found.restart for found in results if (found.kind, found.attempt) == (kind, attempt.number)]
    known = [attempt.restarts, progress.restart if progress else None, *reported]
    newest = max(
        (restart for restart in known if restart is not None), key=lambda restart: restart.number, default=None
    )
    if newest is None or newest == attempt.restarts:
        return attempt
    smaller = first_micro_batch(newest, attempt)
    sizes = smaller.fields() if smaller else {}
    recompute = newest.recompute or attempt.recompute
    return attempt.model_copy(update={"restarts": newest, "recompute": recompute, **sizes})


def resumed(status: FineTuneJobStatus, attempt: Attempt) -> Attempt:
    """The entry of a training attempt with the checkpoint that it resumed from, once its trainer has reported it. It
    may be another checkpoint than the last reported: newer if a report was missed, older if that checkpoint is
    broken."""
    progress = own_progress(status, "train", attempt)
    step = progress.start_step if progress else None
    if step is None or (attempt.number == 1 and step == 0):
        return attempt
    return attempt.model_copy(update={"checkpoint_step": step})


def last_sign(status: FineTuneJobStatus, kind: Kind, attempt: Attempt, pods: Sequence[PodView]) -> datetime:
    """When the attempt last reported or, if it has not reported since, when its pods started."""
    starts = [pod.started for pod in pods if pod.started is not None]
    progress = own_progress(status, kind, attempt)
    try:
        reports = [parse_time(progress.last_update_time)] if progress else []
    except Unreadable:
        reports = []  # What the trainer writes is evidence; its absence is harmless.
    return max([parse_time(attempt.running_time or attempt.start_time), *starts, *reports])


def missed_at(context: Context, sign: datetime) -> datetime:
    """When the reports of an attempt that last reported then are missed."""
    interval = context.resolved.runtime.progress_interval_seconds
    return sign + timedelta(seconds=max(SILENT_SECONDS, REPORTS_MISSED * interval))


def silence(context: Context, sign: datetime, pods: Sequence[PodView]) -> str:
    """That reports are missed, and what to check."""
    namespace = context.view.namespace
    account, binding = context.view.account, binding_name(context.view.account, context.settings)
    pod = min(pods, key=lambda pod: pod.rank).name
    return (
        f"No report since {format_time(sign)}: progress may be older than the pod's. The pod works without reports, and"
        f" what it has made is not lost. Check that ServiceAccount {account} and RoleBinding {binding}"
        " exist, that network policies and spec.resources.env let the pod reach the API server, and the pod's log:"
        f" kubectl logs {pod} -n {namespace}"
    )


def due_progress(status: FineTuneJobStatus) -> Progress | None:
    """What status.progress should be: what the attempt at hand reported, or how far a job that has ended got."""
    kind = current_kind(status, ())
    attempt, outcome = current(status, kind), terminal(status)
    if outcome == "Succeeded":
        return _of_success(status)
    if attempt is None:
        return status.progress
    progress = own_progress(status, kind, attempt)
    if progress is None:
        return None
    if outcome == "Failed":
        return progress.model_copy(update={"eta": None, "eta_seconds": None}) if kind == "train" else None
    return None if attempt.state == "Ended" else progress


def _of_success(status: FineTuneJobStatus) -> Progress | None:
    """The report of the last step; if it was missed, or if an earlier job did the training, what the metrics say."""
    progress = status.progress
    if progress is not None and progress.activity == "Training" and progress.step == progress.total_steps > 0:
        return progress
    number = status.attempt or status.prepare_attempt or 1
    return finished(number, status.metrics, status.completion_time or "")
