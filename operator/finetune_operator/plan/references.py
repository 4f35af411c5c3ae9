"""The other jobs whose artifacts a job uses: waited for, checked, and fixed for all attempts with its acceptance.

Once they are fixed nothing that becomes of the other jobs matters: an artifact is known by its digest, which the pods
verify. Until then every look is at all of them, and what can never be is said before what may yet come.
"""

from collections.abc import Callable, Collection

from finetune_api.chaining import Use, check_stage, field, foreseen, from_jobs, started_from
from finetune_api.contract import claim_name
from finetune_api.job import FineTuneJob
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Artifact, ConditionType, FineTuneJobStatus, Reason, Reference

from finetune_operator.observed import ClaimView, JobView, Others
from finetune_operator.plan.acceptance import HeldUp, Refused
from finetune_operator.plan.conditions import is_true
from finetune_operator.plan.workspace import SHAREABLE, unshareable

QUOTED = 600
"""Characters of another job's message that are repeated."""


def follow(job: FineTuneJob, status: FineTuneJobStatus, others: Others) -> list[Reference]:
    """The artifacts that the job uses. Raises HeldUp while they aren't there, and Refused where that won't change."""
    named = from_jobs(job.spec)
    if status.references or not named:
        return status.references or []
    if others.ring:
        raise Refused(
            f"Jobs wait for each other in a ring: {' -> '.join(others.ring)}. None of them can ever begin: delete them,"
            " and create them anew with another fromJob."
        )
    references, held_up = [], []
    for use, name in named.items():
        try:
            references.append(_look(job, use, name, others))
        except HeldUp as held:
            held_up.append(held)
    if held_up:
        # A claim is waited for only where somebody does something about it.
        worst = next((one for one in held_up if one.reason is not Reason.WAITING_FOR_JOB), None)
        raise worst or HeldUp(" ".join(map(str, held_up)), Reason.WAITING_FOR_JOB)
    _check_alike(job, references)
    return references


def _look(job: FineTuneJob, use: Use, name: str, others: Others) -> Reference:
    """What one of them made."""
    who = f"job {name} ({field(job.spec, use)})"
    other = others.jobs.get(name)
    if other is None:
        raise HeldUp(
            f"Waiting for {who}, which is not there: create it (anew, if it was deleted); or delete this job, if the"
            " name is wrong or that job won't come back.",
            Reason.WAITING_FOR_JOB,
        )
    if other.deleting:
        raise HeldUp(
            f"Waiting for {who}, which is being deleted: create it anew once it is gone.", Reason.WAITING_FOR_JOB
        )
    status = FineTuneJobStatus.model_validate(other.status)
    succeeded = is_true(status, ConditionType.SUCCEEDED)
    stage = str(other.spec.get("stage"))
    artifact = status.artifact or _foreseen(other, status)
    reference = Reference(use=use, job=name, uid=other.uid, stage=stage, artifact=artifact) if artifact else None
    try:
        check_stage(job.spec, use, name, stage)
        if use == "model" and reference is not None:
            started_from(job.spec, reference)
    except ValueError as error:
        raise Refused(str(error)) from error
    if is_true(status, ConditionType.FAILED):
        why = f"{status.reason}: {(status.message or '')[:QUOTED]}"
        raise Refused(
            f"The {who} has Failed: {why} What has Failed stays so: mend it and create it anew, and then this job.",
            Reason.DEPENDENCY_FAILED,
        )
    claim = others.claims.get(other.claim)
    _check_kept(who, other, claim)
    if succeeded and claim is None:
        raise Refused(
            f"The {who} has Succeeded, but claim {other.claim}, on which it kept what it made, is gone: create it anew,"
            " and then this job.",
            Reason.DEPENDENCY_FAILED,
        )
    _check_mountable(job, who, other, claim)
    if not succeeded:
        raise HeldUp(f"Waiting for {who}, which is {_doing(other)}.", Reason.WAITING_FOR_JOB)
    if reference is None or status.artifact is None:
        raise Refused(
            f"The {who} has Succeeded, but its status names no artifact: create it anew, and then this job.",
            Reason.DEPENDENCY_FAILED,
        )
    return reference


