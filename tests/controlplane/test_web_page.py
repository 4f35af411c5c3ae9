"""The web page on a real API server, as a user who may use one namespace: the form, its messages, and what changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from finetune_cli.cluster.kubeconfig import load
from finetune_ui import form
from finetune_ui.app import create
from finetune_ui.settings import Settings
from starlette.testclient import TestClient

from tests import chart
from tests.controlplane.scene import FTJ, Scene
from tests.kube import Kube
from tests.unit.ui.conftest import csrf, log_in
from tests.unit.ui.form.browser import page as parsed

USER = "scientist"
STAGES = ("pt", "sft", "rm", "dpo", "ppo", "kto")


@pytest.fixture
def client(kube: Kube, namespace: str) -> Iterator[TestClient]:
    """A browser of a user who has logged in with a token."""
    account = {"kind": "ServiceAccount", "name": USER, "namespace": namespace}
    kube.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": USER, "namespace": namespace}})
    for role in ("edit", f"{chart.RELEASE}-viewer", f"{chart.RELEASE}-editor"):
        kube.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [account],
            }
        )
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    token = kube.call("POST", f"api/v1/namespaces/{namespace}/serviceaccounts/{USER}/token", asked)["status"]["token"]
    page = create(Settings(replace(load(kubeconfig=str(kube.kubeconfig)), user={})))
    browser = TestClient(page, base_url="https://page.example", follow_redirects=False)
    assert log_in(browser, token).status_code == 303
    yield browser
    page.state.ui.close()


def press(client: TestClient, scene: Scene, button: str, job: dict[str, Any]) -> Any:
    """Post the form with a job, as a browser does."""
    address = f"/ns/{scene.namespace}/train"
    posted = parsed(form.render(form.values(job), csrf=csrf(client, address), namespace=scene.namespace)).posted
    return client.post(address, data=dict([*posted, ("do", button)]))


def job(stage: str, name: str = "made") -> dict[str, Any]:
    made = form.new(stage)
    return {**made, "metadata": {"name": name}}


@pytest.mark.parametrize("stage", STAGES)
def test_the_server_accepts_the_smallest_job_of_each_stage(client: TestClient, scene: Scene, stage: str) -> None:
    answer = press(client, scene, "check", job(stage))
    assert "It is not created yet" in answer.text, answer.text
    assert scene.kube.find(FTJ, "made", scene.namespace) is None


def test_what_the_server_refuses_is_told_at_the_field(client: TestClient, scene: Scene) -> None:
    wrong = job("sft")
    wrong["spec"]["training"]["learningRate"] = 7
    wrong["spec"]["model"] = {"fromJob": "Not_A_Name"}
    there = parsed(press(client, scene, "create", wrong).text)
    for path in ("spec.training.learningRate", "spec.model.fromJob"):
        assert there.with_id(path)["aria-invalid"] == "true", path
    assert scene.kube.find(FTJ, "made", scene.namespace) is None


def test_a_job_is_created_suspended_and_deleted(client: TestClient, scene: Scene) -> None:
    answer = press(client, scene, "create", job("sft"))
    place = answer.headers["location"]
    assert place == f"/ns/{scene.namespace}/jobs/made"
    made = scene.kube.get(FTJ, "made", scene.namespace)
    assert made["spec"]["stage"] == "sft"
    sent = {"csrf": csrf(client, place), "uid": made["metadata"]["uid"]}
    assert client.post(f"{place}/do/suspend", data=sent).status_code == 303
    assert scene.kube.get(FTJ, "made", scene.namespace)["spec"]["suspend"] is True
    assert client.post(f"{place}/do/delete", data=sent).status_code == 303
    assert scene.kube.find(FTJ, "made", scene.namespace) is None


def test_another_namespace_is_refused_by_the_server(client: TestClient) -> None:
    answer = client.get("/ns/default/jobs")
    assert answer.status_code == 403
    assert "You may not list finetunejobs in namespace default" in answer.text
