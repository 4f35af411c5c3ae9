"""The terms of a job: what its acceptance fixes for all attempts, also across upgrades of the operator.

A job is accepted once. From then on its terms are in status.resolved, and every attempt receives the resolved job as it
was. If this release would refuse the job, or resolve it differently, that is reported and changes nothing. Only a spec
whose operational sections cannot be read holds the job: attempts that run continue, and no new attempt begins.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune_api.base import ApiModel
from finetune_api.contract import CONTRACT, ResolvedJob, canonical
from finetune_api.job import FineTuneJob, ObjectMeta
from finetune_api.output import SecretsSpec
from finetune_api.presets import filled_in
from finetune_api.resources import PrepareSpec, ResourcesSpec, WorkspaceSpec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import AppliedPresets, FineTuneJobStatus, Reason, Reference, Resolved
from finetune_api.stored_job import load, store
from pydantic import ValidationError

from finetune_operator.plan.acceptance import Blocked, Invalid, accept, need_gpu_memory, parse_spec
from finetune_operator.plan.conditions import sentence
from finetune_operator.plan.decision import Need, missing
from finetune_operator.plan.presets import apply_presets, with_presets
from finetune_operator.plan.references import resolve_references
from finetune_operator.settings import Settings
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Raw, section
from finetune_operator.views.snapshot import Read, Snapshot

_OPERATIONAL: dict[str, type[ApiModel]] = {
    "workspace": WorkspaceSpec,
    "prepare": PrepareSpec,
    "secrets": SecretsSpec,
    "resources": ResourcesSpec,
}
"""Sections that describe pods and are not in the resolved job."""
_MUTABLE_NUMBERS = {
    "backoffLimit": "backoff_limit",
    "startDeadlineSeconds": "start_deadline_seconds",
    "activeDeadlineSeconds": "active_deadline_seconds",
    "retry": "retry",
}
_QUEUES = {"queue": "queue", "queuePriorityClass": "queue_priority_class"}


@dataclass(frozen=True)
class Terms:
    """What the attempts of an accepted job are made from."""

    job: FineTuneJob
    """Its operational sections are the live spec's, with what the presets add; the others are those of the resolved
    job."""
    resolved: ResolvedJob
    """What this release understands of `document`."""
    document: str
    """The resolved job that attempts receive, as JSON."""
    unknown: tuple[str, ...] = ()
    """Fields of the spec that this release does not know and ignores."""
    objection: str = ""
    """Why this release would refuse the job today; empty if it would not."""
    differs: str = ""
    """How this release would resolve the job differently; empty if it would not."""
    hold: str = ""
    """Why no attempt can be created; empty if it can."""


def recover_terms(status: FineTuneJobStatus, snapshot: Snapshot) -> FineTuneJobStatus | Need:
    """The status with what the acceptance fixed, read from the newest child job if it is not there: somebody wiped the
    status, or a release wrote it that did not keep the resolved job."""
    resolved = status.resolved
    if (resolved is not None and resolved.job is not None) or not snapshot.child_jobs:
        return status
    if need := missing(snapshot, Read.ACCEPTED_TERMS):
        return need
    terms = snapshot.accepted_terms
    if terms is None:
        return status
    if resolved is None:
        return status.model_copy(update={"references": terms.references or None, "resolved": terms.resolved})
    if (resolved.contract, resolved.digest) != (terms.resolved.contract, terms.resolved.digest):
        return status
    return status.model_copy(update={"resolved": resolved.model_copy(update={"job": terms.resolved.job})})


def agree(
    view: JobView, status: FineTuneJobStatus, snapshot: Snapshot, settings: Settings
) -> tuple[Terms, FineTuneJobStatus] | Need:
    """The terms, and the status that fixes them. Raises Invalid, but never for a job that was accepted before; raises
    Blocked."""
    if status.resolved is not None and status.resolved.job is not None:
        return _fixed(view, status, status.resolved.job, settings), status
    try:
        return _new(view, status, snapshot, settings)
    except Invalid as error:
        if status.resolved is None:
            raise
        raise Blocked(
            "The job was accepted earlier, but its resolved job is lost, and now it would be refused:"
            f" {sentence(str(error))} Restore what the job needs, or recreate it.",
            Reason.NOT_SUPPORTED,
        ) from error


def agree_again(
    view: JobView, status: FineTuneJobStatus, snapshot: Snapshot, settings: Settings
) -> tuple[Terms, FineTuneJobStatus] | Need:
    """The terms of a job that is re-opened: it is accepted like a new job, with today's image, contract and settings.
    Its references stay. Raises Invalid and Blocked. If this release would resolve it to another digest, the earlier
    terms hold: its checkpoints belong to them."""
    earlier = status.resolved
    agreed = _new(view, status.model_copy(update={"resolved": None}), snapshot, settings)
    if isinstance(agreed, Need) or earlier is None:
        return agreed
    resolved = agreed[1].resolved
    same = resolved is not None and resolved.digest == earlier.digest
    return agreed if same else agree(view, status, snapshot, settings)


def _new(
    view: JobView, status: FineTuneJobStatus, snapshot: Snapshot, settings: Settings
) -> tuple[Terms, FineTuneJobStatus] | Need:
    """Resolve the job. A status that fixes image, contract and digest keeps them."""
    job, unknown = parse_spec(view, settings)
    if status.reason != Reason.WAITING_FOR_JOB:
        # What can never work is reported before what may still come.
        early = _granted(view, job, status, snapshot, settings)
        if isinstance(early, Need):
            return early
    references = resolve_references(job, status, snapshot)
    if isinstance(references, Need):
        return references
    resolved = accept(job, references, settings, snapshot.gpu_memory_bytes)
    granted = _granted(view, job, status, snapshot, settings)
    if isinstance(granted, Need):
        return granted
    if granted is not None and granted.filled:
        job, _ = parse_spec(replace(view, spec=filled_in(view.spec, granted.filled)), settings)
    if need := need_gpu_memory(job, status, snapshot, settings):
        return need
    pinned = status.resolved
    if pinned is None:
        image = job.spec.resources.image or settings.trainer_image
        pinned = Resolved(image=image, contract=CONTRACT, digest=resolved.digest, presets=granted)
    resolved = resolved.model_copy(update={"contract": pinned.contract, "digest": pinned.digest})
    document = canonical(resolved.to_dict())
    try:
        pinned = pinned.model_copy(update={"job": store(document)})
    except ValueError as error:
        raise Invalid(str(error)) from error
    terms = Terms(job, resolved, document, unknown)
    return terms, status.model_copy(update={"references": references or None, "resolved": pinned})


def _granted(
    view: JobView, job: FineTuneJob, status: FineTuneJobStatus, snapshot: Snapshot, settings: Settings
) -> AppliedPresets | Need | None:
    """What the job got from presets, or gets today. Raises Invalid and Blocked."""
    fixed = status.resolved
    return apply_presets(view, job.spec, snapshot, settings) if fixed is None else fixed.presets


@dataclass(frozen=True)
class _Facts:
    """All that the terms of an accepted job follow from."""

    namespace: str
    name: str
    spec: Raw
    resolved: Resolved | None
    references: list[Reference] | None
    settings: Settings


_KEPT = 256
_known: dict[str, tuple[_Facts, Terms]] = {}
"""The terms of the jobs that were planned last, by uid. A job is planned several times within seconds: reading its
terms again costs more than all the rest of a plan."""


def _fixed(view: JobView, status: FineTuneJobStatus, stored: str, settings: Settings) -> Terms:
    """The terms of an accepted job. Raises Blocked."""
    facts = _Facts(view.namespace, view.name, view.spec, status.resolved, status.references, settings)
    known = _known.pop(view.uid, None)
    if known is None or known[0] != facts:
        known = facts, _read_terms(view, status, stored, settings)
    _known[view.uid] = known
    if len(_known) > _KEPT:
        del _known[next(iter(_known))]
    return known[1]


def _read_terms(view: JobView, status: FineTuneJobStatus, stored: str, settings: Settings) -> Terms:
    """Raises Blocked."""
    try:
        document = _with_live_values(load(stored), view.spec)
        resolved = ResolvedJob.read(json.loads(document))
    except ValueError as error:
        raise Blocked(
            f"This release of the operator cannot read the job in status.resolved.job: {sentence(problem(error))}"
            " Attempts that run continue. Install the release that wrote it.",
            Reason.NOT_SUPPORTED,
        ) from error
    spec, hold = spec_of_attempts(with_presets(view.spec, status), resolved)
    meta = ObjectMeta.model_construct(name=view.name, namespace=view.namespace, uid=view.uid)
    job = FineTuneJob.model_construct(metadata=meta, spec=spec)
    unknown, objection, differs = _compare(view, resolved, status.references or [], settings)
    return Terms(job, resolved, document, unknown, objection, differs, hold)


def _with_live_values(document: str, spec: Raw) -> str:
    """The document with the live value of checkpoints.keep, which may be changed while the job lives."""
    job = json.loads(document)
    if not isinstance(job, dict):
        raise ValueError("it is no JSON object")
    keep, checkpoints = section(spec, "checkpoints").get("keep"), section(job, "checkpoints")
    if not isinstance(keep, int) or keep == checkpoints.get("keep"):
        return document
    return canonical({**job, "checkpoints": {**checkpoints, "keep": keep}})


def spec_of_attempts(live: Raw, resolved: ResolvedJob) -> tuple[FineTuneJobSpec, str]:
    """The spec from which attempts are made, and why none can be made."""
    fixed = {name: getattr(resolved, name) for name in FineTuneJobSpec.model_fields if name in ResolvedJob.model_fields}
    problems = []
    for name, model in _OPERATIONAL.items():
        try:
            fixed[name] = model.read(live.get(name) or {})
        except ValidationError as error:
            fixed[name] = model.model_construct()
            problems.append(f"spec.{name}: {problem(error)}")
    numbers = {field: live[name] for name, field in _MUTABLE_NUMBERS.items() if isinstance(live.get(name), int)}
    queues = {field: live[name] for name, field in _QUEUES.items() if isinstance(live.get(name), str)}
    hold = (
        f"This release of the operator cannot read {sentence('; '.join(problems))} Attempts that run continue."
        " Install a release that can read it, or recreate the job."
    )
    return FineTuneJobSpec.model_construct(**fixed, **numbers, **queues), hold if problems else ""


def _compare(
    view: JobView, resolved: ResolvedJob, references: Sequence[Reference], settings: Settings
) -> tuple[tuple[str, ...], str, str]:
    """What this release does not know of the spec, why it would refuse the job, and how it would resolve it."""
    try:
        job, unknown = parse_spec(view, settings)
        today = accept(job, references, settings, resolved.runtime.gpu_memory_bytes)
    except (Invalid, Blocked) as error:
        return (), str(error), ""
    if today.digest == resolved.digest:
        return unknown, "", ""
    return unknown, "", f"accepted with digest {resolved.digest}; this release would resolve it to {today.digest}"


def problem(error: ValueError) -> str:
    """The first problem, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])) + f": {first['msg']}"
