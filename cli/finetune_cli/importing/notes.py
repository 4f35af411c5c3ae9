"""What an import says: the job, and a note for every setting that is not kept as it is."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Fate(StrEnum):
    """What happens to a setting."""

    CHANGED = "changed"
    """Kept, with another meaning or with an assumption that somebody must check."""
    LEFT_OUT = "left out"
    """No field means it, and the training differs without it."""
    NOT_NEEDED = "not needed"
    """No field means it, and nothing is lost."""


class Note(NamedTuple):
    """A setting that is not simply kept."""

    fate: Fate
    setting: str
    why: str

    def __str__(self) -> str:
        return f"{self.fate}: {self.setting}: {self.why}"


@dataclass
class Imported:
    """A FineTuneJob, and the notes about it."""

    job: dict[str, Any]
    notes: list[Note] = field(default_factory=list)

    def note(self, fate: Fate, setting: str, why: str) -> None:
        """Add a note."""
        self.notes.append(Note(fate, setting, why))


def put(section: dict[str, Any], path: str, value: Any) -> None:
    """Set a field by its path."""
    *outer, last = path.split(".")
    for part in outer:
        section = section.setdefault(part, {})
    section[last] = value


def ordered(spec: dict[str, Any]) -> dict[str, Any]:
    """The sections in the order of the API, without empty sections."""
    from finetune_api.sections import SpecSections

    order = [info.alias or name for name, info in SpecSections.model_fields.items()]
    return {name: spec[name] for name in order if spec.get(name) not in (None, {}, [])}
