"""Whether pods on several nodes can mount the workspace: asked before each attempt, while nothing runs.

A job whose claim cannot be shared is not refused for good: a claim can be made anew under its name, and is looked at
again from time to time.
"""

from finetune_api.job import FineTuneJob
from finetune_api.status import Reason

from finetune_operator.observed import Observed
from finetune_operator.plan.acceptance import HeldUp

LOOK_AGAIN_SECONDS = 30.0
"""Claims are not watched."""
SHAREABLE = "ReadWriteMany"


def check_shareable(job: FineTuneJob, observed: Observed) -> None:
    """Raises HeldUp, with what to do, where only one node can mount the claim. There is nothing to be said against one
    that isn't there yet."""
    nodes, modes = job.spec.resources.nodes, observed.workspace_modes
    if nodes == 1 or modes is None or SHAREABLE in modes:
        return
    raise unshareable(
        f"spec.resources.nodes is {nodes}, but claim {job.spec.workspace.claim_name} can be mounted by the pods of one"
        f" node only ({', '.join(modes)}): make it anew with access mode {SHAREABLE}, and this job goes on by itself;"
        " or start over with a claim that has it, or on one node."
    )


def unshareable(message: str) -> HeldUp:
    """A claim is in the way."""
    return HeldUp(message, Reason.WORKSPACE_NOT_SHAREABLE, look_again=LOOK_AGAIN_SECONDS)
