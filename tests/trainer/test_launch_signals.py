"""SIGTERM, through the real launcher with two ranks: who saves, who doesn't, and how long they may take."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import fake_api
from tests.trainer.fake_api import FakeApi
from tests.trainer.pod import HURRY, Pod


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path / "serviceaccount")
    yield server
    server.close()


def test_a_long_save_is_not_cut_short(tmp_path: Path, api: FakeApi) -> None:
    """Rank 1 is done at once, which must not end rank 0: not even in three times what ranks get that a failed one left
    behind."""
    pod = Pod(tmp_path, [["save", 45 * HURRY], ["save", 0]], api, grace=120, waits=HURRY)
    process = pod.start()
    pod.wait_until_training(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 75
    assert (pod.checkpoints / "saved-0").exists()
    assert pod.said.message == "Saved at step 3"
    assert api.status["result"]["exitCode"] == 75
    assert api.status["progress"]["step"] == 3


@pytest.mark.parametrize(
    "answer",
    [fake_api.deleted, fake_api.deleting, fake_api.replaced, fake_api.not_current],
    ids=lambda answer: answer.__name__,
)
def test_nobody_wants_the_result(tmp_path: Path, api: FakeApi, answer: Any) -> None:
    """A rank in the middle of a long step doesn't listen, and the grace period is long."""
    pod = Pod(tmp_path, [["save", 60], ["deaf"]], api, grace=600)
    process = pod.start()
    pod.wait_until_training(process)
    api.answer = answer
    process.send_signal(signal.SIGTERM)
    # Far from the 600 s of grace, and from the 60 s of the save.
    assert process.wait(55) == 78
    assert not (pod.checkpoints / "saved-0").exists()
    assert pod.said.reason == "Superseded"
    assert not any("result" in body["status"] for body in api.applied)


@pytest.mark.parametrize("answer", [fake_api.broken, fake_api.forbidden], ids=lambda answer: answer.__name__)
def test_no_clear_answer_means_save(tmp_path: Path, api: FakeApi, answer: Any) -> None:
    pod = Pod(tmp_path, [["save", 1], ["save", 1]], api, waits=HURRY)
    process = pod.start()
    pod.wait_until_training(process)
    api.answer = answer
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert (pod.checkpoints / "saved-0").exists()


def test_an_api_server_that_hangs_does_not_eat_the_grace_period(tmp_path: Path, api: FakeApi) -> None:
    pod = Pod(tmp_path, [["save", 1], ["save", 1]], api, waits=HURRY)
    process = pod.start()
    pod.wait_until_training(process)
    api.answer = fake_api.hang
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert (pod.checkpoints / "saved-0").exists()


def test_ranks_know_how_much_time_is_left(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["save", 0], ["save", 0]], grace=120)
    process = pod.start()
    pod.wait_until_training(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    # 15 s of 120 are for the launcher, 3 for the end of the rank; a slow machine may take some more.
    assert 45 < float((pod.checkpoints / "begun-0").read_text()) < 103


def test_a_rank_that_does_not_save_in_time_is_ended(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["deaf"], ["save", 0]], grace=6)
    process = pod.start()
    pod.wait_until_training(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75


def test_a_second_sigterm_asks_again_but_does_not_cut_the_save(tmp_path: Path, api: FakeApi) -> None:
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


def test_deleted_while_it_saves_for_a_drain(tmp_path: Path, api: FakeApi) -> None:
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


def test_refused_in_mid_run_as_not_the_current_attempt(tmp_path: Path, api: FakeApi) -> None:
    pod = Pod(tmp_path, [["report_for_ever"], ["deaf"]], api)
    process = pod.start()
    pod.wait_until_training(process)
    api.answer = fake_api.not_current
    assert process.wait(60) == 78
    assert pod.said.reason == "Superseded"


def test_ranks_do_not_outlive_the_launcher(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["deaf"], ["deaf"]])
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
    # Nobody may be there to reap it.
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
