"""A job of a name that an earlier job had: what that job left is used if it fits, and never changed."""

from __future__ import annotations

import json

import pytest

from tests.controlplane.scene import FTJ, GARBAGE_SECONDS, Scene, result
from tests.kube import Object, until

pytestmark = pytest.mark.usefixtures("operator")

POLL = 30.0
CLAIM = "job-workspace"


def own(size: str, **fields: str) -> Object:
    return {"claimName": None, "claim": {"size": size, **fields}}


def leave_a_claim(scene: Scene) -> str:
    """A job ends and is deleted; the uid of its claim, which stays."""
    scene.submit(workspace=own("10Gi"))
    pod = scene.preparing()
    scene.kubelet.finish(pod, 65, json.dumps(result(65, kind="prepare")))
    scene.reaches("Failed", "InvalidData")
    scene.kube.delete(FTJ, "job", scene.namespace)
    until("its pods go", lambda: not scene.kubelet.pods("job", 1, "prepare"), timeout=GARBAGE_SECONDS)
    uid: str = scene.kube.get("PersistentVolumeClaim", CLAIM, scene.namespace)["metadata"]["uid"]
    return uid


def test_a_claim_that_does_not_fit_is_told_and_left_alone_until_it_is_gone(scene: Scene) -> None:
    uid = leave_a_claim(scene)
    scene.submit(workspace=own("500Gi", accessMode="ReadWriteMany"))
    status = scene.tells("WorkspaceMismatch", "Its size is 10Gi; the job asks for 500Gi.", f"claimName {CLAIM}")
    assert "Its access mode is ReadWriteOnce; the job asks for ReadWriteMany." in status["message"]
    assert (status["phase"], status.get("prepareAttempt")) == ("Pending", None)
    assert not scene.batches(kind="prepare")
    assert scene.kube.get("PersistentVolumeClaim", CLAIM, scene.namespace)["metadata"]["uid"] == uid
    scene.kube.delete("PersistentVolumeClaim", CLAIM, scene.namespace)
    until("it continues", lambda: scene.status().get("prepareAttempt") == 1, timeout=2 * POLL)
    scene.preparing()
    spec = scene.kube.get("PersistentVolumeClaim", CLAIM, scene.namespace)["spec"]
    assert (spec["accessModes"], spec["resources"]["requests"]["storage"]) == (["ReadWriteMany"], "500Gi")


def test_a_claim_that_fits_is_used_again(scene: Scene) -> None:
    uid = leave_a_claim(scene)
    scene.submit(workspace=own("5Gi"))
    scene.preparing()
    claim = scene.kube.get("PersistentVolumeClaim", CLAIM, scene.namespace)
    assert (claim["metadata"]["uid"], claim["spec"]["resources"]["requests"]["storage"]) == (uid, "10Gi")
