"""The jobs whose artifacts a job uses: waited for, checked, and fixed for all attempts with its acceptance.

Once they are fixed, later changes of the other jobs do not matter: an artifact is known by its digest, which the pods
verify. Until then every plan checks all of them, and reports what can never work before what may still come.
"""

from collections.abc import Mapping

from finetune_api.chaining import Use, check_stage, expected_artifact, field_path, from_jobs, start_from
from finetune_api.contract import claim_name
from finetune_api.job import FineTuneJob
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Artifact, FineTuneJobStatus, Reason, Reference

from finetune_operator.plan.acceptance import Blocked, Invalid
from finetune_operator.plan.completion import terminal
from finetune_operator.plan.conditions import sentence
from finetune_operator.plan.decision import Need, missing
from finetune_operator.plan.workspace import SHAREABLE, unshareable
from finetune_operator.views.claim import ClaimView
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Unreadable, section
from finetune_operator.views.snapshot import Dependencies, Read, Snapshot
from finetune_operator.views.status import parse_status

QUOTED = 600
"""Characters of another job's message that are repeated."""


def resolve_references(job: FineTuneJob, status: FineTuneJobStatus, snapshot: Snapshot) -> list[Reference] | Need:
    """The artifacts that the job uses. Raises Blocked while they do not exist, and Invalid if they never will."""
    names = from_jobs(job.spec)
    if status.references or not names:
        return status.references or []
    if need := missing(snapshot, Read.DEPENDENCIES):
        if _still_waits(job, status, snapshot.dependencies.jobs):
            raise Blocked(status.message or "", Reason.WAITING_FOR_JOB)
        return need
    dependencies = snapshot.dependencies
    if dependencies.cycle:
        raise Invalid(
            f"Jobs wait for each other in a cycle: {' -> '.join(dependencies.cycle)}. None of them can ever begin."
            " Delete them, and recreate them with another fromJob."
        )
    references, errors = [], []
    for use, name in names.items():
        try:
            references.append(_resolve(job, use, name, dependencies))
        except Blocked as error:
            errors.append(error)
    if errors:
        # Nobody has to act while another job runs, so what needs somebody's action goes first.
        urgent = next((error for error in errors if error.reason is not Reason.WAITING_FOR_JOB), None)
        raise urgent or Blocked(" ".join(map(str, errors)), Reason.WAITING_FOR_JOB)
    _check_compatible(job, references)
    return references


def _resolve(job: FineTuneJob, use: Use, name: str, dependencies: Dependencies) -> Reference:
    """The artifact of one of them."""
    title = _title(job, use, name)
    other = dependencies.jobs.get(name)
    if other is None or other.deleting:
        raise Blocked(_wait(title, other), Reason.WAITING_FOR_JOB)
    try:
        status = parse_status(other.status)
    except Unreadable as error:
        raise Blocked(_wait(title, other), Reason.WAITING_FOR_JOB) from error
    outcome = terminal(status)
    stage = str(other.spec.get("stage"))
    artifact = status.artifact or _expected_artifact(other, status)
    reference = Reference(use=use, job=name, uid=other.uid, stage=stage, artifact=artifact) if artifact else None
    try:
        check_stage(job.spec, use, name, stage)
        if use == "model" and reference is not None:
            start_from(job.spec, reference)
    except ValueError as error:
        raise Invalid(str(error)) from error
    if outcome == "Failed":
        why = sentence(f"{status.reason}: {(status.message or '')[:QUOTED]}")
        cure = f"Fix the cause, then set spec.retry of job {name} to {other.retry + 1}, or recreate it."
        if status.reason == Reason.DEPENDENCY_FAILED:
            cure = "Fix that job."
        raise Invalid(
            f"The {title} has Failed: {why} {cure} This job then continues by itself.", Reason.DEPENDENCY_FAILED
        )
    claim = dependencies.claims.get(other.claim)
    _check_retained(title, other, claim)
    if outcome == "Succeeded" and claim is None:
        raise Invalid(
            f"The {title} has Succeeded, but claim {other.claim}, which held its artifact, is gone. Recreate job"
            f" {name}. This job then continues by itself.",
            Reason.DEPENDENCY_FAILED,
        )
    _check_mountable(job, title, other, claim)
    if outcome is None:
        raise Blocked(_wait(title, other), Reason.WAITING_FOR_JOB)
    if reference is None or status.artifact is None:
        raise Invalid(
            f"The {title} has Succeeded, but its status names no artifact. Recreate job {name}. This job then"
            " continues by itself.",
            Reason.DEPENDENCY_FAILED,
        )
    return reference


