"""`helm test` on the installed chart: it trains a model, and leaves nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from examples.demo.cluster import RELEASE
from examples.demo.kubectl import Kubectl
from tests.e2e.conftest import Scene
from tests.kube import until

KINDS = "finetunejobs,pods,jobs,services,persistentvolumeclaims,configmaps,serviceaccounts,roles,rolebindings"
GARBAGE_SECONDS = 60.0


@pytest.fixture
def own(scene: Scene, operator: str) -> Kubectl:
    """kubectl in the namespace of the operator."""
    return Kubectl(scene.kubectl.env, operator)


@pytest.fixture
def restricted(own: Kubectl, operator: str) -> Iterator[None]:
    """Pod security restricted is enforced in the namespace of the operator, too."""
    label = "pod-security.kubernetes.io/enforce"
    own("label", "namespace", operator, f"{label}=restricted", "--overwrite")
    yield
    own("label", "namespace", operator, f"{label}-")


def test_helm_test_trains_a_model_and_leaves_nothing(own: Kubectl, operator: str, restricted: None) -> None:
    before = own("get", KINDS, "--output=name")
    program = str(shutil.which("helm", path=own.env["PATH"]))
    command = [program, "test", RELEASE, "--namespace", operator, "--timeout=8m"]
    # Helm writes the logs of the pods to its standard error.
    done = subprocess.run(command, env=own.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert len(re.findall(r"Phase: +Succeeded", done.stdout)) == 7, done.stdout
    assert "Succeeded: Completed" in done.stdout, done.stdout
    until("nothing is left", lambda: own("get", KINDS, "--output=name") == before, GARBAGE_SECONDS, every=1)
