"""Jobs side by side: where their specs differ, and what came out."""

from datetime import datetime
from typing import Any

from finetune_cli import clock, jobs

NOT_SET = "–"
OPERATIONAL = ("suspend", "retry", "stop")


def differences(found: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each field below spec that is not equal in all jobs."""
    flat = [flatten({key: value for key, value in job["spec"].items() if key not in OPERATIONAL}) for job in found]
    fields = sorted({field for each in flat for field in each})
    rows = [[field, *(str(each.get(field, NOT_SET)) for each in flat)] for field in fields]
    return [row for row in rows if len(set(row[1:])) > 1]


def outcomes(found: list[dict[str, Any]], at: datetime) -> list[list[str]]:
    """A row for each number that at least one job has."""
    columns = [_numbers(job, at) for job in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [[name, *(column.get(name) or NOT_SET for column in columns)] for name in names]


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Path -> value of every leaf."""
    if isinstance(value, dict):
        return {key: leaf for name, inner in value.items() for key, leaf in flatten(inner, f"{path}.{name}").items()}
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return {key: leaf for at, inner in enumerate(value) for key, leaf in flatten(inner, f"{path}[{at}]").items()}
    return {path.lstrip("."): value}


def _numbers(job: dict[str, Any], at: datetime) -> dict[str, str]:
    status = jobs.status(job)
    progress = status.get("progress") or {}
    started, ended = clock.parse(status.get("startTime")), clock.parse(status.get("completionTime"))
    time = clock.duration(((ended or at) - started).total_seconds()) if started else ""
    found = {
        "phase": jobs.phase(job),
        "progress": progress.get("summary"),
        "loss": progress.get("loss"),
        "tokens per second": progress.get("tokensPerSecond"),
        "attempts": str(status["attempt"]) if status.get("attempt") else None,
        "time": time,
        **(status.get("metrics") or {}),
    }
    return {name: str(value) for name, value in found.items() if value}
