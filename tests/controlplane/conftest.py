"""What every test of this tier gets: a real API server and controller manager, and the chart's objects on it.

No kubelet, so no pod runs: a test plays the kubelet by writing pod status. One control plane serves the whole tier and
is taken down at its end: even an idle one needs a tenth of a core. FINETUNE_CONTROLPLANE=name keeps one of that name
between runs, which saves seconds while one works. Every test has a namespace of its own.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import chart, cluster
from tests.cluster import Cluster
from tests.controlplane import kubelet, operator_process
from tests.controlplane.lane import Lane, allow_leases, lane
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import Scene, stage
from tests.kube import ApiError, Kube, until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sft-lora.yaml"
LIVES_SECONDS = 1800
"""Limit of a test that lives through many lives. The limit of other tests is in pyproject.toml."""
_numbers = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a busy machine the fault tests need more time than others. A sweep has its own limit on the command line."""
    for item in items:
        if item.path.name == "test_faults.py" and not config.getoption("--sweep"):
            item.add_marker(pytest.mark.timeout(LIVES_SECONDS))


@pytest.fixture(scope="package")
def control_plane() -> Iterator[Cluster]:
    """A control plane of our own making; tests must never meet another."""
    kept = os.environ.get("FINETUNE_CONTROLPLANE")
    plane = cluster.up(kept or f"cp-{os.getpid()}", control_plane_only=True)
    try:
        yield plane
    finally:
        if not kept:
            plane.down()


@pytest.fixture(scope="package")
def helm(control_plane: Cluster) -> Path:
    """The program."""
    return control_plane.bin / "helm"


@pytest.fixture(scope="package")
def kube(control_plane: Cluster, helm: Path) -> Kube:
    """An administrator's client, once CRD, roles and policy of the chart are there and work."""
    admin = Kube(control_plane.kubeconfig)
    admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": chart.NAMESPACE}})
    for manifest in chart.render(helm):
        if manifest["kind"] != "Deployment":
            admin.apply(manifest)
    allow_leases(admin)
    until("FineTuneJobs are served", lambda: _established(admin))
    until("the status policy works", lambda: _policy_works(admin))
    return admin


@pytest.fixture
def namespace(kube: Kube) -> Iterator[str]:
    """A fresh namespace."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kube.delete("Namespace", name)


@pytest.fixture(scope="package")
def example() -> Path:
    """The example of the README."""
    return EXAMPLE


@pytest.fixture
def manifest(example: Path) -> dict[str, Any]:
    """A FineTuneJob to change and apply: the example of the README."""
    loaded: dict[str, Any] = yaml.safe_load(example.read_text())
    return loaded


@pytest.fixture(scope="package")
def deployed(kube: Kube, helm: Path) -> dict[str, str]:
    """The environment that the chart gives the operator."""
    kubelet.register_node(kube)
    return operator_process.deployed_environment(chart.render(helm))


@pytest.fixture(scope="module")
def shared_operator(
    kube: Kube, deployed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One operator for all tests of a module that don't mind it; it sees every namespace."""
    home = tmp_path_factory.mktemp("operator")
    config = operator_process.kubeconfig(kube, home / "kubeconfig")
    process = OperatorProcess(config, deployed, home / "log")
    process.start()
    yield process
    assert process.stop() == 0


@pytest.fixture
def operator(shared_operator: OperatorProcess) -> OperatorProcess:
    """The module's operator; the end of its log is shown when the test fails."""
    return shared_operator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the operator logged belongs to a failure, also to one of a fixture."""
    report = yield
    given = getattr(item, "funcargs", {})
    process = given["own"].operator if "own" in given else given.get("operator")
    if report.failed and process is not None and process.log.exists():
        report.sections.append(("Log of the operator", process.said()[-6000:]))
    return report


@pytest.fixture
def own(kube: Kube, deployed: dict[str, str], namespace: str, tmp_path: Path) -> Iterator[Lane]:
    """An operator for this test's namespace alone, behind a fault proxy; the test starts it."""
    with lane(kube, deployed, tmp_path, namespace) as made:
        yield made


@pytest.fixture
def scene(kube: Kube, namespace: str, manifest: dict[str, Any]) -> Iterator[Scene]:
    """A namespace to play in, which enforces the restricted Pod Security level."""
    with stage(kube, namespace, manifest) as made:
        yield made


def _established(admin: Kube) -> bool:
    found = admin.get("CustomResourceDefinition", "finetunejobs.finetune-operator.io")
    states = {c["type"]: c["status"] for c in found.get("status", {}).get("conditions", [])}
    return states.get("Established") == "True"


def _policy_works(admin: Kube) -> bool:
    """A policy takes effect some time after it is stored: ask as a stranger who has the right to patch this status."""
    head = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
    probe = {**head, "metadata": {"name": "policy-probe", "namespace": "default"}}
    stranger = "somebody"
    admin.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "policy-probe", "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-trainer"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": stranger}],
        }
    )
    spec = yaml.safe_load(EXAMPLE.read_text())["spec"]
    admin.apply({**probe, "spec": spec})
    try:
        admin.as_user(stranger).apply({**probe, "status": {"message": "mine"}}, part="status", dry_run=True)
    except ApiError as error:
        if "ValidatingAdmissionPolicy" not in error.message:
            return False
        admin.delete("FineTuneJob", "policy-probe", "default")
        admin.delete("RoleBinding", "policy-probe", "default")
        return True
    return False
