"""When the curves of a run are written, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from finetune_api.contract import AttemptFacts
from finetune_api.curves import decode
from finetune_api.stages import Stage
from finetune_api.status import Progress, Restart
from finetune_trainer.reporting import curves
from finetune_trainer.reporting.curves import SECONDS, Curves
from finetune_trainer.reporting.metrics import STATUS_NAMES
from finetune_trainer.reporting.names import LOGGED
from finetune_trainer.reporting.progress import with_aliases
from finetune_trainer.reporting.status import Reporter, read_status, report_restart
from finetune_trainer.runtime.uses import Account

from tests.unit.trainer.reporting.test_reporting import METRICS

FACTS = AttemptFacts(namespace="team", name="tune", uid="u1", attempt=1, job_name="j")


def line(step: int, **values: Any) -> dict[str, Any]:
    return {"current_steps": step, "total_steps": 9, "loss": 3.0 - step / 10, "lr": 0.1, "throughput": None, **values}


class Clock:
    """In place of the module time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_curves_are_written_when_they_change_and_at_most_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(curves, "time", clock)
    made = Curves()
    made.add(line(1))
    assert made.due() == {"loss": "1;1;2.9", "learningRate": "1;1;.1"}
    made.add(line(2))
    clock.now = SECONDS - 1
    assert made.due() is None
    clock.now = SECONDS
    assert (made.due() or {})["loss"] == "1;1*2;2.9,2.8"
    clock.now = 3 * SECONDS
    assert made.due(at_once=True) is None, "nothing has changed"
    made.add(line(3))
    assert (made.due(at_once=True) or {})["loss"] == "1;1*3;2.9,2.8,2.7"


def test_a_run_from_the_start_writes_that_it_has_no_curves_yet() -> None:
    """Those of the status are of steps that it repeats."""
    assert Curves().due() == {}


@pytest.mark.parametrize("stage", get_args(Stage))
def test_each_metric_of_a_stage_has_a_curve_by_the_name_of_the_status(stage: str) -> None:
    made = Curves()
    values = dict.fromkeys(METRICS[stage], 1.0)
    made.add(line(1, grad_norm=1.0, **with_aliases(values)))
    made.add({"current_steps": 1, "eval_loss": 2.0, **{f"eval_{name}": 2.0 for name in values}, "eval_runtime": 1.0})
    texts = made.due() or {}
    names = {LOGGED[name] for name in METRICS[stage]}
    trained = {"loss", "learningRate", "gradientNorm", *(name[0].lower() + name[1:] for name in names)}
    evaluated = {STATUS_NAMES["eval_loss"], *(f"eval{name}" for name in names)}
    assert texts.keys() == trained | evaluated
    assert all(decode(texts[name]) == [(1, 2.0)] for name in evaluated)


def progress(**fields: Any) -> Progress:
    plain = {"attempt": 1, "step": 3, "total_steps": 10, "percent": 30, "summary": "3/10", "last_update_time": "x"}
    return Progress(**{**plain, **fields})


def test_reported_curves_stay_until_there_are_new_ones(tmp_path: Path) -> None:
    """Also while the next attempt loads, and while the ranks start again: an apply removes what it lacks."""

    def reported(*reports: Progress) -> Any:
        reporter = Reporter(None, FACTS, tmp_path, 60, lambda _why: None)
        for report in reports:
            reporter.progress(report)
        reporter.close()
        return read_status(tmp_path, "u1")["progress"].get("curves")

    assert reported(progress()) is None
    assert reported(progress(curves={"loss": "1;1;2"}), progress(step=4)) == {"loss": "1;1;2"}
    assert reported(progress(activity="Loading")) == {"loss": "1;1;2"}
    restart = Restart(number=1, failures=1, reason="x", exit_code=1, message="x", time="x")
    report_restart(None, FACTS, tmp_path, restart, Account())
    assert read_status(tmp_path, "u1")["progress"]["curves"] == {"loss": "1;1;2"}
    assert reported(progress(curves={})) == {}
