"""The leader is killed, and the API server is away for a minute, while a job trains: its pod trains on, and the status
catches up. Then its rank crashes, and its pod is evicted. Through all of this, `finetune logs -f` prints each
line once.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from urllib3.exceptions import HTTPError

from examples.demo.kubectl import Pod
from tests.cluster import Cluster
from tests.e2e.conftest import CRASH, LONG, POD_MINUTES, Scene, curve
from tests.kube import ApiError, until

OUTAGE_SECONDS = 60
NAME = "weathered"
LOGGED = re.compile(r"step (\d+)/\d+  loss (\S+)")


@dataclass(frozen=True)
class Follower:
    """`finetune logs -f`, begun right after the job was applied."""

    process: subprocess.Popen[bytes]
    printed: Path

    def lines(self, pod: str) -> list[str]:
        """What it has printed of a pod, such as train-1/0."""
        head = f"{pod} | "
        text = self.printed.read_text(encoding="utf-8", errors="replace")
        return whole("\n".join(line.removeprefix(head) for line in text.split("\n") if line.startswith(head)))


def whole(text: str) -> list[str]:
    """The lines of a log, the same whether somebody has taken a carriage return for an end of a line or not."""
    return [line for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def follower(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Follower]:
    scene.kubectl.apply(scene.job(NAME, **LONG, backoffLimit=1))
    printed = tmp_path_factory.mktemp("logs") / "printed"
    command = [sys.executable, "-m", "finetune_cli", "logs", "-f", NAME, "--namespace", scene.namespace]
    with printed.open("wb") as out, subprocess.Popen(command, env=scene.kubectl.env, stdout=out) as process:
        yield Follower(process, printed)
        process.kill()
    scene.kube.delete("FineTuneJob", NAME, scene.namespace)


@pytest.fixture(scope="module")
def trained_by(scene: Scene, follower: Follower) -> str:
    """The uid of the pod that trains the job."""
    until("a checkpoint is reported", lambda: scene.status(NAME).get("checkpoint"), POD_MINUTES, every=0.5)
    (pod,) = scene.pods(NAME)
    return str(pod["metadata"]["uid"])


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
        assert answer(scene) == {}, "nobody has started the API server again"
    finally:
        whole_cluster.start_process("kube-apiserver")
    until("the API server answers", lambda: answer(scene), POD_MINUTES, every=0.5)
    goes_on(scene, trained_by)


def test_every_line_is_printed_once_through_all_of_this(
    scene: Scene, trainer_image: str, trained_by: str, follower: Follower
) -> None:
    """The node keeps the log of a pod as long as the pod exists. What came after that is compared with the curve in the
    workspace, which has each step once."""
    del trained_by  # the job trains
    [pod] = scene.pods(NAME)
    name = pod["metadata"]["name"]
    Pod(scene.kubectl, name)("python", "-c", CRASH)
    until(
        "the status reports its restart",
        lambda: scene.status(NAME)["attempts"][0].get("restarts"),
        POD_MINUTES,
        every=0.5,
    )
    until("it trains on", lambda: trains_from_a_checkpoint(scene, 1), POD_MINUTES, every=0.5)
    first = whole(scene.kubectl("logs", name, "--tail=-1"))
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    scene.kube.call("POST", f"api/v1/namespaces/{scene.namespace}/pods/{name}/eviction", eviction)
    until("the second attempt trains", lambda: trains_from_a_checkpoint(scene, 2), POD_MINUTES, every=0.5)
    scene.kube.patch("FineTuneJob", NAME, {"spec": {"stop": "keep"}}, scene.namespace)
    status = scene.reaches(NAME, "Succeeded", "Failed")
    assert (status["phase"], status["reason"], status["attempt"]) == ("Succeeded", "StoppedByUser", 2), status
    assert follower.process.wait(POD_MINUTES) == 0

    assert follower.lines("train-1/0")[: len(first)] == first
    left = [
        each for kind in ("prepare", "train") for each in scene.pods(NAME, kind) if each["metadata"]["name"] != name
    ]
    for each in left:
        assert follower.lines(head_of(each)) == whole(scene.kubectl("logs", each["metadata"]["name"], "--tail=-1"))
    assert "train-2/0" in map(head_of, left)
    in_workspace = [(entry["current_steps"], f"{entry['loss']:.4f}") for entry in curve(scene, trainer_image, NAME)]
    compare(in_workspace, [follower.lines("train-1/0"), follower.lines("train-2/0")], restarts=1)


def trains_from_a_checkpoint(scene: Scene, attempt: int) -> bool:
    """Whether the newest run has done new steps."""
    progress = scene.status(NAME).get("progress", {})
    return bool(progress.get("attempt") == attempt and 0 < progress.get("startStep", 0) < progress["step"])


def head_of(pod: dict[str, Any]) -> str:
    labels = pod["metadata"]["labels"]
    return f"{labels['finetune-operator.io/kind']}-{labels['finetune-operator.io/attempt']}/0"


def compare(in_workspace: list[tuple[int, str]], attempts: list[list[str]], restarts: int) -> None:
    """Each run has printed consecutive steps. Where a later run begins, the workspace has its losses."""
    runs: list[list[tuple[int, str]]] = []
    for lines in attempts:
        runs.append([])
        for step, loss in (found.groups() for line in lines if (found := LOGGED.search(line))):
            if runs[-1] and int(step) <= runs[-1][-1][0]:
                runs.append([])
            runs[-1].append((int(step), loss))
    # A run that crashed right after it saved is continued without a step done again.
    assert len(attempts) <= len(runs) <= len(attempts) + restarts
    kept: dict[int, str] = {}
    for run in runs:
        assert [step for step, _ in run] == list(range(run[0][0], run[-1][0] + 1))
        kept = {step: loss for step, loss in kept.items() if step < run[0][0]} | dict(run)
    assert in_workspace == sorted(kept.items())


def answer(scene: Scene) -> dict[str, Any]:
    """The job's status, or nothing while the API server starts."""
    try:
        return scene.status(NAME)
    except (ApiError, HTTPError):
        return {}