def _expected_artifact(other: JobView, status: FineTuneJobStatus) -> Artifact | None:
    """The artifact that a job will make, if it is known before the job ends: a mistake is then reported before hours of
    training are spent."""
    try:
        spec = FineTuneJobSpec.read(other.spec)
        return expected_artifact(spec, status.references or [], f"pvc://{other.claim}/jobs/{other.name}/artifact")
    except ValueError:
        return None  # The other job's own status says what is wrong with its spec.


def _still_waits(job: FineTuneJob, status: FineTuneJobStatus, watched: Mapping[str, JobView]) -> bool:
    """Whether the watches show only what the status already says after live reads: nothing is read again then. A job
    that has ended is not in the message."""
    if status.reason != Reason.WAITING_FOR_JOB:
        return False
    message = status.message or ""
    for use, name in from_jobs(job.spec).items():
        title, other = _title(job, use, name), watched.get(name)
        over = other is not None and not other.deleting and _has_ended(other)
        if (f"Waiting for {title}," in message) if over else (_wait(title, other) not in message):
            return False
    return True


def _has_ended(other: JobView) -> bool:
    try:
        return terminal(parse_status(other.status)) is not None
    except Unreadable:
        return False


def _title(job: FineTuneJob, use: Use, name: str) -> str:
    return f"job {name} ({field_path(job.spec, use)})"


def _wait(title: str, other: JobView | None) -> str:
    """What a job that has not ended is waited for."""
    if other is None:
        return f"Waiting for {title}, which does not exist. Create it; or delete this job if the name is wrong."
    if other.deleting:
        return f"Waiting for {title}, which is being deleted. Recreate it once it is gone."
    try:
        parse_status(other.status)
    except Unreadable as error:
        return f"Waiting for {title}, whose status cannot be read: {sentence(str(error))}"
    return f"Waiting for {title}, which is {_summary(other)}."


def _summary(other: JobView) -> str:
    summary = other.summary
    if summary.phase == "Running":
        return f"Running, {10 * summary.tenths} % done" if summary.tenths else "Running"
    return f"{summary.phase} ({summary.reason})" if summary.reason else "Pending"


def _check_retained(title: str, other: JobView, claim: ClaimView | None) -> None:
    """An artifact must not be deleted with its job, or with the job that owns its claim, while this job uses it."""
    if not section(other.spec, "workspace").get("retain", True):
        raise Invalid(
            f"The {title} has workspace.retain false: its artifact is deleted with it. Recreate job {other.name} with"
            " retain true or on a claim of yours (workspace.claimName), then recreate this job."
        )
    if claim is not None and claim.owner:
        raise Invalid(
            f"The {title} keeps its artifact on claim {other.claim}, which is deleted with job {claim.owner}"
            f" (workspace.retain false). Recreate job {other.name} on a claim that stays, then recreate this job."
        )


def _check_mountable(job: FineTuneJob, title: str, other: JobView, claim: ClaimView | None) -> None:
    """A pod mounts the claim of its own workspace and those of the artifacts. Volumes that only one node can mount may
    be bound to different nodes, or held by other pods."""
    own = claim_name(job.metadata.name, job.spec)
    requested = section(section(other.spec, "workspace"), "claim")
    requested_modes = (requested.get("accessMode", "ReadWriteOnce"),) if requested else None
    modes = claim.modes if claim else requested_modes
    if other.claim != own and modes is not None and SHAREABLE not in modes:
        raise unshareable(
            f"The {title} keeps its artifact on claim {other.claim}, which only the pods of one node can mount"
            f" ({', '.join(modes)}), and this job's workspace is claim {own}. Name the same claim in both jobs as"
            f" workspace.claimName, or give {other.claim} the access mode {SHAREABLE}."
        )


def _check_compatible(job: FineTuneJob, references: list[Reference]) -> None:
    """All models of the job must read the same tokens, and two adapters for the same source must be for the same model.
    Pods see the files and check more; these checks come before any pod exists."""
    # With new tokens the model's tokenizer differs from that of the job that it comes from.
    new_tokens = job.spec.model.new_tokens or job.spec.model.new_special_tokens
    for place, second in enumerate(references):
        for first in references[:place]:
            first_job, second_job = (f"job {each.job} ({field_path(job.spec, each.use)})" for each in (first, second))
            if not new_tokens and _differ(first.artifact.tokenizer_digest, second.artifact.tokenizer_digest):
                raise Invalid(
                    f"The tokenizers of {first_job} and {second_job} differ: each would read other tokens than the"
                    " other writes. Start both from the same base model, and this job from their artifacts."
                )
            same_base = first.artifact.base is not None and first.artifact.base == second.artifact.base
            if same_base and _differ(first.artifact.base_digest, second.artifact.base_digest):
                raise Invalid(
                    f"The {first_job} and {second_job} made adapters for {first.artifact.base}, which changed between"
                    " them: no model fits both. Name a fixed revision in both jobs and recreate them."
                )


def _differ(first: str | None, second: str | None) -> bool:
    return first is not None and second is not None and first != second