def _foreseen(other: JobView, status: FineTuneJobStatus) -> Artifact | None:
    """What a job that hasn't ended will make, if that can be told: so what is wrong with it is said before hours of
    training are spent on it."""
    try:
        spec = FineTuneJobSpec.model_validate(other.spec)
        return foreseen(spec, status.references or [], f"pvc://{other.claim}/jobs/{other.name}/artifact")
    except ValueError:
        return None  # its own message says why it can't be run


def _doing(other: JobView) -> str:
    now = other.standing
    if now.phase == "Running":
        return f"Running, {10 * now.tenths} % done" if now.tenths else "Running"
    return f"{now.phase} ({now.reason})" if now.reason else "Pending"


def _check_kept(who: str, other: JobView, claim: ClaimView | None) -> None:
    """An artifact must not go away with its job, or with the one whose claim it is on, in the midst of what uses it."""
    if not (other.spec.get("workspace") or {}).get("retain", True):
        raise Refused(
            f"The {who} has workspace.retain false: what it makes is deleted with it. Create it anew with retain true,"
            " or on a claim of yours (workspace.claimName), and then this job."
        )
    if claim is not None and claim.owner:
        raise Refused(
            f"The {who} keeps what it makes on claim {other.claim}, which is deleted with job {claim.owner}"
            " (workspace.retain false): create it anew on a claim that stays, and then this job."
        )


def _check_mountable(job: FineTuneJob, who: str, other: JobView, claim: ClaimView | None) -> None:
    """A job's pods mount the claim of its own workspace and those of artifacts. Volumes that one node alone can mount
    may be bound to different nodes, and others may hold them."""
    own = claim_name(job.metadata.name, job.spec)
    asked = (other.spec.get("workspace") or {}).get("claim")
    modes = claim.modes if claim else (asked.get("accessMode", "ReadWriteOnce"),) if asked else None
    if other.claim != own and modes is not None and SHAREABLE not in modes:
        raise unshareable(
            f"The {who} keeps what it makes on claim {other.claim}, which the pods of one node only can mount"
            f" ({', '.join(modes)}), and this job's workspace is claim {own}: let both jobs name one claim as"
            f" workspace.claimName, or give {other.claim} the access mode {SHAREABLE}."
        )


def _check_alike(job: FineTuneJob, references: list[Reference]) -> None:
    """What the model writes is read by the others; and a source that has changed since is no longer what two adapters
    go on. Pods see the folders themselves and check more; this is said before any is made."""
    words = job.spec.model.new_tokens or job.spec.model.new_special_tokens
    for place, one in enumerate(references):
        for other in references[:place]:
            one_is, other_is = (f"job {each.job} ({field(job.spec, each.use)})" for each in (one, other))
            # With new words the model's tokenizer is not that of the job it comes from.
            if not words and _differ(one.artifact.tokenizer_digest, other.artifact.tokenizer_digest):
                raise Refused(
                    f"The tokenizer of {one_is} is not that of {other_is}: one would read other words than the other"
                    " writes. Start both from one base model, and this job from what they make."
                )
            same_base = one.artifact.base is not None and one.artifact.base == other.artifact.base
            if same_base and _differ(one.artifact.base_digest, other.artifact.base_digest):
                raise Refused(
                    f"The {one_is} and {other_is} made adapters for {one.artifact.base}, which changed between them:"
                    " there is no model that both fit. Name a revision in them that can't move, and create both anew."
                )


def _differ(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one != other


def ring(start: str, waits_for: Callable[[str], Collection[str]]) -> tuple[str, ...]:
    """Names of jobs of which each waits for the next, from `start` back to it by the shortest way; empty if there is
    none."""
    before: dict[str, str] = {}
    reached = [start]
    for name in reached:
        for other in sorted(waits_for(name)):
            if other == start:
                path = [start, name]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return tuple(reversed(path))
            if other not in before:
                before[other] = name
                reached.append(other)
    return ()
