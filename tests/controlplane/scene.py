"""A namespace to play a job's life in: submit, play the kubelet, see what happens to it.

What the lifecycle and fault tests share. Namespaces enforce the restricted Pod Security level, so every pod of every
test has to meet it.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import Result

from tests.controlplane.kubelet import Kubelet
from tests.kube import KINDS, Kube, Object, until

FTJ = "FineTuneJob"
GARBAGE_SECONDS = 60.0
"""The garbage collector learns of a kind that is new to the cluster, as ours is to a fresh cluster, within 30 s."""
ARTIFACT = {
    "uri": "pvc://workspace/jobs/job/artifact",
    "kind": "adapter",
    "digest": "sha256:1a2b",
    "sizeBytes": 4096,
    "base": "pvc://models/base",
    "baseAdapter": False,
}
PREPARED = {"digest": "sha256:3c4d", "rows": 1200, "tokens": 45678, "trainedTokens": 12345}
METRICS = {"train_loss": "1.25", "train_runtime": "60.5"}


def result(code: int, message: str = "", *, attempt: int = 1, reason: str = "", kind: str = "train") -> Object:
    """What the trainer says of its end: termination message and status.result alike."""
    said = {
        "kind": kind,
        "attempt": attempt,
        "exitCode": code,
        "reason": reason or REASONS[ExitCode(code)],
        "message": message or f"what the trainer says of {code}",
    }
    if code == 0:
        said |= {"artifact": ARTIFACT, "metrics": METRICS} if kind == "train" else {"prepared": PREPARED}
    return Result.model_validate(said).to_dict()


def claim(name: str = "workspace", mode: str = "ReadWriteOnce") -> Object:
    """A user's PersistentVolumeClaim; the example's workspace."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}},
    }


