"""Which checkpoints stay."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.checkpoints.retention import prune

from tests.unit.trainer.test_manifest import cut, other_version, save


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
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert "1-a/checkpoint-2" in left(tmp_path)

    save(mine, 4)
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert left(tmp_path) == ["2-b/checkpoint-4"]


def test_what_is_broken_takes_no_place(tmp_path: Path) -> None:
    """The run went on from step 6, as the checkpoint of step 8 doesn't verify: its size alone doesn't show that."""
    for step in (6, 8):
        save(tmp_path / "1-a" / f"checkpoint-{step}", step)
    save(tmp_path / "2-b" / "checkpoint-7", 7)
    earlier = tmp_path / "1-a"
    prune(tmp_path, tmp_path / "2-b", keep=2, earlier={earlier}, broken={earlier / "checkpoint-8"})
    assert left(tmp_path) == ["1-a/checkpoint-6", "2-b/checkpoint-7"]


def test_this_runs_own_come_before_those_of_earlier_runs(tmp_path: Path) -> None:
    save(tmp_path / "1-a" / "checkpoint-9", 9)
    save(tmp_path / "2-b" / "checkpoint-7", 7)
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert left(tmp_path) == ["2-b/checkpoint-7"]


def test_what_cannot_be_read_now_is_kept_and_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_another_version_wrote_is_kept(tmp_path: Path) -> None:
    other_version(save(tmp_path / "1-a" / "checkpoint-2", 2), format=2)
    save(tmp_path / "2-b" / "checkpoint-4", 4)
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert left(tmp_path) == ["1-a/checkpoint-2", "2-b/checkpoint-4"]


@pytest.mark.parametrize("later", ["3-c", "1-c"])  # the job may have been made anew
def test_a_run_that_was_superseded_leaves_its_successors_checkpoints_alone(tmp_path: Path, later: str) -> None:
    for run, step in (("1-a", 2), ("2-b", 4), (later, 3)):
        save(tmp_path / run / f"checkpoint-{step}", step)
    prune(tmp_path, tmp_path / "2-b", keep=1, earlier={tmp_path / "1-a"})
    assert left(tmp_path) == sorted(["2-b/checkpoint-4", f"{later}/checkpoint-3"])
