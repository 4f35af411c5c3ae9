"""A policy of the cluster puts a container before the trainer's, as a service mesh may: it never ends by itself."""

from __future__ import annotations

from tests.cluster.images import BUSYBOX
from tests.e2e.conftest import POD_MINUTES, Scene
from tests.injection import container, injected
from tests.kube import until

PROXY = container("proxy", BUSYBOX, command=["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1; done"])


def test_a_container_that_never_ends_keeps_neither_result_nor_pod(scene: Scene) -> None:
    with injected(scene.kube, scene.namespace, "meshed", first=PROXY):
        scene.kubectl.apply(scene.job("meshed"))
        scene.trains("meshed")
        [pod] = scene.pods("meshed")
        assert [made["name"] for made in pod["spec"]["containers"]] == ["proxy", "trainer"]
        status = scene.reaches("meshed", "Succeeded", "Failed", timeout=2 * POD_MINUTES)
    assert status["phase"] == "Succeeded", status["message"]
    assert status["artifact"]["digest"].startswith("sha256:")
    assert "did not end within 30 s: proxy" in status["attempts"][0]["message"]
    assert status["attempt"] == status["prepareAttempt"] == 1
    until("its pods are gone", lambda: not scene.pods("meshed") and not scene.pods("meshed", "prepare"), POD_MINUTES)
