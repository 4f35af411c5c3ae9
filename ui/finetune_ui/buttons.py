"""The buttons of a job: which exist, and why one is grey. The API server decides when one is pressed."""

from typing import NamedTuple

from finetune_cli import jobs
from finetune_cli.cluster.client import Object

from finetune_ui.texts import text

CONFIRMED = ("stop", "delete")
"""What cannot be taken back, so a page asks before."""


class Button(NamedTuple):
    """A button. `why` says why it is grey; empty if it is not."""

    verb: str
    label: str
    why: str
    confirmed: bool


def of(job: Object, rights: frozenset[str]) -> list[Button]:
    """All buttons, in their order."""
    phase, ended = jobs.phase(job), jobs.phase(job) in jobs.FINAL
    suspended = bool(job["spec"].get("suspend"))
    possible = {
        ("resume" if suspended else "suspend"): not ended,
        "retry": phase == "Failed",
        "stop": not ended and not job["spec"].get("stop"),
        "delete": not job["metadata"].get("deletionTimestamp"),
    }
    return [_button(verb, now, phase, job["metadata"]["namespace"], rights) for verb, now in possible.items()]


def _button(verb: str, possible: bool, phase: str, namespace: str, rights: frozenset[str]) -> Button:
    right = "delete" if verb == "delete" else "patch"
    if f"{right} finetunejobs" not in rights:
        why = text("actions.no_right", verb=right, namespace=namespace)
    else:
        why = "" if possible else text("actions.not_now", phase=phase)
    return Button(verb, text(f"actions.{verb}"), why, verb in CONFIRMED)
