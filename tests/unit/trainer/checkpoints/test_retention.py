"""Which checkpoints are kept."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.checkpoints.retention import prune

from tests.unit.trainer.checkpoints.test_manifest import cut, other_version, save


def left(checkpoints: Path) -> list[str]:
    return sorted(path.relative_to(checkpoints).as_posix() for path in checkpoints.glob("*/*"))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path / "1-a" / f"checkpoint-{step}", step)
    prune(tmp_path, tmp_path / "1-a", keep=2)
    assert left(tmp_path) == ["1-a/checkpoint-10", "1-a/checkpoint-11"]


def test_the_best_is_kept_in_addition(tmp_path: Path) -> None:
    for step, loss in ((2, 3.0), (4, 1.0), (6, 2.0), (8, 2.5)):
        save(tmp_path / "1-a" / f"checkpoint-{step}", step, {"eval_loss": loss})
    save(tmp_path / "1-a" / "checkpoint-9", 9)  # not evaluated
    prune(tmp_path, tmp_path / "1-a", keep=1)
    assert left(tmp_path) == ["1-a/checkpoint-4", "1-a/checkpoint-9"]


@pytest.mark.parametrize("own", ["nothing", "a folder without a manifest", "an incomplete checkpoint"])
def test_another_runs_checkpoints_are_kept_until_this_run_has_its_own(tmp_path: Path, own: str) -> None:
    save(tmp_path / "1-a" / "checkpoint-2", 2)
    mine = tmp_path / "2-b" / "checkpoint-4"
    if own == "a folder without a manifest":
        mine.mkdir(parents=True)
    elif own == "an incomplete checkpoint":
        cut(save(mine, 4) / "stage.json")
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert "1-a/checkpoint-2" in left(tmp_path)

    save(mine, 4)
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert left(tmp_path) == ["2-b/checkpoint-4"]


def test_a_broken_checkpoint_does_not_count(tmp_path: Path) -> None:
    """The run resumed from step 6, because the checkpoint of step 8 failed verification. Its file sizes are right."""
    for step in (6, 8):
        save(tmp_path / "1-a" / f"checkpoint-{step}", step)
    save(tmp_path / "2-b" / "checkpoint-7", 7)
    earlier = tmp_path / "1-a"
    prune(tmp_path, tmp_path / "2-b", keep=2, earlier={earlier}, broken={earlier / "checkpoint-8"})
    assert left(tmp_path) == ["1-a/checkpoint-6", "2-b/checkpoint-7"]


def test_the_runs_own_checkpoints_count_as_newer_than_those_of_earlier_runs(tmp_path: Path) -> None:
    save(tmp_path / "1-a" / "checkpoint-9", 9)
    save(tmp_path / "2-b" / "checkpoint-7", 7)
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert left(tmp_path) == ["2-b/checkpoint-7"]


def test_an_unreadable_checkpoint_is_kept_and_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path / "1-a" / f"checkpoint-{step}", step)
    read_bytes = Path.read_bytes

    def fails(file: Path) -> Any:
        if file.parent.name == "checkpoint-8":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", fails)
    prune(tmp_path, tmp_path / "1-a", keep=1)
    assert left(tmp_path) == ["1-a/checkpoint-6", "1-a/checkpoint-8"]


def test_a_checkpoint_of_another_version_is_kept(tmp_path: Path) -> None:
    other_version(save(tmp_path / "1-a" / "checkpoint-2", 2), format=2)
    save(tmp_path / "2-b" / "checkpoint-4", 4)
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert left(tmp_path) == ["1-a/checkpoint-2", "2-b/checkpoint-4"]


@pytest.mark.parametrize("later", ["3-c", "1-c"])  # the job may have been created again
def test_a_superseded_run_keeps_its_successors_checkpoints(tmp_path: Path, later: str) -> None:
    for run, step in (("1-a", 2), ("2-b", 4), (later, 3)):
        save(tmp_path / run / f"checkpoint-{step}", step)
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert left(tmp_path) == sorted(["2-b/checkpoint-4", f"{later}/checkpoint-3"])
