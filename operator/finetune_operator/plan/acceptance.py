"""Whether a job can be run at all, and what is fixed once it is accepted."""

from collections.abc import Sequence

from finetune_api.contract import CONTRACT, RESOLVED_JOB_BYTES, ResolvedJob, resolve
from finetune_api.defaults import fill_in
from finetune_api.job import FineTuneJob
from finetune_api.model import check_allowed
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Reason, Reference, Resolved
from pydantic import ValidationError

from finetune_operator.observed import JobView
from finetune_operator.settings import Settings


class Refused(Exception):
    """The job can't be run, ever; the message is for the user."""

    def __init__(self, message: str, reason: Reason = Reason.INVALID_SPEC) -> None:
        super().__init__(message)
        self.reason = reason


class HeldUp(Exception):
    """The job can't be accepted as things stand; the message says what for it waits."""

    def __init__(self, message: str, reason: Reason, *, look_again: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.look_again = look_again


def typed(view: JobView, settings: Settings) -> FineTuneJob:
    """The job, checked as far as it goes without the jobs that it names. Raises Refused; the API server refuses most
    mistakes before."""
    try:
        job = FineTuneJob.model_validate(
            {
                "apiVersion": "finetune-operator.io/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": view.name, "namespace": view.namespace, "uid": view.uid},
                "spec": view.spec,
            }
        )
    except ValidationError as error:
        raise Refused("; ".join(f"{_path(e['loc'])}: {e['msg']}" for e in error.errors()[:5])) from error
    try:
        check_allowed(job.spec.model, allow_remote_code=settings.allow_remote_code)
        fill_in(job.spec)
    except ValueError as error:
        raise Refused(str(error)) from error
    _check_size(job.spec)
    return job


def accept(
    job: FineTuneJob, references: Sequence[Reference], settings: Settings, gpu_memory_bytes: int | None = None
) -> ResolvedJob:
    """Its resolved form. Raises Refused.

    `gpu_memory_bytes` is what the nodes' labels say, for jobs that don't say it themselves.
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
        raise Refused(str(error)) from error
    _check_size(resolved)
    return resolved


def _check_size(told: FineTuneJobSpec | ResolvedJob) -> None:
    """By what the pods are told. What is resolved is never less than the same sections of the spec."""
    sections = set(ResolvedJob.model_fields)
    size = len(told.model_dump_json(by_alias=True, exclude_none=True, include=sections).encode())
    if size > RESOLVED_JOB_BYTES:
        raise Refused(
            f"the job is {size} bytes or more once resolved; at most {RESOLVED_JOB_BYTES} fit: name fewer datasets"
        )


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def pinned(status: FineTuneJobStatus, job: FineTuneJob, resolved: ResolvedJob, settings: Settings) -> Resolved:
    """What all attempts share, also when the operator is upgraded between them."""
    if status.resolved is not None:
        return status.resolved
    return Resolved(image=job.spec.resources.image or settings.trainer_image, contract=CONTRACT, digest=resolved.digest)
