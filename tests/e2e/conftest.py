"""What every test of this tier gets: the whole local Kubernetes, the built images and the installed chart.

The tier starts this cluster and removes it at its end. FINETUNE_E2E=name keeps the cluster of that name
between runs. Jobs train a model of two layers, so what takes time is starting pods.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from examples.demo import cluster as demo
from examples.demo import volume
from examples.demo.kubectl import Kubectl
from tests import cluster, images
from tests.cluster import Cluster
from tests.e2e.failure import cluster_state
from tests.kube import Kube, until
from tests.trainer.support import tiny

HERE = Path(__file__).resolve().parent
NAMESPACE = "e2e"
CLAIMS = {"models": "1Gi", "workspace": "1Gi"}
ROWS = 48
BROKEN_ROW = 7
POD_MINUTES = 8 * 60.0
"""Patience until a pod has started and done something short: on a busy machine its imports alone take a minute."""
COME_AND_GO = (
    "certificatesigningrequests",
    "componentstatuses",
    "events",
    "ipaddresses",
    "namespaces",
    "nodes",
    "persistentvolumes",
)
"""Kinds of objects that tests and the cluster itself make."""
TRAINING: dict[str, Any] = {
    "maxSteps": 100_000,
    "globalBatchSize": 8,
    "microBatchSize": 8,
    "cutoffLength": 64,
    "learningRate": 0.001,
    "recompute": "none",
    "logEverySteps": 1,
}
RESOURCES = {"cpu": "100m", "memory": "3Gi", "sharedMemory": "64Mi"}
LONG: dict[str, Any] = {
    "training": TRAINING,
    "checkpoints": {"everySteps": 20, "everyMinutes": 15, "keep": 2},
    # Without a limit they take what CPU there is from everything else, for steps that nobody needs.
    "resources": {**RESOURCES, "cpuLimit": "700m"},
}
CRASH = """
import os, pathlib, signal
for line in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    pid = int(line.parent.name)
    if pid != os.getpid() and b"finetune_trainer.launcher.worker" in line.read_bytes():
        os.kill(pid, signal.SIGSEGV)
"""
"""A program for a pod that trains: its ranks crash."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A limit that patience does not reach, for tests without their own."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(6 * POD_MINUTES))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure says how the cluster was."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("whole_cluster")
    if report.failed and cluster is not None:
        report.sections.append(("the cluster then", cluster_state(cluster.env, NAMESPACE)))
    return report


@pytest.fixture(scope="package")
def shown(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[None]]:
    """Minutes of set-up should not look like a hang: what is printed inside is seen at once."""
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")

    @contextmanager
    def uncaptured() -> Iterator[None]:
        # The standard output of a worker of pytest-xdist leads nowhere.
        with capture.global_and_fixture_disabled(), redirect_stdout(sys.stderr):
            yield

    return uncaptured


@pytest.fixture(scope="package")
def whole_cluster(shown: Callable[[], AbstractContextManager[None]]) -> Iterator[Cluster]:
    """One node. A test must never meet a cluster that it did not make."""
    kept = os.environ.get("FINETUNE_E2E")
    with shown():
        print("\nThe local Kubernetes", flush=True)
        made = cluster.up(kept or "e2e")
    try:
        yield made
    finally:
        if not kept:
            made.down()


@pytest.fixture(scope="package")
def trainer_image(whole_cluster: Cluster, shown: Callable[[], AbstractContextManager[None]]) -> str:
    """The trainer's image, on the cluster's registry."""
    with shown():
        return images.build_and_push("trainer", whole_cluster.state.name)


@pytest.fixture(scope="package")
def before_installation(whole_cluster: Cluster) -> set[str]:
    """What the cluster had before the chart was installed."""
    return installed(Kubectl(whole_cluster.env, demo.OPERATOR_NAMESPACE))


def installed(kubectl: Kubectl) -> set[str]:
    """All objects of the cluster and of the operator's namespace, but for what comes and goes by itself."""
    names: set[str] = set()
    for scope in ("--namespaced=false", "--namespaced=true"):
        kinds = kubectl("api-resources", "--verbs=list", "--output=name", scope).split()
        kept = [
            kind
            for kind in kinds
            if not kind.startswith(("events", "componentstatuses", "nodes", "csinodes", "persistentvol"))
        ]
        names |= set(kubectl("get", ",".join(kept), "--output=name", "--ignore-not-found").split())
    return names


