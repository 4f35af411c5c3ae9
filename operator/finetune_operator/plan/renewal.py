"""The terms of a job that is resumed: renewed, because resources and prepare may have changed while it was suspended.

Image and contract are fixed again. What decides the result stays, so the job digest does, and the checkpoints are the
job's own. The data is prepared again only if the estimate of the GPU's memory changes with the resources.
"""

import json
from dataclasses import replace
from typing import Any

from finetune_api.contract import CONTRACT, ResolvedJob, canonical, runtime_of
from finetune_api.defaults import Defaulted, apply_defaults
from finetune_api.presets import filled_in
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ConditionType, FineTuneJobStatus, Reason, Resolved
from finetune_api.stored_job import store
from pydantic import ValidationError

from finetune_operator.plan.acceptance import Blocked, Invalid, accept, parse_spec
from finetune_operator.plan.attempts import current, was_prepared
from finetune_operator.plan.conditions import is_true, set_condition
from finetune_operator.plan.decision import Need, missing_gpu_memory
from finetune_operator.plan.presets import apply_presets, check_edited
from finetune_operator.plan.suspension import Suspension
from finetune_operator.plan.terms import Terms, problem, spec_of_attempts
from finetune_operator.settings import Settings
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import section


class Misfit(Invalid):
    """The resources do not fit the job that is to be resumed. They can be changed."""


AGAIN = "The resources have changed: the estimate of the GPU's memory is made again."


def is_outdated(terms: Terms, status: FineTuneJobStatus) -> bool:
    """Whether attempts would get other GPUs than their trainer expects, or more than the presets allow: resources
    changed while the job was suspended, and no attempt has begun since."""
    if terms.hold:
        return False
    resources, runtime = terms.job.spec.resources, terms.resolved.runtime
    try:
        check_edited(terms.job.spec, status)
    except Invalid:
        return True
    return (resources.nodes, resources.gpus_per_node) != (runtime.nodes, runtime.gpus_per_node)


def misfit(view: JobView, status: FineTuneJobStatus, settings: Settings) -> str:
    """Why a suspended job could not be resumed as it is; empty if nothing is known against it."""
    try:
        if status.resolved is None:
            parse_spec(view, settings)
        else:
            apply_defaults(FineTuneJobSpec.read(view.spec))  # what an accepted job is checked for again
    except (Blocked, ValidationError):
        return ""  # the terms say so, when the job is resumed
    except (Invalid, ValueError) as error:
        return str(error)
    return ""


def renew(
    suspension: Suspension, status: FineTuneJobStatus, terms: Terms, settings: Settings
) -> tuple[Terms, FineTuneJobStatus] | Need:
    """The terms for the next attempt, and the status that fixes them. Raises Misfit and Blocked."""
    if terms.hold or status.resolved is None:
        return terms, status
    granted = _with_todays_presets(suspension, terms, status.resolved, settings)
    if isinstance(granted, Need):
        return granted
    terms, earlier = granted
    resources = terms.job.spec.resources
    reads_labels = settings.read_node_labels and resources.gpus_per_node and not resources.gpu_memory
    if reads_labels and (need := missing_gpu_memory(suspension.snapshot, resources)):
        return need
    before = terms.resolved
    memory = suspension.snapshot.gpu_memory_bytes
    if reads_labels and memory is None:
        memory = before.runtime.gpu_memory_bytes  # for example while no node of this kind exists
    renewed = _of_today(suspension, status, settings, memory) or _of_then(suspension, terms, settings, memory)
    resolved, document = renewed
    try:
        image = resources.image or (settings.trainer_image if resolved.contract == CONTRACT else earlier.image)
        pinned = _pinned(earlier, image, resolved, document)
    except ValueError as error:
        raise Misfit(str(error)) from error
    same = _estimate(before) == _estimate(resolved)
    refused = current(status, "prepare") if was_prepared(status) else None
    if same and image == earlier.image and refused is not None and refused.reason == Reason.INVALID_SPEC:
        raise Misfit(refused.message or "The trainer refuses the resources.")
    status = status.model_copy(update={"resolved": pinned})
    if not same and is_true(status, ConditionType.PREPARED):
        generation, now = suspension.view.generation, suspension.now
        status = set_condition(status, ConditionType.PREPARED, None, Reason.RESUMED, AGAIN, generation, now)
    return replace(terms, resolved=resolved, document=document), status


