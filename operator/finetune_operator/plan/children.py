"""The objects of an attempt, built from the status at the time of creation."""

from finetune_api.contract import RESTARTS_SINCE, AttemptFacts, canonical
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, FineTuneJobStatus
from pydantic import ValidationError

from finetune_operator.manifests.attempt import Manifest, attempt_objects
from finetune_operator.manifests.placement import avoiding
from finetune_operator.names import PRESETS_ANNOTATION, Kind
from finetune_operator.plan.context import Context
from finetune_operator.views.metadata import Unreadable

SAVING_SPARE_SECONDS, SAVING_SECONDS_MAX = 30, 3600


def children(kind: Kind, context: Context, status: FineTuneJobStatus, attempt: Attempt) -> tuple[Manifest, ...]:
    """In the order of creation; the child job comes last. Raises Unreadable if the status has an attempt that the
    operator did not write."""
    assert status.resolved is not None, "set at acceptance"
    try:
        facts = AttemptFacts(
            namespace=context.view.namespace,
            name=context.view.name,
            uid=context.view.uid,
            kind=kind,
            attempt=attempt.number,
            job_name=attempt.job,
            micro_batch_size=attempt.micro_batch_size,
            micro_batch_tokens=attempt.micro_batch_tokens,
            recompute=attempt.recompute,
            grace_period_seconds=grace_period(kind, context.job.spec, status),
            restarts=restart_budget(kind, context.job.spec, status.resolved.contract, attempt),
        )
    except ValidationError as error:
        raise Unreadable(f"its attempt {attempt.number} cannot be created: {error}") from error
    image = status.resolved.image
    keep = bool(attempt.keeps)
    *before, child = attempt_objects(
        facts, context.job.spec, context.resolved, context.document, image, context.settings, keep
    )
    if attempt.avoids:
        pod = child["spec"]["template"]["spec"]
        pod["affinity"] = avoiding(pod.get("affinity"), attempt.avoids)
    if status.resolved.presets is not None:
        annotations = {PRESETS_ANNOTATION: canonical(status.resolved.presets.to_dict())}
        child = {**child, "metadata": {**child["metadata"], "annotations": annotations}}
    return *before, child


def restart_budget(kind: Kind, spec: FineTuneJobSpec, contract: int, attempt: Attempt) -> int | None:
    """How many failures the trainer may answer with a restart in the same pods: what is left of backoffLimit. The
    failure after the last of them counts, too, and then the limit is exceeded."""
    if kind == "prepare" or contract < RESTARTS_SINCE:
        return None
    return max(0, spec.backoff_limit - attempt.failures)


def grace_period(kind: Kind, spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """terminationGracePeriodSeconds of the next attempt: what the job requests, or more if saving the newest checkpoint
    took so long that this might not be enough."""
    requested = spec.resources.termination_grace_period_seconds
    saving = status.checkpoint.seconds if status.checkpoint and kind == "train" else None
    if saving is None:
        return requested
    return max(requested, min(2 * saving + SAVING_SPARE_SECONDS, SAVING_SECONDS_MAX))
