"""Times as people read them."""

from datetime import UTC, datetime
from typing import Any


def parse(text: str | None) -> datetime | None:
    """An RFC 3339 time of Kubernetes."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def duration(seconds: float) -> str:
    """45s, 5m12s, 3h04m or 2d5h."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes == 0:
        return f"{whole}s"
    if hours == 0:
        return f"{minutes}m{whole % 60:02d}s" if minutes < 10 else f"{minutes}m"
    if days == 0:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24}h"


def since(text: str | None, at: datetime) -> str:
    """The time from then until `at`, or an empty string."""
    then = parse(text)
    return duration((at - then).total_seconds()) if then else ""


def age(job: dict[str, Any], at: datetime) -> str:
    """The age of an object."""
    return since(job["metadata"].get("creationTimestamp"), at)
