"""What the presets of the namespace give a job, and whether the job keeps to their bounds.

They are read live when a job is accepted, and when a suspended or failed job continues: the watch of ConfigMaps may be
behind that of FineTuneJobs, and a job that follows its presets at once must not escape their bounds. What a job got
stays in `status.resolved` until then, and a later change of the presets concerns no attempt before.
"""

from collections.abc import Iterator

from finetune_api.presets import CONFIG_MAP, Bounds, Parts, editable_excesses, excesses, fill, filled_in
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import AppliedPresets, FineTuneJobStatus, Reason
from pydantic import ValidationError

from finetune_operator.plan.acceptance import Blocked, Invalid
from finetune_operator.plan.conditions import sentence
from finetune_operator.plan.decision import Need, missing
from finetune_operator.settings import Settings
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Raw
from finetune_operator.views.snapshot import Read, Snapshot

SHOWN = 5
"""Excesses in a message."""
INSTALLATION = "chart value presets.default"


def apply_presets(
    view: JobView, spec: FineTuneJobSpec, snapshot: Snapshot, settings: Settings, *, editable: bool = False
) -> AppliedPresets | Need | None:
    """What the presets of today give a job; None: nothing. `editable`: only the sections are compared that may have
    changed since the job was accepted. Raises Blocked while the presets cannot be read, and Invalid if the job exceeds
    their bounds."""
    if need := missing(snapshot, Read.PRESETS):
        return need
    found = snapshot.presets
    source = INSTALLATION if found is None else f"ConfigMap {CONFIG_MAP} of namespace {view.namespace}"
    if found is not None and found.problem:
        raise Blocked(
            f"The presets of the namespace are broken: {source}: {sentence(found.problem)} Correct the ConfigMap, or"
            " delete it. This job then continues by itself.",
            Reason.PRESETS_INVALID,
        )
    presets = settings.presets if found is None else found.presets
    check(source, (editable_excesses if editable else excesses)(presets.bounds, spec))
    filled, bounds = fill(presets.defaults, view.spec), presets.bounds.to_dict()
    return AppliedPresets(source=source, filled=filled or None, bounds=bounds or None) if filled or bounds else None


def check(source: str, found: Iterator[str]) -> None:
    """Raises Invalid if there are any excesses."""
    if texts := list(found):
        more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        raise Invalid(
            f"The job asks for more than the presets allow ({source}): {'; '.join(texts[:SHOWN])}{more}. Change the"
            " job, or ask whoever manages the presets to change the bound."
        )


def check_edited(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> None:
    """Raises Invalid if a job exceeds the bounds that it was accepted with: its spec was changed since."""
    applied = status.resolved.presets if status.resolved else None
    if applied is None or not applied.bounds:
        return
    try:
        bounds = Bounds.read(applied.bounds)
    except ValidationError:
        return  # another release wrote them; they are read again when the job is resumed
    check(applied.source, editable_excesses(bounds, spec))


def with_presets(spec: Raw, status: FineTuneJobStatus) -> Parts:
    """The spec with what the job got from the presets."""
    applied = status.resolved.presets if status.resolved else None
    return filled_in(spec, (applied.filled if applied else None) or {})
