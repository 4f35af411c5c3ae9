"""FineTuneJobSpec: what a user asks for, with the rules between its sections and against changes."""

from typing import Self

from pydantic import ConfigDict, model_validator
from pydantic.config import JsonDict

from finetune_api import consistency
from finetune_api.base import cel, validated
from finetune_api.sections import SpecSections
from finetune_api.training import CheckpointsSpec

MUTABLE = (
    "backoffLimit",
    "startDeadlineSeconds",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
    "retry",
    "notify",
    "stop",
    "suspend",
)
"""Fields that may change while the job exists, as on a batch/v1 Job. checkpoints.keep may change too."""
MUTABLE_WHILE_SUSPENDED = ("prepare", "resources", "secrets", "queue", "queuePriorityClass")
"""Sections and fields that may change while the job is suspended: nothing runs that was made from them."""
RETRY_RAISED = cel(
    "self.retry >= oldSelf.retry",
    "spec.retry can only be raised: set it above status.retry to re-open a job that has Failed",
)
KEPT = cel(
    "!has(oldSelf.stop) || has(self.stop)",
    "spec.stop cannot be taken back: create a job with another name to train further",
)
_SUSPENDED = "has(oldSelf.suspend) && oldSelf.suspend && has(self.suspend) && self.suspend"


def immutable(field: str) -> JsonDict:
    """The rule that a field must not change. It stands at the spec's level, because a rule at the field itself does not
    see that the field is added or removed."""
    return cel(_unchanged(field), f"spec.{field} cannot be changed: delete the job, or create a job with another name")


def changed_while_suspended(field: str) -> JsonDict:
    """The rule that a field changes only while the job is suspended: before the change and after it."""
    return cel(
        f"({_SUSPENDED}) || ({_unchanged(field)})",
        f"spec.{field} can be changed only while the job is suspended: set spec.suspend to true, then change it, then"
        " set suspend to false",
    )


def _unchanged(field: str) -> str:
    return f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"


def immutability_rules() -> list[JsonDict]:
    """A rule per field that must not change, or not always, generated so that no new field is forgotten."""
    fields = [info.alias or name for name, info in SpecSections.model_fields.items()]
    rules = [immutable(field) for field in fields if field not in (*MUTABLE, *MUTABLE_WHILE_SUSPENDED, "checkpoints")]
    rules += [changed_while_suspended(field) for field in MUTABLE_WHILE_SUSPENDED]
    for name, info in CheckpointsSpec.model_fields.items():
        field = info.alias or name
        if field != "keep":
            # checkpoints has a default, so the section always exists.
            rules.append(immutable(f"checkpoints.{field}"))
    return rules


class FineTuneJobSpec(SpecSections):
    """What to train, on which data, and with which resources."""

    model_config = ConfigDict(
        json_schema_extra=validated([*immutability_rules(), RETRY_RAISED, KEPT, *consistency.as_cel()])
    )

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Self:
        consistency.check(self)
        return self
