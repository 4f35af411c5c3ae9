"""When ranks are not started again in the same pod, with the real launcher and two fake ranks: budget, a row of
failures without a checkpoint, SIGTERM, ends that a restart does not cure; and what restarts leave behind."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support.fake_api import FakeApi
from tests.trainer.support.pod import HURRY, PATIENCE, Pod, manifest

CRASH: list[Any] = ["crash", "a bug"]
DONE: list[Any] = ["done", {"train_loss": "0.5"}]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path / "serviceaccount")
    yield server
    server.close()


def runs_of(pod: Pod) -> list[str]:
    """The runs that have begun, from the log: the pod's, and one for each restart."""
    return [line.split("run ")[1].split(":")[0] for line in pod.log.read_text().splitlines() if ": train with" in line]


@pytest.mark.parametrize(("restarts", "runs"), [pytest.param(None, 1, marks=pytest.mark.sweep), (1, 2), (9, 3)])
def test_a_crash_at_each_start_is_bounded_by_the_budget_and_by_the_row(
    tmp_path: Path, restarts: int | None, runs: int
) -> None:
    """A pod on a bad node must not use up the whole budget: the pauses of `Pod` allow a row of two restarts."""
    pod = Pod(tmp_path, [CRASH, CRASH], restarts=restarts, waits=HURRY)
    assert pod.run() == 70
    assert "RuntimeError on rank 0: a bug" in pod.result.message
    assert len(runs_of(pod)) == runs
    assert (pod.result.restart.number if pod.result.restart else 0) == runs - 1


@pytest.mark.parametrize(
    ("scene", "code"),
    [
        (["fail", "InvalidData", "rows.jsonl:7"], 65),
        (["fail", "GpuOutOfMemory", "80 GiB"], 71),
        (["memory_error"], 137),
        (["fail", "RendezvousFailed", "alone"], 70),
    ],
)
def test_ends_that_a_restart_does_not_cure_end_the_pod(tmp_path: Path, scene: list[Any], code: int) -> None:
    """The micro-batch of this job is 1 already, and all layers are recomputed."""
    smallest = manifest(microBatchSize=1, recompute="all")
    pod = Pod(tmp_path, [scene, scene], restarts=3, waits=HURRY, job=smallest)
    assert pod.run() == code
    assert runs_of(pod) == ["run-1"]
    assert pod.result.restart is None


def test_sigterm_in_a_pause_ends_the_pod_at_once(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [CRASH, CRASH], restarts=3, pauses=[2 * PATIENCE])
    process = pod.start()
    end = time.monotonic() + PATIENCE
    while "Restart 1 in these pods" not in pod.log.read_text():
        assert time.monotonic() < end, pod.log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    assert "resumes from the newest checkpoint" in pod.result.message
    assert pod.result.restart is not None, "it reports the failure before the pause"


def test_status_tells_of_a_restart_at_once_and_as_long_as_the_pod_lives(tmp_path: Path, api: FakeApi) -> None:
    flood = ["in_turn", CRASH, ["flood", 20]]
    pod = Pod(tmp_path, [flood, ["in_turn", CRASH, DONE]], api, restarts=2, waits=HURRY)
    assert pod.run() == 0
    told = [body["status"]["progress"] for body in api.applied if "restart" in body["status"].get("progress", {})]
    assert told[0]["activity"] == "Loading"
    assert {progress["restart"]["number"] for progress in told} == {1}
    assert told[-1]["step"] == 10, "the last report of the restarted ranks has it, too"
    restart = api.status["result"]["restart"]
    assert (restart["reason"], restart["failures"]) == ("InternalError", 1)
    assert api.status["result"] == pod.result.to_dict()
    assert runs_of(pod) == ["run-1", "run-1-r1"]
    assert json.loads((pod.home / "fence.json").read_text())["runId"] == "run-1-r1"
    assert json.loads((pod.home / "RESULT.json").read_text())["result"]["exitCode"] == 0


def test_processes_of_ranks_that_crashed_do_not_live_beside_the_restarted_ranks(tmp_path: Path) -> None:
    orphan = ["in_turn", ["orphan"], ["save", 0]]
    pod = Pod(tmp_path, [orphan, orphan], restarts=1, waits=HURRY)
    process = pod.start()
    again = pod.home / "checkpoints" / "1-run-1-r1"
    end = time.monotonic() + PATIENCE
    while not all((again / f"pid-{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None, pod.log.read_text()
        assert time.monotonic() < end, pod.log.read_text()
        time.sleep(0.05)
    assert pod.workspace is not None
    for rank in (0, 1):
        pid = int((pod.workspace / f"orphan-{rank}").read_text())
        status = Path(f"/proc/{pid}/status")
        assert not status.exists() or "\nState:\tZ" in status.read_text(), "killed; PID 1 reaps it in a pod"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    assert pod.result.message == "Saved at step 3", "SIGTERM works as before the restart"