@pytest.fixture(scope="package")
def operator(
    whole_cluster: Cluster,
    before_installation: set[str],
    trainer_image: str,
    shown: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The packed chart, installed; its namespace."""
    del before_installation  # it is looked at first
    with shown():
        image = images.build_and_push("operator", whole_cluster.state.name)
        demo.install(whole_cluster.env, None, tmp_path_factory.mktemp("chart"), image, trainer_image)
    return demo.OPERATOR_NAMESPACE


@dataclass(frozen=True)
class Scene:
    """A namespace with a tiny model, its data and a workspace, all on volumes."""

    kube: Kube
    kubectl: Kubectl
    namespace: str

    def job(self, name: str, **changes: Any) -> dict[str, Any]:
        """A FineTuneJob of a few seconds; changes replace sections of its spec."""
        spec: dict[str, Any] = {
            "stage": "sft",
            "model": {"source": "pvc://models/tiny"},
            "datasets": [{"source": "pvc://models/data/rows.jsonl", "format": "openai"}],
            "tuning": {"method": "lora", "lora": {"rank": 4}},
            "training": {
                "maxSteps": 20,
                "globalBatchSize": 8,
                "microBatchSize": 8,
                "cutoffLength": 64,
                "learningRate": 0.01,
                "recompute": "none",
                "logEverySteps": 1,
            },
            "workspace": {"claimName": "workspace"},
            "prepare": {"cpu": "100m", "memory": "2Gi"},
            "resources": RESOURCES,
        }
        head = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
        # Tests change what they get.
        own = copy.deepcopy({**spec, **changes})
        return {**head, "metadata": {"name": name, "namespace": self.namespace}, "spec": own}

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.kube.get("FineTuneJob", name, self.namespace).get("status", {})
        return status

    def reaches(self, name: str, *phases: str, timeout: float = POD_MINUTES) -> dict[str, Any]:
        """Wait for one of the phases; the status then."""

        def there() -> dict[str, Any] | None:
            status = self.status(name)
            return status if status.get("phase") in phases else None

        try:
            return until(f"{name} is {' or '.join(phases)}", there, timeout, every=0.5)
        except AssertionError as error:
            status = self.status(name)
            raise AssertionError(f"{error}; it is {json.dumps(status)[:3000]}") from None

    def trains(self, name: str, steps: int = 1) -> dict[str, Any]:
        """Wait until so many steps of training are reported; the status then. Preparing counts other steps."""

        def enough() -> dict[str, Any] | None:
            status = self.status(name)
            progress = status.get("progress", {})
            return status if progress.get("kind") == "train" and progress.get("step", 0) >= steps else None

        return until(f"{name} reports step {steps}", enough, POD_MINUTES, every=0.5)

    def pods(self, name: str, kind: str = "train") -> list[dict[str, Any]]:
        labels = f"finetune-operator.io/job={name},finetune-operator.io/kind={kind}"
        return self.kube.list("Pod", self.namespace, labels)


@pytest.fixture(scope="package")
def scene(whole_cluster: Cluster, trainer_image: str, operator: str, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Filled through a short-lived pod, as a user would."""
    del operator  # the CRD comes with it
    kube = Kube(whole_cluster.kubeconfig)
    kubectl = Kubectl(whole_cluster.env, NAMESPACE)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    for name, size in CLAIMS.items():
        kubectl.apply(claim(name, size))
    folder = tmp_path_factory.mktemp("volume")
    tiny.save_model(folder / "tiny")
    data = folder / "data"
    tiny.save_rows(data / "rows.jsonl", ROWS)
    shutil.copytree(volume.DATA, data, dirs_exist_ok=True)
    break_a_row(data / "rows.jsonl", data / "broken.jsonl")
    manifest = demo.files_pod(trainer_image)
    manifest["metadata"]["namespace"] = NAMESPACE
    with kubectl.pod(manifest) as pod:
        pod("sh", "-c", "rm -rf /workspace/jobs")
        pod.upload(folder / "tiny", "/volumes/models/tiny")
        # Under the name of the real model in the examples, so that they run unchanged.
        pod.upload(folder / "tiny", f"/volumes/models/{volume.MODEL}")
        pod.upload(data, "/volumes/models/data")
    return Scene(kube, kubectl, NAMESPACE)


def curve(scene: Scene, trainer_image: str, name: str) -> list[dict[str, Any]]:
    """The lines of the job's log in the workspace, one for each step."""
    manifest = demo.files_pod(trainer_image)
    manifest["metadata"]["namespace"] = scene.namespace
    with scene.kubectl.pod(manifest) as pod:
        log = pod("cat", f"/workspace/jobs/{name}/reports/trainer_log.jsonl")
    return [json.loads(line) for line in log.splitlines()]


def claim(name: str, size: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}},
    }


def break_a_row(good: Path, broken: Path) -> None:
    lines = good.read_text().splitlines()
    lines[BROKEN_ROW - 1] = '{"messages": [{"role": "user", "content": "no answer follows"}]}'
    broken.write_text("\n".join(lines) + "\n")
