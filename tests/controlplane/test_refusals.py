"""What the API server refuses for good, for long, or because the namespace goes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.controlplane.lane import Lane
from tests.controlplane.scene import Scene
from tests.kube import ApiError, Kube, Object, until

WORKERS = 4


def test_an_error_that_also_keeps_the_status_from_being_written_is_told_afterwards(scene: Scene, own: Lane) -> None:
    own.proxy.refuse = lambda method, *_: 500 if method in ("POST", "PATCH") else 0
    own.operator.start()
    scene.submit()
    until("failures are counted", lambda: "APIServerError" in own.operator.get("metrics")[1])
    assert scene.status() == {"phase": "Pending", "observedGeneration": -1}, "by the CRD"
    own.proxy.refuse = lambda method, _namespace, resource: 500 if (method, resource) == ("POST", "jobs") else 0
    scene.tells("APIServerError", "refused with 500")


def test_an_object_that_the_api_server_finds_invalid_fails_the_job_at_once(scene: Scene, own: Lane) -> None:
    own.proxy.refuse = lambda method, _namespace, resource: 422 if (method, resource) == ("POST", "jobs") else 0
    own.operator.start()
    scene.submit()
    status = scene.reaches("Failed", "InvalidSpec")
    assert "refused with 422" in status["message"]
    assert own.proxy.requests[scene.namespace]["create jobs"] == 1
    [attempt] = status["prepareAttempts"]
    assert (attempt["state"], attempt["reason"]) == ("Ended", "InvalidSpec")


@pytest.fixture
def webhook(kube: Kube, scene: Scene) -> Iterator[str]:
    """A webhook for the Jobs of the namespace that fails closed, and whose server does not exist."""
    name = f"closed-{scene.namespace}"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    hook = {
        "name": "closed.example.com",
        "clientConfig": {"service": {"namespace": scene.namespace, "name": "nobody"}},
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Fail",
    }
    kube.create(
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [hook],
        }
    )
    probe: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": "probe-"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
    }
    until("the webhook is asked", lambda: _is_asked(kube, probe, scene.namespace))
    yield name
    if kube.find("ValidatingWebhookConfiguration", name):
        kube.delete("ValidatingWebhookConfiguration", name)


def _is_asked(kube: Kube, probe: Object, namespace: str) -> bool:
    try:
        kube.create(probe, namespace, dry_run=True)
    except ApiError as error:
        return "failed calling webhook" in error.message
    return False


def test_a_webhook_that_fails_closed_is_told_in_the_servers_words(
    kube: Kube, scene: Scene, own: Lane, webhook: str
) -> None:
    own.operator.start()
    scene.submit()
    scene.tells("PodsRejected", 'failed calling webhook "closed.example.com"', "admission policies")
    kube.delete("ValidatingWebhookConfiguration", webhook)
    scene.preparing()
    scene.reaches("Preparing", "Fetching")
    assert len(scene.batches(kind="prepare")) == 1, "the refused child job is created once"


def test_a_namespace_that_is_deleted_costs_nothing(kube: Kube, scene: Scene, own: Lane) -> None:
    """All work ends with the first refusal that says so, whatever the jobs of the namespace did."""
    own.operator.start(resync_seconds=1, workers=WORKERS)
    jobs = [f"job-{number}" for number in range(8)]
    for name in jobs:
        scene.submit(name)
    pods = [scene.kubelet.pod(name, kind="prepare") for name in jobs]
    for pod in pods[:4]:
        scene.kubelet.run(pod)
    own.proxy.requests.clear()
    kube.delete("Namespace", scene.namespace)
    until("its pods are to end", lambda: all(_deleting(kube, pod) for pod in pods))
    scene.kubelet.shut_down()
    own.proxy.wait_for_listings(2)
    tried = _changing(own, scene.namespace)
    assert tried["create jobs"] <= WORKERS, json.dumps(tried)
    assert "Nothing more is done for its jobs" in own.operator.said()
    before = _changing(own, scene.namespace)
    own.proxy.wait_for_listings(2)
    assert _changing(own, scene.namespace) == before


def _changing(own: Lane, namespace: str) -> Counter[str]:
    """The requests in the namespace that change something."""
    made = own.proxy.requests.get(namespace, Counter())
    return Counter({call: count for call, count in made.items() if call.split()[0] not in ("get", "list", "watch")})


def _deleting(kube: Kube, pod: Object) -> bool:
    found = kube.find("Pod", pod["metadata"]["name"], pod["metadata"]["namespace"])
    return found is None or "deletionTimestamp" in found["metadata"]
