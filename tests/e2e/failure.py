"""What a failed test of this tier shows of the cluster: the jobs that have not ended, their pods, and what these said.

The cluster is gone when somebody reads the failure.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from examples.demo import cluster as demo
from examples.demo.kubectl import DemoError, Kubectl

LINES = 15
"""Lines of each log."""
LETTERS = 1500
"""Letters of a status. One failure should not hide another."""


def cluster_state(env: dict[str, str], namespace: str) -> str:
    """A few lines for each job that has not ended; never an error."""
    kubectl = Kubectl(env, namespace)
    said = []
    for job in _listed(kubectl, "finetunejobs"):
        status, name = job.get("status", {}), job["metadata"]["name"]
        if status.get("phase") not in ("Succeeded", "Failed"):
            shown = {key: status.get(key) for key in ("phase", "reason", "message", "attempts", "progress")}
            said.append(f"FineTuneJob {name}: {json.dumps(shown)[:LETTERS]}")
    for pod in _listed(kubectl, "pods"):
        if pod["status"].get("phase") != "Succeeded":
            said += _told_of(kubectl, pod)
    said += _log(Kubectl(env, demo.OPERATOR_NAMESPACE), f"deployment/{demo.RELEASE}")
    return "\n".join(said)


def _told_of(kubectl: Kubectl, pod: dict[str, Any]) -> list[str]:
    name, status = pod["metadata"]["name"], pod["status"]
    states = [found["state"] for found in status.get("containerStatuses", [])]
    unmet = [found for found in status.get("conditions", []) if found["status"] != "True"]
    leaving = pod["metadata"].get("deletionTimestamp")
    head = f"Pod {name} ({status['phase']}, deleted: {leaving}): {json.dumps([states, unmet])[:LETTERS]}"
    return [head, *_log(kubectl, f"pod/{name}")]


def _log(kubectl: Kubectl, of: str) -> list[str]:
    with suppress(DemoError):
        return [f"  | {line}" for line in kubectl("logs", of, f"--tail={LINES}").splitlines()]
    return ["  | no log"]


def _listed(kubectl: Kubectl, kind: str) -> list[dict[str, Any]]:
    with suppress(DemoError, ValueError):
        items: list[dict[str, Any]] = json.loads(kubectl("get", kind, "--output=json"))["items"]
        return items
    return []