def pin_again(
    suspension: Suspension, status: FineTuneJobStatus, terms: Terms, settings: Settings
) -> tuple[Terms, FineTuneJobStatus]:
    """The terms for an attempt that makes the artifact of a checkpoint: of this release if that is the same job, since
    an earlier trainer may not know how. Resources that do not fit the training are no obstacle, but they must not
    exceed the bounds of the presets. Raises Misfit."""
    try:
        check_edited(terms.job.spec, status)
    except Invalid as error:
        raise Misfit(str(error)) from error
    today = _of_today(suspension, status, settings, terms.resolved.runtime.gpu_memory_bytes)
    if today is None or status.resolved is None or terms.hold:
        return terms, status
    resolved, document = today
    pinned = _pinned(status.resolved, terms.job.spec.resources.image or settings.trainer_image, resolved, document)
    return replace(terms, resolved=resolved, document=document), status.model_copy(update={"resolved": pinned})


def _with_todays_presets(
    suspension: Suspension, terms: Terms, earlier: Resolved, settings: Settings
) -> tuple[Terms, Resolved] | Need:
    """The terms with what the presets of today fill in. What the user may have changed is compared with their bounds;
    the rest of the job stays granted. Raises Misfit and Blocked."""
    live, view = suspension.view.spec, suspension.view
    own, _ = spec_of_attempts(live, terms.resolved)
    try:
        applied = apply_presets(view, own, suspension.snapshot, settings, editable=True)
    except Invalid as error:
        raise Misfit(str(error)) from error
    if isinstance(applied, Need):
        return applied
    spec, _ = spec_of_attempts(filled_in(live, (applied.filled if applied else None) or {}), terms.resolved)
    terms = replace(terms, job=terms.job.model_copy(update={"spec": spec}))
    return terms, earlier.model_copy(update={"presets": applied})


def _pinned(earlier: Resolved, image: str, resolved: ResolvedJob, document: str) -> Resolved:
    """What status.resolved says from now on. Raises ValueError if it is too large."""
    fixed = {"image": image, "contract": resolved.contract, "digest": resolved.digest, "job": store(document)}
    return earlier.model_copy(update=fixed)


def _of_today(
    suspension: Suspension, status: FineTuneJobStatus, settings: Settings, memory: int | None
) -> tuple[ResolvedJob, str] | None:
    """The job as this release resolves it. None if that is not the job that was accepted, or if this release would
    refuse it."""
    assert status.resolved is not None
    try:
        job, _ = parse_spec(suspension.view, settings)
        resolved = accept(job, status.references or [], settings, memory)
    except (Invalid, Blocked):
        return None
    return (resolved, canonical(resolved.to_dict())) if resolved.digest == status.resolved.digest else None


def _of_then(suspension: Suspension, terms: Terms, settings: Settings, memory: int | None) -> tuple[ResolvedJob, str]:
    """The job as it was accepted, with today's resources. Raises Misfit."""
    defaulted = _with_defaults(suspension.view, terms.job.spec)
    document: dict[str, Any] = json.loads(terms.document)
    try:
        runtime = runtime_of(
            terms.job.spec,
            allow_cpu=settings.allow_cpu,
            allow_remote_code=terms.resolved.runtime.allow_remote_code,
            gpu_memory_bytes=memory,
            progress_interval_seconds=settings.progress_interval_seconds,
        )
    except ValidationError as error:  # values that this release does not know are read as they are
        raise Misfit(f"resources.{problem(error)}") from error
    known = terms.resolved.runtime.to_dict()
    others = {name: value for name, value in section(document, "runtime").items() if name not in known}
    document["runtime"] = {**others, **runtime.to_dict()}
    if defaulted.training.micro_batch_size is not None:  # else the job sets microBatchTokens
        document["training"]["microBatchSize"] = defaulted.training.micro_batch_size
    if defaulted.ppo is not None:
        document["ppo"]["rolloutMicroBatchSize"] = defaulted.ppo.rollout_micro_batch_size
    return ResolvedJob.read(document), canonical(document)


def _with_defaults(view: JobView, spec: FineTuneJobSpec) -> Defaulted:
    """The sections with the defaults that follow from today's resources. Raises Misfit."""
    # The resolved job has the micro-batches that followed from the resources then. Only the user's own stay.
    training = {"micro_batch_size": section(view.spec, "training").get("microBatchSize")}
    ppo = {"rollout_micro_batch_size": section(view.spec, "ppo").get("rolloutMicroBatchSize")}
    sections: dict[str, Any] = {"training": spec.training.model_copy(update=training)}
    if spec.ppo is not None:
        sections["ppo"] = spec.ppo.model_copy(update=ppo)
    try:
        return apply_defaults(spec.model_copy(update=sections))
    except ValueError as error:
        raise Misfit(str(error)) from error


def _estimate(job: ResolvedJob) -> tuple[int | None, ...]:
    """What the estimate of a GPU's memory depends on, beside the job itself."""
    runtime, rollout = job.runtime, job.ppo.rollout_micro_batch_size if job.ppo else None
    ranks = runtime.nodes * max(1, runtime.gpus_per_node)
    return runtime.gpu_memory_bytes, ranks, job.training.micro_batch_size, rollout
