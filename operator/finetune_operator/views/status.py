"""Reading and writing status.* of a FineTuneJob: the one place that knows how other releases write it.

An earlier release wrote some fields in another form. A newer release may have written fields, condition types, phases
and reasons that this release does not know. They are kept as they are: what is not written back is deleted, because
the operator owns its part of the status.
"""

from typing import Any

from finetune_api.status import TRAINER_FIELDS, FineTuneJobStatus
from pydantic import ValidationError

from finetune_operator.views.job import operator_part
from finetune_operator.views.metadata import Raw, Unreadable

_ATTEMPT_LISTS = ("attempts", "prepareAttempts")
_LIST_KEYS = {"conditions": "type", "attempts": "number", "prepareAttempts": "number", "references": "use"}
"""The lists of the status, and the field that identifies their entries."""


def parse_status(status: Raw) -> FineTuneJobStatus:
    """The status in today's form. Raises Unreadable."""
    status = _normalized(status)
    try:
        return FineTuneJobStatus.read(status)
    except ValidationError:
        # What the trainer writes is evidence; its absence is harmless.
        status = {name: value for name, value in status.items() if name not in TRAINER_FIELDS or _readable(name, value)}
    try:
        return FineTuneJobStatus.read(status)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise Unreadable(f"status.{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error


def condition_values(status: Raw) -> dict[str, Any]:
    """The value of each condition, by type."""
    return {condition["type"]: condition.get("status") for condition in _normalized(status).get("conditions") or []}


def merge_unknown(before: Raw, after: FineTuneJobStatus) -> Raw:
    """The operator's part of a status as it is written, with the fields of the status before that this release does not
    know."""
    old = operator_part(_normalized(before))
    return _merged(old, parse_status(old).to_dict(), operator_part(after.to_dict()))


def _merged(old: Raw, known: Raw, new: Raw) -> Raw:
    """The new section with what is in the old section, but not in what this release understands of it."""
    merged = dict(new)
    for name, value in old.items():
        if name not in known:
            if value is not None:
                merged.setdefault(name, value)
        elif name in new:
            merged[name] = _merged_value(name, value, known[name], new[name])
    return merged


def _merged_value(name: str, old: Any, known: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(known, dict) and isinstance(new, dict):
        return _merged(old, known, new)
    if name not in _LIST_KEYS or not isinstance(old, list):
        return new
    key = _LIST_KEYS[name]
    before = {entry[key]: (entry, understood) for entry, understood in zip(old, known, strict=True)}
    return [_merged(*before[entry[key]], entry) if entry[key] in before else entry for entry in new]


def _readable(name: str, value: Any) -> bool:
    try:
        FineTuneJobStatus.read({name: value})
    except ValidationError:
        return False
    return True


def _normalized(status: Raw) -> Raw:
    """Releases before state Ending wrote the cause of an end that was under way into the reason of the unfinished
    attempt."""
    lists = {name: status[name] for name in _ATTEMPT_LISTS if isinstance(status.get(name), list)}
    return {**status, **{name: [_normalized_attempt(entry) for entry in entries] for name, entries in lists.items()}}


def _normalized_attempt(attempt: Any) -> Any:
    if (
        not isinstance(attempt, dict)
        or attempt.get("state") not in ("Starting", "Running")
        or not attempt.get("reason")
    ):
        return attempt
    kept = {name: value for name, value in attempt.items() if name != "reason"}
    return {**kept, "state": "Ending", "cause": attempt["reason"]}
