"""Objects that carry the operator's labels, or are of its kind, and cannot be read.

Everybody can give labels to an object, and another release may have written it. Such an object must not stop the
operator from serving the others: it is logged, counted and skipped.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from finetune_operator.views.metadata import Raw, section

log = logging.getLogger(__name__)

V = TypeVar("V")

REMEMBERED = 10_000
"""Objects of which the logged version is remembered, so that a version is logged once."""


@dataclass
class UnreadableObjects:
    """What was skipped since the operator started."""

    counts: Counter[str] = field(default_factory=Counter)
    """Versions of objects that could not be read, by kind."""
    logged: dict[str, str] = field(default_factory=dict)
    """The newest version that was logged of each object."""

    def read(self, kind: str, parse: Callable[[Raw], V | None], raw: Raw) -> V | None:
        """The view of an object; None if the parser has none, or if the object cannot be read."""
        try:
            return parse(raw)
        except Exception as error:  # whatever is wrong with a stranger's object, the next object is read
            meta = section(raw, "metadata")
            name = f"{meta.get('namespace')}/{meta.get('name')}"
            self.report(kind, name, str(meta.get("uid")), str(meta.get("resourceVersion")), error)
            return None

    def report(self, kind: str, name: str, uid: str, version: str, error: Exception) -> None:
        """Log and count a version of an object, once."""
        if self.logged.get(uid) == version:
            return
        self.logged.pop(uid, None)
        self.logged[uid] = version
        if len(self.logged) > REMEMBERED:
            del self.logged[next(iter(self.logged))]
        self.counts[kind] += 1
        why = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        log.warning("%s %s cannot be read and is skipped: %s (%d so far)", kind, name, why, self.counts.total())
