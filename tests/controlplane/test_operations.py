"""The commands of docs/operations.md, run by the real kubectl against the real API server, in the order of the page."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import chart, readme
from tests.cluster import Cluster
from tests.controlplane.scene import FTJ, Scene, result
from tests.kube import Object, until

PAGE = (readme.CHECKOUT / "docs" / "operations.md").read_text()
BLOCKS = re.findall(r"^(?:<!-- (\w+) -->\n)?```\w*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
"""Mark and commands of each block."""
CLAIM: Object = {"claimName": None, "claim": {"size": "1Gi"}}


def block(beginning: str) -> str:
    """The block that begins with a command."""
    found: str
    [found] = [text for mark, text in BLOCKS if mark == "api" and text.startswith(beginning)]
    return found


def run(plane: Cluster, commands: str, folder: Path) -> str:
    """In a shell that ends at the first error; the output."""
    script = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(script, env=plane.env, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def finished(scene: Scene) -> Scene:
    """A namespace with a job that has Succeeded, on a claim that the operator made."""
    scene.submit(workspace=CLAIM, metadata={"labels": {"team": "ml"}, "annotations": {"note": "kept"}})
    pod = scene.running()
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    return scene


def test_every_block_says_where_it_is_tested() -> None:
    marks = [mark for mark, _ in BLOCKS]
    assert set(marks) == {"api", "cluster"}
    assert marks.count("api") == 7, "a new block needs a test below"
    needs_pods = [line for mark, text in BLOCKS if mark == "cluster" for line in text.splitlines()]
    assert all(line.startswith("helm ") for line in needs_pods)


@pytest.mark.usefixtures("operator")
def test_the_operators_health(control_plane: Cluster, scene: Scene, tmp_path: Path) -> None:
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": chart.RELEASE}, "spec": {}}
    scene.kube.apply(lease, chart.NAMESPACE)
    try:
        told = run(control_plane, block("kubectl get lease"), tmp_path)
    finally:
        scene.kube.delete("Lease", chart.RELEASE, chart.NAMESPACE)
    assert "finetunejobs.finetune-operator.io/status" in told
    assert "secrets" not in told


@pytest.mark.usefixtures("operator")
def test_a_backup_is_restored_and_the_operator_continues(
    control_plane: Cluster, finished: Scene, tmp_path: Path
) -> None:
    scene = finished
    before = scene.job()
    run(control_plane, block("kubectl get ftj --all-namespaces -o json"), tmp_path)
    saved = json.loads((tmp_path / "finetunejobs.json").read_text())
    saved["items"] = [job for job in saved["items"] if job["metadata"]["namespace"] == scene.namespace]
    assert len(saved["items"]) == 1
    (tmp_path / "finetunejobs.json").write_text(json.dumps(saved))

    scene.kube.delete(FTJ, "job", scene.namespace)
    until("the job is gone", lambda: scene.kube.find(FTJ, "job", scene.namespace) is None)
    assert scene.kube.find("PersistentVolumeClaim", "job-workspace", scene.namespace), "the model is kept"
    run(control_plane, block("kubectl create"), tmp_path)
    restored = scene.job()
    assert restored["spec"] == before["spec"]
    assert restored["metadata"]["labels"] == {"team": "ml"}
    assert restored["metadata"]["annotations"]["note"] == "kept"
    pod = scene.preparing()
    scene.kubelet.finish(pod, 0, json.dumps({**result(0), "kind": "prepare"}))
    assert scene.reaches("Succeeded").get("attempt", 0) == 0, "it never asked for a GPU"


@pytest.mark.usefixtures("operator")
def test_claims_are_listed_with_size_and_age_and_deleted_by_name(
    control_plane: Cluster, finished: Scene, tmp_path: Path
) -> None:
    scene = finished
    scene.submit("lives", workspace=CLAIM)
    until("it has a claim", lambda: scene.kube.find("PersistentVolumeClaim", "lives-workspace", scene.namespace))
    with_age = block("kubectl get pvc --all-namespaces --selector finetune-operator.io/job --label")
    listed = run(control_plane, with_age, tmp_path)
    rows = [row for row in readme.table(listed.splitlines()) if row["NAMESPACE"] == scene.namespace]
    assert [(row["NAME"], row["JOB"]) for row in rows] == [("job-workspace", "job"), ("lives-workspace", "lives")]
    assert all({"CAPACITY", "AGE"} <= set(row) for row in rows)

    unused = block("kubectl get pvc --all-namespaces --selector finetune-operator.io/job -o")
    assert scene.namespace not in run(control_plane, unused, tmp_path)
    scene.kube.delete(FTJ, "job", scene.namespace)
    until("the job is gone", lambda: scene.kube.find(FTJ, "job", scene.namespace) is None)
    [line] = [line for line in run(control_plane, unused, tmp_path).splitlines() if line.startswith(scene.namespace)]
    namespace, claim, size, created = line.split()
    assert (claim, size) == ("job-workspace", "1Gi")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created)
    delete = block("kubectl delete pvc").replace("CLAIM", claim).replace("NAMESPACE", namespace)
    run(control_plane, delete.rstrip() + " --wait=false", tmp_path)
    gone: Any = scene.kube.find("PersistentVolumeClaim", claim, namespace)
    assert gone is None or "deletionTimestamp" in gone["metadata"]


@pytest.mark.usefixtures("operator")
def test_what_an_uninstall_leaves_is_removed(control_plane: Cluster, finished: Scene, tmp_path: Path) -> None:
    """But for the CRD, which other tests need: its deletion is a dry run."""
    scene = finished
    commands = block("kubectl delete ftj").replace("delete crd", "delete --dry-run=server crd")
    assert "customresourcedefinition" in run(control_plane, commands, tmp_path)
    assert scene.kube.find(FTJ, "job", scene.namespace) is None
    for kind in ("ServiceAccount", "RoleBinding"):
        left = scene.kube.list(kind, scene.namespace, "app.kubernetes.io/managed-by=finetune-operator")
        assert left == []
    assert scene.kube.find("PersistentVolumeClaim", "job-workspace", scene.namespace)
