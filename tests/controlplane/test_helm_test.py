"""The program of `helm test` that runs a FineTuneJob: with the rights that the chart gives it, and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import run_job
import yaml
from kubernetes import config

from tests.chart import RELEASE, only, render
from tests.controlplane import operator_process
from tests.kube import ApiError, Kube, until

NAME = "helm-test"


@pytest.fixture
def hooks(kube: Kube, helm: Path, namespace: str) -> list[dict[str, Any]]:
    """What `helm test` creates before its pods, in this test's namespace."""
    made = render(helm, f"tests.namespace={namespace}", tests=True)
    made = [m for m in made if m["metadata"]["name"] == f"{RELEASE}-test"]
    for manifest in made:
        kube.apply(manifest)
    return made


@pytest.fixture
def manifest(hooks: list[dict[str, Any]], tmp_path: Path) -> Path:
    """The job, as the pod sees it."""
    file = tmp_path / "job.yaml"
    file.write_text(only(hooks, "ConfigMap")["data"]["job.yaml"])
    return file


@pytest.fixture(autouse=True)
def as_the_pod(
    kube: Kube, hooks: list[dict[str, Any]], namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod's own account and environment. Nothing else of the program is changed."""
    del hooks
    file = operator_process.kubeconfig(kube, tmp_path / "config", namespace=namespace, name=f"{RELEASE}-test")
    monkeypatch.setattr(config, "load_incluster_config", lambda: config.load_kube_config(str(file)))
    monkeypatch.setenv("NAMESPACE", namespace)
    monkeypatch.setattr(run_job, "LOOK_SECONDS", 0.1)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the program prints."""
    lines: list[str] = []
    monkeypatch.setattr(run_job, "print", lambda line, **_: lines.append(line), raising=False)
    return lines


@contextmanager
def running(manifest: Path) -> Iterator[list[int]]:
    """The program, beside the test. The list has its exit code when the block ends."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_job.main(manifest)))
    thread.start()
    yield codes
    thread.join(timeout=60)


def report(kube: Kube, namespace: str, **status: Any) -> None:
    """Write the job's status, as the operator does."""
    until("the job is created", lambda: kube.find("FineTuneJob", NAME, namespace))
    kube.patch("FineTuneJob", NAME, {"status": status}, namespace, part="status")


def identity(kube: Kube, namespace: str) -> None:
    """What the operator makes for the first job of a namespace."""
    labels = {"app.kubernetes.io/managed-by": "finetune-operator"}
    head = {"metadata": {"name": "finetune-trainer", "namespace": namespace, "labels": labels}}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-trainer"}
    kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", **head})
    kube.apply(
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", **head, "roleRef": role, "subjects": []}
    )


def left(kube: Kube, namespace: str) -> list[str]:
    kinds = {"FineTuneJob": NAME, "ServiceAccount": "finetune-trainer", "RoleBinding": "finetune-trainer"}
    return [kind for kind, name in kinds.items() if kube.find(kind, name, namespace)]


def test_a_job_that_succeeds_passes_and_leaves_nothing(
    kube: Kube, namespace: str, manifest: Path, printed: list[str]
) -> None:
    identity(kube, namespace)
    with running(manifest) as codes:
        report(kube, namespace, phase="Running", reason="Training", message="It trains")
        until("the phase is shown", lambda: "Running: Training: It trains" in printed)
        report(kube, namespace, phase="Succeeded")
    assert codes == [0]
    assert left(kube, namespace) == []


def test_a_job_that_fails_fails_the_test_with_its_message(
    kube: Kube, namespace: str, manifest: Path, printed: list[str]
) -> None:
    with running(manifest) as codes:
        report(kube, namespace, phase="Failed", reason="NoSpace", message="The workspace is full")
    assert codes == [1]
    assert "Failed: NoSpace: The workspace is full" in printed
    assert left(kube, namespace) == []


def test_what_another_job_needs_stays(kube: Kube, namespace: str, manifest: Path) -> None:
    identity(kube, namespace)
    other = yaml.safe_load(manifest.read_text())
    kube.create({**other, "metadata": {"name": "other", "namespace": namespace}})
    with running(manifest) as codes:
        report(kube, namespace, phase="Succeeded")
    assert codes == [0]
    assert left(kube, namespace) == ["ServiceAccount", "RoleBinding"]


def test_a_job_that_is_refused_fails_the_test_with_the_words_of_the_api_server(
    manifest: Path, printed: list[str]
) -> None:
    job = yaml.safe_load(manifest.read_text())
    job["spec"]["training"]["maxSteps"] = 0
    manifest.write_text(yaml.safe_dump(job))
    assert run_job.main(manifest) == 1
    [line] = printed
    assert "refuses FineTuneJob" in line
    assert "spec.training.maxSteps: Invalid value" in line


def test_the_account_may_do_no_more(kube: Kube, namespace: str, hooks: list[dict[str, Any]]) -> None:
    """It can neither read the namespace's Secrets nor delete the objects of others."""
    account = kube.as_account(only(hooks, "ServiceAccount")["metadata"]["name"], namespace)
    calls: list[Callable[[], Any]] = [
        lambda: account.list("Secret", namespace),
        lambda: account.list("Pod", namespace),
        lambda: account.delete("ServiceAccount", "default", namespace),
        lambda: account.list("FineTuneJob", "default"),
    ]
    for call in calls:
        with pytest.raises(ApiError) as refused:
            call()
        assert refused.value.code == 403
