"""What happened to a job, in order: its attempts, its conditions, and Kubernetes' events."""

from datetime import datetime
from typing import Any, NamedTuple

from finetune_cli import clock, jobs, paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.cluster.errors import ApiError
from finetune_cli.problem import Exit

QUIET = ("Reconciling", "Stalled")
"""Conditions that repeat others, for kstatus."""


class Entry(NamedTuple):
    """Something that happened."""

    time: str
    what: str
    message: str


def events(client: Client, name: str, uid: str) -> list[Object]:
    """The events of a job. Empty if the user may not list them."""
    selector = f"involvedObject.kind=FineTuneJob,involvedObject.name={name},involvedObject.uid={uid}"
    try:
        return list(client.items(paths.core("events", client.namespace), fieldSelector=selector))
    except ApiError as error:
        if error.code is Exit.DENIED:
            return []
        raise


def timeline(job: dict[str, Any], happened: list[Object] = []) -> list[Entry]:  # noqa: B006 - never changed
    """Everything that is known, oldest first."""
    status = jobs.status(job)
    entries = [Entry(job["metadata"]["creationTimestamp"], "Created", "")]
    for kind, key in (("prepare", "prepareAttempts"), ("training", "attempts")):
        for attempt in status.get(key) or ():
            entries += _of_attempt(kind, attempt)
    for condition in status.get("conditions") or ():
        if condition["type"] not in QUIET and condition["status"] == "True":
            entries.append(
                Entry(
                    condition["lastTransitionTime"],
                    f"{condition['type']} ({condition['reason']})",
                    condition["message"],
                )
            )
    if checkpoint := status.get("checkpoint"):
        entries.append(Entry(checkpoint["time"], "Checkpoint", f"step {checkpoint['step']} ({checkpoint['path']})"))
    for event in happened:
        time = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
        count = (event.get("series") or {}).get("count") or event.get("count") or 1
        often = f" ({count} times)" if count > 1 else ""
        entries.append(Entry(str(time)[:19] + "Z", f"Event {event.get('reason')}{often}", event.get("message") or ""))
    return sorted(dict.fromkeys(entries), key=lambda entry: entry.time)


def _of_attempt(kind: str, attempt: dict[str, Any]) -> list[Entry]:
    name = f"{kind} attempt {attempt['number']}".capitalize()
    entries = [Entry(attempt["startTime"], f"{name} created", attempt["job"])]
    if attempt.get("runningTime"):
        entries.append(Entry(attempt["runningTime"], f"{name} runs", ""))
    if restart := attempt.get("restarts"):
        what = f"{name}: restart {restart['number']} in the same pods ({restart['reason']})"
        entries.append(Entry(restart["time"], what, restart["message"]))
    if attempt.get("endTime"):
        reason = attempt.get("reason") or "Unknown"
        code = f", exit code {attempt['exitCode']}" if attempt.get("exitCode") is not None else ""
        entries.append(Entry(attempt["endTime"], f"{name} ended ({reason}{code})", attempt.get("message") or ""))
    return entries


def facts(job: dict[str, Any], at: datetime) -> list[tuple[str, str]]:
    """The head of the description."""
    spec, status = job["spec"], jobs.status(job)
    tuning = spec.get("tuning") or {}
    artifact, progress = status.get("artifact") or {}, status.get("progress") or {}
    checkpoint, prepared = status.get("checkpoint") or {}, status.get("prepared") or {}
    resources = spec.get("resources") or {}
    gpus = resources.get("nodes", 1), resources.get("gpusPerNode", 1)
    found = [
        ("Name", f"{job['metadata'].get('namespace', '')}/{job['metadata']['name']}"),
        ("Stage", f"{spec['stage']}, {tuning.get('method', 'lora')}"),
        ("Model", model(spec)),
        ("Data", ", ".join(f"{each['source']} ({each['format']})" for each in spec["datasets"])),
        ("Resources", f"{gpus[0]} node{'s'[: gpus[0] != 1]} with {gpus[1]} GPU{'s'[: gpus[1] != 1]} each"),
        ("Age", clock.age(job, at)),
        ("Phase", ": ".join(part for part in (jobs.phase(job), status.get("reason")) if part)),
        ("Message", status.get("message") or ""),
        ("Rows", f"{prepared['rows']:,} rows, {prepared['tokens']:,} tokens" if prepared else ""),
        ("Warning", prepared.get("warning") or ""),
        ("Progress", progress.get("summary") or ""),
        ("Loss", progress.get("loss") or (status.get("metrics") or {}).get("finalLoss") or ""),
        ("Checkpoint", f"step {checkpoint['step']}" if checkpoint else ""),
        ("Artifact", artifact.get("uri") or ""),
        ("Published", artifact.get("published") or ""),
    ]
    return [(name, value) for name, value in found if value]


def model(spec: dict[str, Any]) -> str:
    """The model that training starts from."""
    section = spec["model"]
    return section.get("source") or f"the result of {section.get('fromJob')}"
