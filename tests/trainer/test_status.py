"""What the outside sees of a run that has nothing new to say."""

import time
from pathlib import Path

from finetune_api.contract import AttemptFacts
from finetune_api.status import Checkpoint, Progress
from finetune_trainer.reporting.status import Reporter, read_status

from tests.trainer.fake_api import FakeApi

LONG_AGO = "2020-01-01T00:00:00Z"


def test_a_long_step_shows_signs_of_life(tmp_path: Path) -> None:
    api = FakeApi(tmp_path / "serviceaccount")
    facts = AttemptFacts(namespace="team", name="tune", uid="u1", attempt=1, job_name="j")
    reporter = Reporter(api.server, facts, tmp_path, 0.05, lambda _why: None)
    try:
        reporter.progress(
            Progress(attempt=1, step=3, total_steps=10, percent=30, summary="3/10", last_update_time=LONG_AGO)
        )
        patience = time.monotonic() + 60
        while len(api.applied) < 3:
            assert time.monotonic() < patience
            time.sleep(0.01)
    finally:
        reporter.close()
        api.close()
    first, *later = [body["status"]["progress"] for body in api.applied]
    assert first["lastUpdateTime"] == LONG_AGO
    assert all(progress["lastUpdateTime"] > LONG_AGO for progress in later)
    assert all({**progress, "lastUpdateTime": LONG_AGO} == first for progress in later)


def test_how_long_a_save_takes_stays_known(tmp_path: Path) -> None:
    """A run tells which checkpoint it goes on from, but not how long saving that one took."""
    facts = AttemptFacts(namespace="team", name="tune", uid="u1", attempt=1, job_name="j")
    for attempt, seconds in ((1, 40), (2, None)):
        reporter = Reporter(None, facts, tmp_path, 0.05, lambda _why: None)
        reporter.checkpoint(Checkpoint(attempt=attempt, step=7, path="p", time=LONG_AGO, seconds=seconds))
        reporter.close()
    told = read_status(tmp_path, "u1")["checkpoint"]
    assert (told["attempt"], told["seconds"]) == (2, 40)
