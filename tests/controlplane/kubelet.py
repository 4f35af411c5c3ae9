"""A kubelet played by script: it starts, ends and removes pods by writing their status, as a kubelet would.

The pods are real objects, made by the real Job controller; nothing of them runs. A pod that has a node goes only when
its kubelet says so (`remove`), as in a real cluster. Used by the lifecycle and fault tests.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.kube import ApiError, Kube, Object, until

NODE = "node-1"
TRAINER = "trainer"
TIME = "2026-01-31T12:00:00Z"
JOB, KIND, ATTEMPT, RANK = (
    "finetune-operator.io/job",
    "finetune-operator.io/kind",
    "finetune-operator.io/attempt",
    "batch.kubernetes.io/job-completion-index",
)


def register_node(kube: Kube) -> None:
    """The node that pods are bound to: else the pod garbage collector takes them for orphans."""
    if kube.find("Node", NODE) is None:
        kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})


class Kubelet:
    """Pods of one namespace. A pod is passed around as the object that the API server returned."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace

    def pods(self, job: str, attempt: int, kind: str = "train") -> list[Object]:
        """The pods of an attempt, by rank."""
        found = self._kube.list("Pod", self._namespace, f"{JOB}={job},{KIND}={kind},{ATTEMPT}={attempt}")
        return sorted(found, key=lambda pod: int(pod["metadata"]["labels"][RANK]))

    def pod(self, job: str, attempt: int = 1, kind: str = "train") -> Object:
        """The pod of an attempt, once the Job controller has made it."""
        [pod] = until(f"{job} has a pod of {kind} attempt {attempt}", lambda: self.pods(job, attempt, kind))
        return pod

    def run(self, pod: Object) -> None:
        """It has a node, and its containers run. Init containers are done."""
        self._bind(pod)
        self._report(pod, {"running": {"startedAt": TIME}})

    def hold(self, pod: Object, reason: str, message: str, *, container: str = TRAINER) -> None:
        """It has a node, but a container waits."""
        self._bind(pod)
        self._report(pod, {"waiting": {"reason": reason, "message": message}}, container)

    def find_no_node(self, pod: Object, message: str) -> None:
        """What the scheduler says."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self._patch(pod, {"conditions": [condition]})

    def finish(
        self, pod: Object, code: int, message: str = "", reason: str = "", *, container: str = TRAINER, at: str = TIME
    ) -> None:
        """A container ends with a code and a termination message. The pod ends with its last container."""
        self._bind(pod)
        ended = {
            "exitCode": code,
            "reason": reason or ("Error" if code else "Completed"),
            "message": message,
            "startedAt": TIME,
            "finishedAt": at,
        }
        self._report(pod, {"terminated": ended}, container)

    def lose_node(self, pod: Object, grace: int | None = None) -> None:
        """What the taint manager writes when the node no longer answers; the pod stays. `grace`: its grace period."""
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            # The disruption controller takes back an old condition of a pod that is not deleted yet.
            "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self._patch(pod, {"conditions": [condition]})
        self._kube.delete("Pod", pod["metadata"]["name"], self._namespace, grace=grace)

    def drain(self, pod: Object) -> None:
        """The Eviction API, as `kubectl drain` asks it: marks the pod as disrupted and asks it to end."""
        meta = pod["metadata"]
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": meta["name"]}}
        self._kube.call("POST", f"api/v1/namespaces/{self._namespace}/pods/{meta['name']}/eviction", eviction)

    def evict(self, pod: Object, code: int, message: str = "") -> None:
        """Drained, ended with a code, and gone at once: what a drain leaves of a pod is nothing."""
        self.drain(pod)
        self.finish(pod, code, message)
        self.remove(pod)

    def lose(self, pod: Object) -> None:
        """Failed, and nobody knows how: no exit code, no reason."""
        self._patch(pod, {"phase": "Failed", "containerStatuses": []})
        self.remove(pod)

    def remove(self, pod: Object) -> None:
        """The last word of a kubelet about a pod that was deleted."""
        self._kube.delete("Pod", pod["metadata"]["name"], self._namespace, grace=0)

    def remove_all(self, job: str) -> None:
        """Let go of everything that Kubernetes wants to have deleted."""
        for pod in self._kube.list("Pod", self._namespace, f"{JOB}={job}"):
            if "deletionTimestamp" in pod["metadata"]:
                self.remove(pod)

    def shut_down(self) -> None:
        """Let go of every pod: else the namespace could not be deleted."""
        self._kube.call("DELETE", f"api/v1/namespaces/{self._namespace}/pods", {"gracePeriodSeconds": 0})

    def _bind(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        }
        try:
            self._kube.call("POST", f"api/v1/namespaces/{self._namespace}/pods/{name}/binding", binding)
        except ApiError as error:
            if error.code != 409:  # it has its node
                raise

    def _report(self, pod: Object, state: Object, container: str = TRAINER) -> None:
        """A container has another state, and the phase follows. The others run as soon as the trainer does."""
        spec, status = pod["spec"], self._kube.get("Pod", pod["metadata"]["name"], self._namespace)["status"]
        running = container == TRAINER and "waiting" not in state
        listed: Object = {"initContainerStatuses": [], "containerStatuses": []}
        for field, containers in (("initContainerStatuses", "initContainers"), ("containerStatuses", "containers")):
            before = {known["name"]: known["state"] for known in status.get(field, [])}
            beside = _DONE if containers == "initContainers" else {"running": {"startedAt": TIME}}
            for made in spec.get(containers, []):
                other = before.get(made["name"], _CREATING)
                other = beside if running and "waiting" in other else other
                listed[field].append(_status(made, state if made["name"] == container else other))
        self._patch(pod, {"phase": _phase(listed), **{field: known for field, known in listed.items() if known}})

    def _patch(self, pod: Object, status: dict[str, Any]) -> None:
        self._kube.patch("Pod", pod["metadata"]["name"], {"status": status}, self._namespace, part="status")


_CREATING: Object = {"waiting": {"reason": "ContainerCreating"}}
_DONE: Object = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": TIME, "finishedAt": TIME}}


def _status(container: Object, state: Object) -> Object:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": container["image"],
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }


def _phase(listed: Object) -> str:
    """As the kubelet computes it for a pod that is never restarted."""
    inits, states = (
        [known["state"] for known in listed[field]] for field in ("initContainerStatuses", "containerStatuses")
    )
    if any(state.get("terminated", {}).get("exitCode") for state in inits):
        return "Failed"
    if any("waiting" in state for state in states) or any("terminated" not in state for state in inits):
        return "Pending"
    if any("running" in state for state in states):
        return "Running"
    return "Failed" if any(state["terminated"]["exitCode"] for state in states) else "Succeeded"
