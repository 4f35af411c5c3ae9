"""The account of a run's time: every second between two heartbeats counts once, for what the first of them began."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.status import RunUses
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.uses import Account

STARTED = Account(run="pod", since="2026-01-31T12:00:00Z", until=100.0, furthest=3, seconds={"load": 2.0})
"""What the launcher hands to the ranks: earlier ranks have done three steps."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the time of the next heartbeats."""
    moment = [100.0]

    def set_to(seconds: float) -> None:
        moment[0] = seconds

    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    yield set_to
    heartbeat._Writer.handle = None


def test_a_run_that_resumes_evaluates_and_saves(tmp_path: Path, clock: Any) -> None:
    clock(105.0)
    heartbeat.open_file(tmp_path, 0, STARTED)
    heartbeat.beat("load", use="stalled")
    clock(108.0)
    heartbeat.beat("load")
    clock(110.0)
    heartbeat.begin_training(1)
    for step in range(1, 5):
        heartbeat.beat("train", step)
        clock(110.0 + 10 * step)
        heartbeat.beat("train", step + 1)
    clock(151.0)
    heartbeat.beat("evaluate", 5)
    clock(153.0)
    heartbeat.beat("generate", 5)
    clock(157.0)
    heartbeat.beat("save", 5)
    clock(160.0)
    heartbeat.refresh()
    account = heartbeat.account()
    assert account.seconds == pytest.approx(
        {"load": 2 + 5 + 2, "stalled": 3, "redone": 20, "train": 21, "evaluate": 6, "save": 3}
    )
    assert sum(account.seconds.values()) == pytest.approx(2 + 60), "from the launcher's account to the last heartbeat"
    assert (account.redone_steps, account.furthest) == (2, 5), "steps 2 and 3 were done before"
    read = heartbeat.read_account(tmp_path, 0, STARTED)
    assert read == account
    beat = heartbeat.read(tmp_path, 0)
    assert beat is not None
    assert (beat.phase, beat.step) == ("save", 5)


def test_answers_to_train_on_count_as_training(tmp_path: Path, clock: Any) -> None:
    """Stage ppo; a batch of answers sends heartbeats of its own."""
    heartbeat.open_file(tmp_path, 0, STARTED)
    heartbeat.beat("generate", 2, use=heartbeat.use_of_step(2))
    clock(110.0)
    heartbeat.beat("generate", 2)
    clock(120.0)
    heartbeat.beat("generate", 3, use=heartbeat.use_of_step(3))
    clock(150.0)
    heartbeat.refresh()
    assert heartbeat.account().seconds == pytest.approx({"load": 2, "redone": 20, "train": 30})


def test_a_rank_that_never_wrote_leaves_the_account_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "beat-1").write_text("train 7 1000.000000 0.0\n")
    assert heartbeat.read_account(tmp_path, 0, STARTED) == STARTED
    assert heartbeat.read_account(tmp_path, 1, STARTED) == STARTED


def test_the_report_has_whole_milliseconds_and_a_laptop_reports_none() -> None:
    assert STARTED.spent("train", 101.0004).report() == RunUses(
        run="pod", since="2026-01-31T12:00:00Z", milliseconds={"load": 2000, "train": 1000}
    )
    assert Account(until=5.0).spent("train", 9.0).report() is None
    assert STARTED.spent("train", 90.0).seconds["train"] == 0, "no clock goes back"
