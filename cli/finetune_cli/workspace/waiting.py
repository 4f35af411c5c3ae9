"""What keeps a pod from running, in words, until it runs."""

import time
from typing import Any

from finetune_cli import paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.output import warn
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace.pod import CONTAINER, GATE

PAUSE_SECONDS = 0.5
HOPELESS = ("InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull")
"""Reasons of a container that waits and will not start by itself."""
OUT_OF_MEMORY = "It needs more memory than the pod has: --memory sets it"


def until_it_runs(client: Client, path: str, timeout: float) -> None:
    """Wait for the container of a pod, and say what it waits for. Raises Problem if it cannot run, or does not run in
    time."""
    end, told = time.monotonic() + timeout, ""
    while True:
        pod = client.get(path)
        name = pod["metadata"]["name"]
        state = _state(pod)
        if "running" in state:
            return
        if text := ended(pod):
            raise Problem(f"Pod {name} has ended: {text}", Exit.FAILED)
        reason, text = _obstacle(pod, state)
        if reason in HOPELESS or (reason == "SchedulingGated" and GATE not in pod["metadata"]["labels"]):
            raise Problem(f"Pod {name} cannot start: {text}", Exit.FAILED)
        if text and text != told:
            told = text
            warn(f"Waiting for pod {name}: {text}")
        if time.monotonic() >= end:
            why = _event(client, pod) or told or "nothing says why"
            raise Problem(f"Pod {name} did not run within {timeout:g} seconds (--timeout): {why}", Exit.TIMEOUT)
        time.sleep(PAUSE_SECONDS)


def ended(pod: Object) -> str:
    """Why a pod has ended; empty if it has not."""
    status = pod.get("status") or {}
    terminated = _state(pod).get("terminated") or {}
    if terminated.get("reason") == "OOMKilled":
        return OUT_OF_MEMORY
    if status.get("phase") in ("Failed", "Succeeded") or terminated:
        words = [str(status.get("reason") or terminated.get("reason") or "its container ended"), status.get("message")]
        return ": ".join(word for word in words if word)
    return ""


def _state(pod: Object) -> dict[str, Any]:
    for each in (pod.get("status") or {}).get("containerStatuses") or ():
        if each["name"] == CONTAINER:
            return each.get("state") or {}
    return {}


def _obstacle(pod: Object, state: dict[str, Any]) -> tuple[str, str]:
    """(reason, text); both empty if nothing says what the pod waits for."""
    waiting = state.get("waiting") or {}
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return waiting["reason"], f"{waiting['reason']}: {waiting.get('message') or 'no message'}"
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] != "PodScheduled" or condition["status"] == "True":
            continue
        reason = str(condition.get("reason") or "")
        if reason == "SchedulingGated":
            queue = pod["metadata"]["labels"].get(GATE)
            held = f"its queue {queue} has not admitted it yet" if queue else "it names no queue: --queue NAME does"
            return reason, f"Kueue, or whatever else gates pods of this namespace, holds it, because {held}"
        return reason, str(condition.get("message") or reason)
    return "", ""


def _event(client: Client, pod: Object) -> str:
    """The newest warning about the pod, such as a volume that cannot be mounted."""
    path = paths.core("events", pod["metadata"]["namespace"])
    query = f"involvedObject.uid={pod['metadata']['uid']},type=Warning"
    try:
        found: list[Object] = client.get(path, fieldSelector=query).get("items") or []
    except Problem:
        return ""
    newest = max(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default=None)
    return str(newest.get("message") or "") if newest else ""
