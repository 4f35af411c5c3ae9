"""Why a job is in its phase, in one paragraph: since when, whose turn it is, and what to do."""

from datetime import datetime
from typing import Any

from finetune_cli import clock, jobs
from finetune_cli.turns import NOBODY, OPERATOR, TRAINER, TURNS, YOU, Turn

CONDITIONS = {
    "Pending": ("Accepted",),
    "Preparing": ("Prepared",),
    "Queued": ("QuotaReserved",),
    "Starting": ("Running",),
    "Running": ("Running",),
    "Suspended": ("Suspended",),
    "Succeeded": ("Succeeded",),
    "Failed": ("Failed",),
}


def explain(job: dict[str, Any], at: datetime) -> dict[str, Any]:
    """The answer in parts, for programs."""
    status, phase = jobs.status(job), jobs.phase(job)
    reason = str(status.get("reason") or "")
    turn = _turn(job, phase, reason)
    return {
        "job": job["metadata"]["name"],
        "phase": phase,
        "reason": reason,
        "since": since(job),
        "for": clock.since(since(job), at),
        "message": status.get("message") or "",
        "turn": turn.whose,
        "advice": turn.advice.format(name=job["metadata"]["name"]),
    }


def paragraph(job: dict[str, Any], at: datetime) -> str:
    """The answer for people."""
    answer = explain(job, at)
    status = jobs.status(job)
    name, phase = answer["job"], answer["phase"]
    age = f" for {answer['for']}" if answer["for"] and phase not in jobs.FINAL else ""
    then = f" {answer['for']} ago" if answer["for"] and phase in jobs.FINAL else ""
    text = {
        "Succeeded": f"{name} has succeeded{then}",
        "Failed": f"{name} failed{then}",
    }.get(phase, f"{name} is {phase}{age}")
    parts = [text + (f" ({answer['reason']})." if answer["reason"] and answer["reason"] != phase else ".")]
    progress = status.get("progress") or {}
    if phase in ("Preparing", "Running") and progress.get("summary"):
        parts.append(_progress(progress, at))
    if answer["message"]:
        parts.append(_sentence(answer["message"]))
    if job["metadata"].get("deletionTimestamp"):
        parts.append("Somebody has deleted it, and it ends.")
    if answer["turn"] != NOBODY:
        parts.append(f"It is {'your' if answer['turn'] == YOU else answer['turn'] + chr(39) + 's'} turn.")
    if answer["advice"]:
        parts.append(answer["advice"])
    return " ".join(parts)


def since(job: dict[str, Any]) -> str | None:
    """When the job came into its phase."""
    status, phase = jobs.status(job), jobs.phase(job)
    found = {each["type"]: each["lastTransitionTime"] for each in status.get("conditions") or ()}
    for name in CONDITIONS.get(phase, ()):
        if name in found:
            return str(found[name])
    return str(job["metadata"].get("creationTimestamp") or "") or None


def _turn(job: dict[str, Any], phase: str, reason: str) -> Turn:
    if jobs.status(job).get("observedGeneration", 0) != job["metadata"].get("generation", 0):
        return Turn(OPERATOR, "It has not seen the last change of the job yet.")
    turn = TURNS.get(reason or (phase if phase in TURNS else ""), TURNS["Unknown"])
    if phase == "Failed" and turn.whose != YOU and turn.whose in (OPERATOR, TRAINER):
        return Turn(YOU, "Run `finetune retry {name}` to continue from the newest checkpoint.")
    return turn if phase != "Succeeded" else Turn(NOBODY)


def _progress(progress: dict[str, Any], at: datetime) -> str:
    parts = [f"{progress.get('activity', 'Training')}: {progress['summary']}"]
    if progress.get("loss"):
        parts.append(f"loss {progress['loss']}")
    if progress.get("eta"):
        parts.append(f"{progress['eta']} to go")
    seen = clock.since(progress.get("lastUpdateTime"), at)
    return ", ".join(parts) + (f" (reported {seen} ago)." if seen else ".")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."
