"""Which checkpoints stay."""

from pathlib import Path

import pytest
from finetune_trainer.checkpoints.retention import prune

from tests.unit.trainer.test_manifest import cut, save


def left(checkpoints: Path) -> list[str]:
    return sorted(path.relative_to(checkpoints).as_posix() for path in checkpoints.glob("*/*"))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path / "1-a" / f"checkpoint-{step}", step)
    prune(tmp_path, tmp_path / "1-a", keep=2)
    assert left(tmp_path) == ["1-a/checkpoint-10", "1-a/checkpoint-11"]


def test_the_best_is_kept_besides(tmp_path: Path) -> None:
    for step, loss in ((2, 3.0), (4, 1.0), (6, 2.0), (8, 2.5)):
        save(tmp_path / "1-a" / f"checkpoint-{step}", step, {"eval_loss": loss})
    save(tmp_path / "1-a" / "checkpoint-9", 9)  # not evaluated
    prune(tmp_path, tmp_path / "1-a", keep=1)
    assert left(tmp_path) == ["1-a/checkpoint-4", "1-a/checkpoint-9"]


@pytest.mark.parametrize("own", ["nothing", "a folder without a manifest", "one cut short"])
def test_another_runs_checkpoints_are_kept_until_this_run_has_its_own(tmp_path: Path, own: str) -> None:
    save(tmp_path / "1-a" / "checkpoint-2", 2)
    mine = tmp_path / "2-b" / "checkpoint-4"
    if own == "a folder without a manifest":
        mine.mkdir(parents=True)
    elif own == "one cut short":
        cut(save(mine, 4) / "stage.json")
    prune(tmp_path, tmp_path / "2-b", keep=1)
    assert "1-a/checkpoint-2" in left(tmp_path)

    save(mine, 4)
    prune(tmp_path, tmp_path / "2-b", keep=1)
    assert left(tmp_path) == ["2-b/checkpoint-4"]


def test_what_is_broken_takes_no_place(tmp_path: Path) -> None:
    """The run went on from step 6, as the checkpoint of step 8 doesn't verify: its size alone doesn't show that."""
    for step in (6, 8):
        save(tmp_path / "1-a" / f"checkpoint-{step}", step)
    save(tmp_path / "2-b" / "checkpoint-7", 7)
    prune(tmp_path, tmp_path / "2-b", keep=2, broken={tmp_path / "1-a" / "checkpoint-8"})
    assert left(tmp_path) == ["1-a/checkpoint-6", "2-b/checkpoint-7"]


def test_this_runs_own_come_before_those_of_earlier_runs(tmp_path: Path) -> None:
    save(tmp_path / "1-a" / "checkpoint-9", 9)
    save(tmp_path / "2-b" / "checkpoint-7", 7)
    prune(tmp_path, tmp_path / "2-b", keep=1)
    assert left(tmp_path) == ["2-b/checkpoint-7"]
