"""The leader is killed, and the API server is away for a minute, while a job trains: its pod trains on, and the status
catches up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from urllib3.exceptions import HTTPError

from tests.cluster import Cluster
from tests.e2e.conftest import LONG, POD_MINUTES, Scene
from tests.kube import ApiError, until

OUTAGE_SECONDS = 60
NAME = "weathered"


@pytest.fixture(scope="module")
def trained_by(scene: Scene) -> Iterator[str]:
    """The uid of the pod that trains the job."""
    scene.kubectl.apply(scene.job(NAME, **LONG, backoffLimit=0))
    until("a checkpoint is reported", lambda: scene.status(NAME).get("checkpoint"), POD_MINUTES, every=0.5)
    (pod,) = scene.pods(NAME)
    yield pod["metadata"]["uid"]
    scene.kube.delete("FineTuneJob", NAME, scene.namespace)


def goes_on(scene: Scene, trained_by: str) -> None:
    """The same pod reports more steps, and nothing counts as a failure."""
    step = scene.status(NAME)["progress"]["step"]
    until(f"more than {step} steps", lambda: scene.status(NAME)["progress"]["step"] > step, POD_MINUTES, every=0.5)
    status = scene.status(NAME)
    assert (status["phase"], status["attempt"], len(status["attempts"])) == ("Running", 1, 1), status
    assert not status["attempts"][0].get("restarts")
    assert [pod["metadata"]["uid"] for pod in scene.pods(NAME)] == [trained_by]


def test_another_operator_takes_over_from_a_leader_that_is_killed(scene: Scene, operator: str, trained_by: str) -> None:
    def holder() -> str:
        [lease] = scene.kube.list("Lease", operator)
        return str(lease["spec"].get("holderIdentity", ""))

    killed = holder()
    assert killed in [pod["metadata"]["name"] for pod in scene.kube.list("Pod", operator)]
    scene.kube.delete("Pod", killed, operator, grace=0)
    until("another leads", lambda: holder() not in ("", killed), timeout=60)
    goes_on(scene, trained_by)
    # The new leader works: a second job starts and ends.
    scene.kubectl.apply(scene.job("under-the-next"))
    assert scene.reaches("under-the-next", "Succeeded", "Failed")["phase"] == "Succeeded"


def test_an_api_server_that_is_away_for_a_minute_costs_a_job_nothing(
    whole_cluster: Cluster, scene: Scene, trained_by: str
) -> None:
    whole_cluster.stop_process("kube-apiserver")
    try:
        end = time.monotonic() + OUTAGE_SECONDS
        until("the minute is over", lambda: time.monotonic() > end, OUTAGE_SECONDS + 10)
    finally:
        whole_cluster.start_process("kube-apiserver")
    until("the API server answers", lambda: answer(scene), POD_MINUTES, every=0.5)
    goes_on(scene, trained_by)
    scene.kube.patch("FineTuneJob", NAME, {"spec": {"stop": "keep"}}, scene.namespace)
    status = scene.reaches(NAME, "Succeeded", "Failed")
    assert (status["reason"], status["attempt"]) == ("StoppedByUser", 1), status["message"]


def answer(scene: Scene) -> dict[str, Any]:
    """The job's status, or nothing while the API server starts."""
    try:
        return scene.status(NAME)
    except (ApiError, HTTPError):
        return {}
