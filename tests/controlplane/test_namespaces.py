"""Installations for some namespaces of the cluster: what they may do, and what stops two that want the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import chart
from tests.chart import HelmError, render
from tests.controlplane import installation
from tests.controlplane.lane import lane
from tests.controlplane.scene import Scene, claim, result, stage
from tests.controlplane.sweep import live
from tests.kube import KINDS, Kube, Object, until

OFTEN = 2
"""Seconds between two looks at everything."""
POLICIES = ("ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy")
ADMIN_KINDS = {"CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}

UNTOUCHED = {"phase": "Pending", "observedGeneration": -1}
"""The status that the API server gives a new job."""

Open = Callable[[], Scene]


@pytest.fixture
def open_scene(kube: Kube, manifest: Object) -> Iterator[Open]:
    """Makes a namespace to play in."""
    with contextlib.ExitStack() as stack:

        def made() -> Scene:
            name = installation.namespace(kube)
            stack.callback(kube.delete, "Namespace", name)
            kube.create(claim(), name)
            return stack.enter_context(stage(kube, name, manifest))

        yield made


@pytest.fixture
def system(kube: Kube) -> Iterator[str]:
    """The namespace of a release."""
    name = installation.namespace(kube)
    yield name
    kube.delete("Namespace", name)
    for kind in POLICIES:
        for policy in ("status", "presets"):
            kube.delete(kind, f"{name}-{chart.RELEASE}-{policy}")


def succeed(scene: Scene) -> None:
    """Let the job train to its end. It was submitted."""
    pod = scene.running()
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded")
    assert (status["attempt"], status["prepareAttempt"]) == (1, 1)
    assert len(scene.batches()) == len(scene.batches(kind="prepare")) == 1


def test_nothing_of_the_cluster_is_rendered_but_what_its_admin_switches(helm: Path) -> None:
    def of_the_cluster(*settings: str) -> set[str]:
        kinds = {m["kind"] for m in render(helm, "watchNamespaces={a,b}", "networkPolicy.enabled=true", *settings)}
        return {kind for kind in kinds if not KINDS[kind][2]}

    assert of_the_cluster() == ADMIN_KINDS
    assert of_the_cluster("policy.enabled=false", "crds.enabled=false") == set()


def test_the_policies_of_an_installation_are_about_its_namespaces(helm: Path) -> None:
    def policies(system: str) -> list[Object]:
        settings = ("watchNamespaces={a,b}", "policy.allowed.images={registry.example/}")
        return [made for made in render(helm, *settings, namespace=system) if made["kind"] in POLICIES]

    bindings = [made for made in policies("one") if made["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert len(bindings) == 3
    for binding in bindings:
        [chosen] = binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
        assert chosen == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    names = [{made["metadata"]["name"] for made in policies(system)} for system in ("one", "two")]
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("trainer.readNodeLabels=true", "trainer.readNodeLabels needs a right over the nodes of the cluster"),
        ("watchNamespaces={a,a}", "items at 0 and 1 are equal"),
        ("watchNamespaces={a,team-*}", "watchNamespaces"),
    ],
)
def test_what_some_namespaces_cannot_have_is_refused(helm: Path, setting: str, complaint: str) -> None:
    with pytest.raises(HelmError, match=complaint):
        render(helm, "watchNamespaces={a,b}", setting)


def test_whole_lives_in_two_namespaces_and_nothing_of_a_third(
    kube: Kube, helm: Path, deployed: Any, system: str, open_scene: Open, tmp_path: Path
) -> None:
    """Each request that needs a right that it does not have would be a 403."""
    one, two, third = open_scene(), open_scene(), open_scene()
    third.submit()
    manifests = installation.objects(helm, system, one.namespace, two.namespace)
    installation.install(kube, manifests)
    with installation.operator(kube, manifests, tmp_path / "own") as own:
        own.operator.start(resync_seconds=OFTEN)
        live(one, "two nodes")
        two.submit()
        pod = two.running()
        kube.delete("RoleBinding", "finetune-trainer:finetune-trainer", two.namespace)
        until("access is back", lambda: _bound(two))
        two.report(pod, {"progress": _progress()})
        succeed(two)
        looks = own.proxy.requests[two.namespace]
        listed = looks["list finetunejobs"]
        until("it has looked at everything again", lambda: looks["list finetunejobs"] >= listed + 2)
        assert own.operator.get("readyz") == (200, "ok\n")
        assert own.operator.health() == (200, "ok\n")
        assert set(own.proxy.requests) == {one.namespace, two.namespace, system}
        assert "403" not in own.operator.said()
    assert third.status() == UNTOUCHED
    assert kube.find("ServiceAccount", "finetune-trainer", third.namespace) is None


def test_a_namespace_that_is_missing_or_made_again_stops_no_other(
    kube: Kube, helm: Path, deployed: Any, system: str, open_scene: Open, manifest: Object, tmp_path: Path
) -> None:
    one, missing = open_scene(), f"{system}-missing"
    manifests = installation.objects(helm, system, one.namespace, missing)
    installation.install(kube, manifests, system, one.namespace)
    with installation.operator(kube, manifests, tmp_path / "own") as own, contextlib.ExitStack() as stack:
        own.operator.start(resync_seconds=OFTEN)
        words = f"Namespace {missing} is not served, because it cannot be listed: 403"
        until("the log tells it", lambda: words in own.operator.said())
        one.submit()
        one.running()
        assert own.operator.get("readyz") == (200, "ok\n")
        stack.callback(kube.delete, "Namespace", missing)
        for _ in range(2):
            installation.namespace(kube, missing)
            kube.create(claim(), missing)
            with stage(kube, missing, manifest) as scene:
                installation.install(kube, manifests, missing)
                scene.submit()
                # No kubelet ends a pod that runs, and so the namespace would never be gone.
                succeed(scene)
            kube.delete("Namespace", missing)
            until("it is gone", lambda: kube.find("Namespace", missing) is None, timeout=120)
        succeed(one)
        assert "Request attempt" not in own.operator.said(), "kopf is silent about what the operator tells once"
        assert own.operator.alive
        assert own.operator.starts == 1


def test_an_installation_for_the_cluster_leaves_a_namespace_to_another_and_takes_it_back(
    kube: Kube, helm: Path, deployed: dict[str, str], system: str, open_scene: Open, tmp_path: Path
) -> None:
    """It takes over a job that trains: nothing is made twice."""
    theirs, others = open_scene(), open_scene()
    manifests = installation.objects(helm, system, theirs.namespace)
    installation.install(kube, manifests)
    for scene in (theirs, others):
        scene.submit()
    with (
        lane(kube, deployed, tmp_path / "cluster", resync_seconds=OFTEN) as cluster,
        installation.operator(kube, manifests, tmp_path / "own") as own,
    ):
        cluster.operator.start()
        others.running()
        assert theirs.status() == UNTOUCHED
        words = f"Namespace {theirs.namespace} is left to installation {system}/{chart.RELEASE}"
        until("the log tells why", lambda: words in cluster.operator.said())
        assert cluster.operator.get("readyz") == (200, "ok\n")
        own.operator.start(resync_seconds=OFTEN)
        pod = theirs.running()
        assert [call for call in cluster.proxy.calls if call.namespace == theirs.namespace] == []
        assert others.namespace not in own.proxy.requests

        own.operator.stop()
        installation.uninstall(kube, manifests)
        until("the job is taken over", lambda: kube.find("RoleBinding", "finetune-trainer", theirs.namespace))
        theirs.report(pod, {"progress": _progress()})
        succeed(theirs)


def test_a_second_installation_for_the_cluster_serves_nothing_and_is_not_ready(
    kube: Kube, deployed: dict[str, str], open_scene: Open, tmp_path: Path
) -> None:
    scene = open_scene()
    scene.submit()
    with lane(kube, deployed, tmp_path / "second", resync_seconds=OFTEN, installation="team/second") as second:
        second.operator.start()
        until("it leads", second.operator.leads)
        second.proxy.wait_for_listings(2)
        code, words = second.operator.get("readyz")
        assert code == 503
        assert f"Installation {chart.NAMESPACE}/{chart.RELEASE} serves the cluster" in words
        assert second.operator.health() == (200, "ok\n"), "a restart would not help"
        assert second.proxy.calls == []
    assert scene.status() == UNTOUCHED


def test_of_two_installations_for_a_namespace_the_role_names_one(
    kube: Kube, helm: Path, deployed: Any, system: str, open_scene: Open, tmp_path: Path
) -> None:
    """As `kubectl apply` and GitOps tools install them: the last takes the role over. Helm refuses it."""
    scene, other = open_scene(), installation.namespace(kube)
    first, second = (installation.objects(helm, name, scene.namespace) for name in (system, other))
    try:
        installation.install(kube, first)
        installation.install(kube, second, other)
        scene.submit()
        with (
            installation.operator(kube, first, tmp_path / "first") as one,
            installation.operator(kube, second, tmp_path / "second") as two,
        ):
            one.operator.start(resync_seconds=OFTEN)
            scene.running()
            # The same name of the release: its binding loses the first operator, too. So it keeps a binding of its own.
            [bound] = [m for m in first if m["kind"] == "RoleBinding" and m["metadata"]["namespace"] == scene.namespace]
            kube.apply({**bound, "metadata": {"name": "kept", "namespace": scene.namespace}})
            installation.install(kube, second)
            words = f"left to installation {other}/{chart.RELEASE}"
            until("the first gives way", lambda: words in one.operator.said())
            made = len(one.proxy.calls)
            two.operator.start(resync_seconds=OFTEN)
            succeed(scene)
            until("it tells that it is not ready", lambda: words in one.operator.get("readyz")[1])
            assert len(one.proxy.calls) == made
    finally:
        installation.uninstall(kube, second)
        kube.delete("Namespace", other)


def test_helm_refuses_two_installations_that_want_the_same_and_says_why(
    kube: Kube, helm: Path, system: str, open_scene: Open
) -> None:
    def helms(command: str, release: str, namespace: str, *settings: str) -> str:
        sets = [part for setting in settings for part in ("--set", setting)]
        source = [str(chart.CHART)] if command == "install" else []
        where = ["--namespace", namespace, "--kubeconfig", str(kube.kubeconfig)]
        return chart.helm(helm, command, release, *source, *where, *sets)

    one, two = open_scene().namespace, open_scene().namespace
    shared = ("crds.enabled=false", "policy.enabled=false")
    helms("install", "first", system, f"watchNamespaces={{{one}}}", *shared)
    try:
        with pytest.raises(HelmError, match=f"Installation {system}/first-{chart.RELEASE} serves namespace {one}"):
            helms("install", "second", system, f"watchNamespaces={{{two},{one}}}", *shared)
        with pytest.raises(HelmError, match=f"{chart.NAMESPACE}/{chart.RELEASE} serves the whole cluster"):
            helms("install", "second", system, *shared)
        with pytest.raises(HelmError, match=r"belongs to no release of Helm\. Set crds.enabled to false"):
            helms("install", "second", system, f"watchNamespaces={{{two}}}")
        told = helms("install", "second", system, f"watchNamespaces={{{two}}}", *shared)
        assert f"kubectl get ftj --namespace {two}" in told
        helms("uninstall", "second", system)
    finally:
        helms("uninstall", "first", system)


def _bound(scene: Scene) -> bool:
    """Whether the training pods have the Role."""
    found = scene.kube.find("RoleBinding", "finetune-trainer:finetune-trainer", scene.namespace)
    return found is not None and bool(found["roleRef"]["kind"] == "Role")


def _progress() -> Object:
    return {
        "attempt": 1,
        "kind": "train",
        "step": 40,
        "totalSteps": 80,
        "percent": 50,
        "summary": "40/80 (50%)",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }
