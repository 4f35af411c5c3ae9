"""What all views share: keys, labels, conditions and timestamps of an object."""

import re
from datetime import UTC, datetime
from typing import Any

from finetune_operator.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_KIND, Kind

Raw = dict[str, Any]
"""An object as the API server returns it."""
Key = tuple[str, str]
"""(namespace, name) of a FineTuneJob."""


class Unreadable(ValueError):
    """An object that no plan can be made from. The message says what in it is wrong."""


def parse_time(text: str) -> datetime:
    """RFC 3339, as Kubernetes writes it. Raises Unreadable."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise Unreadable(f"{text!r} is not a time") from error
    if moment.tzinfo is None:
        raise Unreadable(f"{text!r} is a time without a time zone")
    return moment


def format_time(moment: datetime) -> str:
    """RFC 3339 to the second, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def metadata(raw: Raw) -> Raw:
    """The metadata of an object. Raises Unreadable if it does not identify the object."""
    meta = section(raw, "metadata")
    if not all(isinstance(meta.get(name), str) for name in ("namespace", "name", "uid", "resourceVersion")):
        raise Unreadable("its metadata names no object")
    return meta


def section(raw: Raw, name: str) -> Raw:
    """A section of an object; empty if it is absent or, as another release may have it, no section."""
    value = raw.get(name)
    return value if isinstance(value, dict) else {}


def entries(raw: Raw, name: str) -> list[Raw]:
    """The entries of a list in an object, without those that are no sections; empty if it is absent or no list."""
    listed = raw.get(name)
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def true_condition(raw: Raw, kind: str) -> Raw | None:
    """The condition of this type if its status is True."""
    conditions = (raw.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind and c.get("status") == "True"), None)


def parse_labels(meta: Raw) -> tuple[Key, Kind, int] | None:
    """The FineTuneJob, the kind and the attempt that an object belongs to; None if it is not an attempt's object."""
    labels = meta.get("labels") or {}
    name, kind, attempt = labels.get(LABEL_JOB), labels.get(LABEL_KIND), labels.get(LABEL_ATTEMPT, "")
    if not name or kind not in ("prepare", "train") or not re.fullmatch(r"[0-9]{1,3}", attempt):
        return None
    return (meta["namespace"], name), kind, int(attempt)
