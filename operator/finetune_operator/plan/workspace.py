"""Whether the pods of a job can use the workspace's claim as the spec says. It is checked before an attempt starts.

A job whose claim does not fit does not fail: the user can change the claim or recreate it under its name. Claims are
not watched, so the plan looks again, ever more rarely.
"""

from finetune_api.job import FineTuneJob
from finetune_api.kubernetes import quantity
from finetune_api.resources import ClaimSpec
from finetune_api.status import FineTuneJobStatus, Reason

from finetune_operator.plan.acceptance import Blocked
from finetune_operator.plan.decision import Need, missing
from finetune_operator.views.claim import ClaimView
from finetune_operator.views.snapshot import Read, Snapshot

POLL_SECONDS = 30.0
SHAREABLE = "ReadWriteMany"
_MODES = ("ReadWriteOncePod", "ReadWriteOnce", SHAREABLE)
"""Each mode allows what the modes before it allow."""


def check_workspace(job: FineTuneJob, status: FineTuneJobStatus, snapshot: Snapshot) -> Need | None:
    """Raises Blocked if the workspace's claim exists, and the pods cannot use it as the spec says."""
    nodes, own, named = job.spec.resources.nodes, job.spec.workspace.claim, job.spec.workspace.claim_name
    # A job that has begun uses the claim already, whatever it is.
    checked = status.start_time is None if own is not None else nodes > 1
    if not checked:
        return None
    if need := missing(snapshot, Read.WORKSPACE):
        return need
    claim = snapshot.workspace
    if claim is None:
        return None
    if own is not None:
        _check_namesake(job, own, claim)
    elif SHAREABLE not in claim.modes:
        raise unshareable(
            f"spec.resources.nodes is {nodes}, but only the pods of one node can mount claim {named}"
            f" ({', '.join(claim.modes)}). Recreate the claim with access mode {SHAREABLE}, and the job continues by"
            " itself; or recreate the job with another claim or on one node."
        )
    return None


def unshareable(message: str) -> Blocked:
    return Blocked(message, Reason.WORKSPACE_NOT_SHAREABLE, poll_seconds=POLL_SECONDS)


def _check_namesake(job: FineTuneJob, asked: ClaimSpec, claim: ClaimView) -> None:
    """Raises Blocked if an earlier job of the same name has left a claim that does not fit. A claim that the operator
    did not create is refused later."""
    name, uid = job.metadata.name, job.metadata.uid
    if claim.job != name or claim.job_uid == uid:
        return
    title = f"Claim {name}-workspace of an earlier job {name}"
    if claim.deleting:
        raise _mismatch(f"{title} is being deleted. The job continues by itself when it is gone.")
    if claim.owner_uid not in ("", uid):
        raise _mismatch(
            f"{title} will be deleted with that job (workspace.retain false). The job continues by itself when the"
            " claim is gone."
        )
    differences = _differences(asked, claim)
    if differences:
        expand = ""
        if differences.keys() == {"size"}:
            expand = f" expand the claim to {asked.size}, if its storage class allows that;"
        raise _mismatch(
            f"{title} exists and does not fit, and the operator changes no claim. {' '.join(differences.values())} To"
            f" use the claim as it is, recreate the job with workspace.claimName {name}-workspace. Or{expand} delete"
            " the claim if nobody needs the files on it; or recreate the job under another name. When the claim fits or"
            " is gone, the job continues by itself."
        )


def _differences(asked: ClaimSpec, claim: ClaimView) -> dict[str, str]:
    """Field of spec.workspace.claim -> a sentence about what was found and what is asked. More than asked is fine."""
    found = {}
    # A volume is expanded when a pod mounts it, so the size that the claim requests counts as well.
    if claim.sizes and all(_bytes(size) < _bytes(asked.size) for size in claim.sizes):
        found["size"] = f"Its size is {claim.sizes[-1]}; the job asks for {asked.size}."
    if claim.modes and not set(_MODES[_MODES.index(asked.access_mode) :]) & set(claim.modes):
        found["accessMode"] = f"Its access mode is {', '.join(claim.modes)}; the job asks for {asked.access_mode}."
    if asked.storage_class_name not in (None, claim.storage_class):
        found["storageClassName"] = (
            f"Its storage class is {claim.storage_class or 'not set'}; the job asks for {asked.storage_class_name}."
        )
    return found


def _bytes(size: str) -> float:
    """A size that cannot be read is no reason to stop a job."""
    try:
        return quantity(size)
    except (ValueError, KeyError):
        return float("inf")


def _mismatch(message: str) -> Blocked:
    return Blocked(message, Reason.WORKSPACE_MISMATCH, poll_seconds=POLL_SECONDS)
