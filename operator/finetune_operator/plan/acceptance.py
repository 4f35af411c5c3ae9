"""Whether a job can run."""

from collections.abc import Sequence
from typing import NamedTuple

from finetune_api import foreign_names
from finetune_api.contract import RESOLVED_JOB_BYTES, ResolvedJob, resolve
from finetune_api.defaults import apply_defaults
from finetune_api.job import API_VERSION, KIND, FineTuneJob
from finetune_api.lenient import are_unknown_values
from finetune_api.model import check_allowed
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Reason, Reference
from pydantic import ValidationError

from finetune_operator.plan.attempts import current_kind
from finetune_operator.plan.conditions import sentence
from finetune_operator.plan.decision import Need, missing_gpu_memory
from finetune_operator.settings import Settings
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

POLL_SECONDS_MAX = 600.0


class Invalid(Exception):
    """The job can never run. The message is for the user."""

    def __init__(self, message: str, reason: Reason = Reason.INVALID_SPEC) -> None:
        super().__init__(message)
        self.reason = reason


class Blocked(Exception):
    """The job cannot be accepted now. The message says what it waits for."""

    def __init__(self, message: str, reason: Reason, *, poll_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.poll_seconds = poll_seconds
        """When to look again at first, where no event reports a change. The pauses double, up to `POLL_SECONDS_MAX`."""


class Parsed(NamedTuple):
    """A spec that this release understands."""

    job: FineTuneJob
    unknown: tuple[str, ...]
    """Paths of the fields that it does not know and ignores."""


def need_gpu_memory(job: FineTuneJob, status: FineTuneJobStatus, snapshot: Snapshot, settings: Settings) -> Need | None:
    """Only the estimate that a prepare attempt makes uses the memory of the nodes' GPUs."""
    resources = job.spec.resources
    if not settings.read_node_labels or resources.gpu_memory or not resources.gpus_per_node:
        return None
    preparing = current_kind(status, snapshot.child_jobs) == "prepare"
    return missing_gpu_memory(snapshot, resources) if preparing else None


def parse_spec(view: JobView, settings: Settings) -> Parsed:
    """The job, checked as far as possible without the jobs that it depends on. Raises Invalid; raises Blocked if only
    another release can read it. The API server refuses most mistakes before."""
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": view.name, "namespace": view.namespace, "uid": view.uid},
        "spec": view.spec,
    }
    unknown: tuple[str, ...] = ()
    try:
        try:
            job = FineTuneJob.model_validate(document)
        except ValidationError as error:
            # The CRD may be another release's: the API server knows the fields, and may have set them itself.
            unknown = tuple(_unknown_field(e["loc"]) for e in error.errors() if e["type"] == "extra_forbidden")
            job = FineTuneJob.model_validate(document, extra="ignore")
    except ValidationError as error:
        problems = [f"{_path(e['loc'])}: {e['msg']}" for e in error.errors()[:5]]
        why = "; ".join([*problems, *(f"unknown field {field}" for field in unknown[:5])])
        if are_unknown_values(error):
            raise Blocked(
                f"This release of the operator does not know a value that the installed CRD allows: {sentence(why)}"
                " Upgrade the operator, or recreate the job with another value.",
                Reason.NOT_SUPPORTED,
            ) from error
        raise Invalid(why) from error
    try:
        check_allowed(job.spec.model, allow_remote_code=settings.allow_remote_code)
        apply_defaults(job.spec)
    except ValueError as error:
        raise Invalid(str(error)) from error
    _check_size(job.spec)
    return Parsed(job, unknown)


def accept(
    job: FineTuneJob, references: Sequence[Reference], settings: Settings, gpu_memory_bytes: int | None = None
) -> ResolvedJob:
    """The resolved job. Raises Invalid.

    `gpu_memory_bytes` is what the nodes' labels state, for jobs that do not state it themselves.
    """
    try:
        resolved = resolve(
            job,
            references=references,
            allow_cpu=settings.allow_cpu,
            allow_remote_code=settings.allow_remote_code,
            gpu_memory_bytes=gpu_memory_bytes,
            progress_interval_seconds=settings.progress_interval_seconds,
        )
    except ValueError as error:
        raise Invalid(str(error)) from error
    _check_size(resolved)
    return resolved


def _check_size(sections: FineTuneJobSpec | ResolvedJob) -> None:
    """Counts the sections that pods receive. A section of the resolved job is never smaller than that of the spec."""
    names = set(ResolvedJob.model_fields)
    size = len(sections.model_dump_json(by_alias=True, exclude_none=True, include=names).encode())
    if size > RESOLVED_JOB_BYTES:
        raise Invalid(
            f"The job is {size} bytes or more once resolved; at most {RESOLVED_JOB_BYTES} fit into a pod's annotation."
            " Name fewer datasets."
        )


def _unknown_field(location: tuple[int | str, ...]) -> str:
    """The path of a field that this release does not know, and the field that its name means, if it means one."""
    field = foreign_names.use_instead(location)
    return f"{_path(location)} (use {field})" if field else _path(location)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
