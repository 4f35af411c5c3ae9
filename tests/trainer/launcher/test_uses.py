"""What a run reports of its time: the parts are the whole, and what is done again is counted as that."""

from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from finetune_api.status import RunUses
from finetune_trainer.reporting import status

from tests.trainer.support import tiny
from tests.trainer.support.attempt import Rows, Series, killed
from tests.trainer.support.forge import Forge
from tests.trainer.support.pod import HURRY, Pod

ROUNDING = 1.5
"""Seconds: the time of the start is a whole second."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    tiny.save_model(root / "models" / "model")
    tiny.save_rows(root / "data" / "rows.jsonl", rows=21)
    return root


def uses_of(series: Series) -> RunUses:
    uses = series.result.uses
    assert uses is not None
    assert uses.run == f"run-{series.attempts}"
    return uses


def is_whole(series: Series, uses: RunUses) -> bool:
    """Whether the parts are the time from the first line to the termination message, by the clock of the machine."""
    end = (series.folder / f"etc-{series.attempts}" / "termination-log").stat().st_mtime
    wall = end - datetime.fromisoformat(uses.since).timestamp()
    return abs(sum(uses.milliseconds.values()) / 1000 - wall) <= ROUNDING


def test_a_killed_run_and_the_run_that_does_its_steps_again(forge: Forge, root: Path, tmp_path: Path) -> None:
    evaluated = {"datasets": [{"source": "pvc://data/rows.jsonl", "format": "openai"}], "everySteps": 3}
    job = tiny.job(training={"maxSteps": 6}, checkpoints={"everySteps": 2}, evaluation=evaluated)
    series = Series(forge, root, tmp_path / "series", job)
    assert series.run(end=partial(killed, step=6, victim=0)) == 137
    first = uses_of(series)
    assert is_whole(series, first)
    assert first.redone_steps == 0
    assert {"load", "train", "evaluate", "save", "redone"} <= set(first.milliseconds), "its last moments are lost"
    assert status.read_furthest(series.home / "reports", "11111-uid") == 5

    assert series.run() == 0
    second = uses_of(series)
    assert is_whole(series, second)
    again = {event.step for event in series.children[-1].received if isinstance(event, Rows)} & set(range(1, 6))
    assert second.redone_steps == len(again) > 0
    assert second.milliseconds["redone"] > 0
    assert second.milliseconds["train"] > 0


def test_steps_that_earlier_ranks_had_done_are_done_again_in_the_same_pod_and_in_the_next(tmp_path: Path) -> None:
    """The first ranks reach step 5. Those after the restart begin at 2 and reach 7, the next pod begins at 4."""
    again = [["in_turn", ["steps", 0, 5], ["steps", 2, 7]], ["in_turn", ["save", 0], ["save", 0]]]
    first = Pod(tmp_path, again, restarts=1, kills="steady", waits=HURRY)
    assert first.run() == 137
    uses = first.result.uses
    assert uses is not None
    assert uses.redone_steps == 3
    assert {"load", "train", "redone", "stalled"} <= set(uses.milliseconds)
    assert status.read_furthest(first.home / "reports", first.uid) == 7

    second = Pod(tmp_path, [["steps", 4, 9, "done", {}], ["done", {}]], attempt=2, run_id="run-2")
    assert second.run() == 0
    uses = second.result.uses
    assert uses is not None
    assert (uses.run, uses.redone_steps) == ("run-2", 3)
