"""SIGTERM, with the real launcher and two fake ranks: when the ranks save, and how long they may take."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support import fake_api
from tests.trainer.support.fake_api import FakeApi
from tests.trainer.support.pod import HURRY, Pod


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path / "serviceaccount")
    yield server
    server.close()


def test_a_long_save_is_not_cut_short(tmp_path: Path, api: FakeApi) -> None:
    """Rank 1 has saved at once, which must not end rank 0: not even after three times the time that ranks get when
    another rank has failed."""
    pod = Pod(tmp_path, [["save", 45 * HURRY], ["save", 0]], api, grace=120, waits=HURRY)
    process = pod.start()
    pod.wait_until_training(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 75
    assert (pod.checkpoints / "saved-0").exists()
    assert pod.result.message == "Saved at step 3"
    assert api.status["result"]["exitCode"] == 75
    assert api.status["progress"]["step"] == 3


@pytest.mark.parametrize(
    "answer",
    [fake_api.deleted, fake_api.deleting, fake_api.replaced, fake_api.not_current],
    ids=lambda answer: answer.__name__,
)
def test_nobody_wants_the_result(tmp_path: Path, api: FakeApi, answer: Any) -> None:
    """A rank in a long step does not react, and the grace period is long."""
    pod = Pod(tmp_path, [["save", 60], ["ignore_sigterm"]], api, grace=600)
    process = pod.start()
    pod.wait_until_training(process)
    api.answer = answer
    process.send_signal(signal.SIGTERM)
    # Much less than the 600 s of the grace period and the 60 s of the save.
    assert process.wait(55) == 78
    assert not (pod.checkpoints / "saved-0").exists()
    assert pod.result.reason == "Superseded"
    assert not any("result" in body["status"] for body in api.applied)


@pytest.mark.parametrize("answer", [fake_api.broken, fake_api.forbidden], ids=lambda answer: answer.__name__)
def test_the_run_saves_without_a_clear_answer(tmp_path: Path, api: FakeApi, answer: Any) -> None:
    pod = Pod(tmp_path, [["save", 1], ["save", 1]], api, waits=HURRY)
    process = pod.start()
    pod.wait_until_training(process)
    api.answer = answer
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert (pod.checkpoints / "saved-0").exists()


def test_an_api_server_that_hangs_does_not_use_up_the_grace_period(tmp_path: Path, api: FakeApi) -> None:
    pod = Pod(tmp_path, [["save", 1], ["save", 1]], api, waits=HURRY)
    process = pod.start()
    pod.wait_until_training(process)
    api.answer = fake_api.hang
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert (pod.checkpoints / "saved-0").exists()


def test_ranks_know_the_seconds_left_for_a_save(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["save", 0], ["save", 0]], grace=120)
    process = pod.start()
    pod.wait_until_training(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    # Of 120 s the launcher keeps 15 and the rank keeps 3 for its end. A slow machine may take some more.
    assert 45 < float((pod.checkpoints / "begun-0").read_text()) < 103


def test_a_rank_that_does_not_save_in_time_is_ended(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["ignore_sigterm"], ["save", 0]], grace=6)
    process = pod.start()
    pod.wait_until_training(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75


def test_a_second_sigterm_probes_again_but_does_not_end_the_save(tmp_path: Path, api: FakeApi) -> None:
    pod = Pod(tmp_path, [["save", 2], ["save", 2]], api)
    process = pod.start()
    pod.wait_until_training(process)
    process.send_signal(signal.SIGTERM)
    begun = pod.checkpoints / "begun-0"
    while not begun.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert (pod.checkpoints / "saved-0").exists()


def test_a_job_deleted_during_the_save_for_a_drain(tmp_path: Path, api: FakeApi) -> None:
    pod = Pod(tmp_path, [["save", 100], ["save", 100]], api, grace=600)
    process = pod.start()
    pod.wait_until_training(process)
    process.send_signal(signal.SIGTERM)
    begun = pod.checkpoints / "begun-0"
    while not begun.exists():
        time.sleep(0.05)
    api.answer = fake_api.deleted
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 78


def test_a_run_ends_when_it_is_not_the_current_attempt(tmp_path: Path, api: FakeApi) -> None:
    pod = Pod(tmp_path, [["report_for_ever"], ["ignore_sigterm"]], api)
    process = pod.start()
    pod.wait_until_training(process)
    api.answer = fake_api.not_current
    assert process.wait(60) == 78
    assert pod.result.reason == "Superseded"


def test_ranks_do_not_outlive_the_launcher(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["ignore_sigterm"], ["ignore_sigterm"]])
    process = pod.start()
    pod.wait_until_training(process)
    pids = [int((pod.checkpoints / f"pid-{rank}").read_text()) for rank in (0, 1)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # It may be a zombie that no process reaps.
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