@contextlib.contextmanager
def stage(kube: Kube, namespace: str, manifest: Object) -> Iterator[Scene]:
    """Make a namespace ready to play in, and leave it without pods."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.patch("Namespace", namespace, {"metadata": {"labels": labels}})
    made = Scene(kube, namespace, manifest)
    yield made
    made.kubelet.shut_down()


@dataclass(frozen=True)
class Scene:
    """One namespace."""

    kube: Kube
    namespace: str
    manifest: Object
    """A FineTuneJob that is accepted."""

    @property
    def kubelet(self) -> Kubelet:
        return Kubelet(self.kube, self.namespace)

    def submit(self, name: str = "job", **changes: Any) -> Object:
        """Create the FineTuneJob. Changes are merged into its spec, a section at a time; None takes a field away."""
        made = copy.deepcopy(self.manifest)
        made["metadata"] = {"name": name, **changes.pop("metadata", {})}
        for field, value in changes.items():
            merged = {**made["spec"].get(field, {}), **value} if isinstance(value, dict) else value
            if isinstance(merged, dict):
                merged = {name: part for name, part in merged.items() if part is not None}
            made["spec"][field] = merged
        return self.kube.create(made, self.namespace)

    def job(self, name: str = "job") -> Object:
        return self.kube.get(FTJ, name, self.namespace)

    def status(self, name: str = "job") -> Object:
        status: Object = self.job(name).get("status", {})
        return status

    def columns(self, name: str = "job") -> dict[str, str]:
        """What `kubectl get -o wide` prints of a job, by column; cells without a value are left out."""
        prefix, plural, _ = KINDS[FTJ]
        printer = Kube(self.kube.kubeconfig, {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"})
        table = printer.call("GET", f"{prefix}/namespaces/{self.namespace}/{plural}")
        [cells] = [row["cells"] for row in table["rows"] if row["object"]["metadata"]["name"] == name]
        names = [column["name"] for column in table["columnDefinitions"]]
        return {column: str(cell) for column, cell in zip(names, cells, strict=True) if cell not in (None, "")}

    def reaches(self, phase: str, reason: str = "", *, name: str = "job", attempt: int = 0) -> Object:
        """Wait for a phase (and reason, and attempt); the status then."""
        seen: Object = {}

        def there() -> Object | None:
            nonlocal seen
            seen = self.status(name)
            fits = seen.get("phase") == phase and reason in ("", seen.get("reason"))
            return seen if fits and attempt in (0, seen.get("attempt")) else None

        try:
            return until(f"{name} is {phase} {reason}", there)
        except AssertionError as error:
            last = seen.get("attempts", [])[-1:]
            raise AssertionError(
                f"{error}; it is {seen.get('phase')} {seen.get('reason')}: {seen.get('message')} {last}"
            ) from None

    def tells(self, reason: str, *words: str, name: str = "job") -> Object:
        """Wait until the job and a condition of it tell a reason, with these words. Returns the status."""

        def there() -> Object | None:
            seen = self.status(name)
            texts = [(c["reason"], c["message"]) for c in seen.get("conditions", [])]
            return seen if seen.get("reason") == reason and (reason, seen["message"]) in texts else None

        seen: Object = until(f"{name} tells {reason}", there)
        assert all(word in seen["message"] for word in words), seen["message"]
        return seen

    def told(self) -> list[tuple[str, str]]:
        """Type and reason of each Event about a FineTuneJob."""
        events = self.kube.list("Event", self.namespace)
        return [(event["type"], event["reason"]) for event in events if event["involvedObject"]["kind"] == FTJ]

    def batches(self, name: str = "job", kind: str = "train") -> list[Object]:
        """Its Jobs of a kind, by attempt."""
        selector = f"finetune-operator.io/job={name},finetune-operator.io/kind={kind}"
        found = self.kube.list("Job", self.namespace, selector)
        return sorted(found, key=lambda job: int(job["metadata"]["labels"]["finetune-operator.io/attempt"]))

    def unfinished(self, name: str = "job") -> list[Object]:
        """Its Jobs of either kind that have not ended, by one listing: a Job may end between two."""

        def over(batch: Object) -> bool:
            conditions = batch.get("status", {}).get("conditions", [])
            return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)

        both = self.kube.list("Job", self.namespace, f"finetune-operator.io/job={name}")
        return [batch for batch in both if not over(batch)]

    def preparing(self, name: str = "job", attempt: int = 1) -> Object:
        """Let an attempt at preparing run; its pod. A namesake that was deleted may have left pods, too."""

        def there() -> list[Object]:
            job = f"-{self.job(name)['metadata']['uid'][:5]}-p{attempt}-"
            pods = self.kubelet.pods(name, attempt, "prepare")
            return [pod for pod in pods if job in pod["metadata"]["name"]]

        pod = until(f"{name} has a pod of attempt {attempt} at preparing", there)[0]
        self.kubelet.run(pod)
        self.reaches("Preparing", "Fetching", name=name)
        return pod

    def prepared(self, name: str = "job") -> None:
        """Let its data be prepared, unless it is."""
        if not self.status(name).get("attempt"):
            pod = self.preparing(name)
            self.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
            self.reaches("Starting", name=name)

    def pod(self, name: str = "job", attempt: int = 1) -> Object:
        """The pod of an attempt at training, which preparing comes before."""
        self.prepared(name)
        return self.kubelet.pod(name, attempt)

    def running(self, name: str = "job", attempt: int = 1) -> Object:
        """Let an attempt run; its pod."""
        pod = self.pod(name, attempt)
        self.kubelet.run(pod)
        self.reaches("Running", name=name, attempt=attempt)
        return pod

    def asked_to_end(self, pod: Object) -> None:
        """Wait until the Job controller (the Job has failed) or the garbage collector (it is deleted) deletes a pod."""
        name = pod["metadata"]["name"]
        until(
            f"{name} is asked to end",
            lambda: "deletionTimestamp" in self.kube.get("Pod", name, self.namespace)["metadata"],
            timeout=GARBAGE_SECONDS,
        )

    def report(self, pod: Object, status: Object, name: str = "job") -> None:
        """What the trainer in the pod writes to the job's status, with the pod's rights."""
        meta = self.job(name)["metadata"]
        body = {
            "apiVersion": self.manifest["apiVersion"],
            "kind": FTJ,
            "metadata": {key: meta[key] for key in ("name", "namespace", "uid")},
            "status": status,
        }
        trainer = self.kube.as_pod(pod["metadata"]["name"], self.namespace, pod["spec"]["serviceAccountName"])
        trainer.apply(body, manager="finetune-trainer", part="status")
