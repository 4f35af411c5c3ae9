"""Status of a run that has no new values."""

import time
from pathlib import Path

from finetune_api.contract import AttemptFacts
from finetune_api.status import Checkpoint, Progress, Result
from finetune_trainer.reporting.api import CURVES_UNKNOWN, Answer
from finetune_trainer.reporting.status import Reporter, apply_result, read_status

from tests.trainer.support.fake_api import FakeApi, Json, accept

RESULT = Result(kind="train", attempt=1, exit_code=0, reason="Completed", message="Trained.")
LONG_AGO = "2020-01-01T00:00:00Z"


def test_progress_is_refreshed_during_a_long_step(tmp_path: Path) -> None:
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


def test_a_crd_that_was_rolled_back_costs_only_the_curves(tmp_path: Path) -> None:
    def older(body: Json) -> tuple[int, Json]:
        if "curves" in body["status"]["progress"]:
            message = f"failed to create typed patch object (team/tune): {CURVES_UNKNOWN}"
            return 500, {"kind": "Status", "message": message}
        return accept(body)

    api = FakeApi(tmp_path / "serviceaccount")
    api.answer = older
    facts = AttemptFacts(namespace="team", name="tune", uid="u1", attempt=1, job_name="j")
    status = {"progress": {"step": 3, "curves": {"loss": "1;1;2"}}, "checkpoint": {"step": 2}}
    try:
        assert api.server.apply(facts, status) == (Answer.ACCEPTED, "")
    finally:
        api.close()
    assert api.status == {"progress": {"step": 3}, "checkpoint": {"step": 2}}


def test_the_duration_of_a_save_stays_in_status(tmp_path: Path) -> None:
    """A resumed run reports its checkpoint, but not how long the save of that took."""
    facts = AttemptFacts(namespace="team", name="tune", uid="u1", attempt=1, job_name="j")
    for attempt, seconds in ((1, 40), (2, None)):
        reporter = Reporter(None, facts, tmp_path, 0.05, lambda _why: None)
        reporter.checkpoint(Checkpoint(attempt=attempt, step=7, path="p", time=LONG_AGO, seconds=seconds))
        reporter.close()
    reported = read_status(tmp_path, "u1")["checkpoint"]
    assert (reported["attempt"], reported["seconds"]) == (2, 40)


def test_an_api_server_that_has_just_started_gets_the_result(tmp_path: Path) -> None:
    """It refuses everybody until it has read the roles."""
    api = FakeApi(tmp_path / "serviceaccount")
    refusals = [401, 403]

    def starting(body: Json) -> tuple[int, Json]:
        if refusals:
            return refusals.pop(0), {"kind": "Status", "message": "user cannot patch resource finetunejobs/status"}
        return accept(body)

    api.answer = starting
    facts = AttemptFacts(namespace="team", name="tune", uid="u1", attempt=1, job_name="j")
    try:
        apply_result(api.server, facts, tmp_path, RESULT)
    finally:
        api.close()
    assert api.status["result"] == RESULT.to_dict()
