"""Two ranks save and resume together: an error or a flaw on one rank is known on both."""

import errno
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from finetune_api.contract import AttemptFacts
from finetune_api.micro_batch import MicroBatch
from finetune_trainer.checkpoints import manifest, paths, resume
from finetune_trainer.checkpoints.saver import Saver, StepState
from finetune_trainer.errors import NoSpace, Superseded, WorkspaceUnusable
from finetune_trainer.run import Run
from finetune_trainer.workspace.fencing import Fence
from finetune_trainer.workspace.folders import layout
from finetune_trainer.workspace.storage import save_errors
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException

from tests.trainer.support import tiny
from tests.unit.trainer.checkpoints.test_manifest import flip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Nothing is trained, so nothing is prepared."""
    job = tiny.job(checkpoints={"keep": 9})
    folders = layout(tmp_path, job.name, 1, "run1", {})
    folders.run_checkpoints.mkdir(parents=True)
    facts = AttemptFacts(namespace="default", name=job.name, uid="12345-uid", attempt=1, job_name="tiny-12345-1")
    nothing: Any = None
    return Run(job, facts, "run1", folders, 0, 0, world_size=2, micro_batch=MicroBatch(4), prepared=nothing)


def on_two_ranks(folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """The result of ``work`` on each rank."""
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()

    def rank(number: int) -> None:
        meeting = f"file://{folder}/meeting"
        patience = timedelta(seconds=60)
        distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=2, timeout=patience)
        answers.put((number, work(number)))
        distributed.barrier()

    ranks = [context.Process(target=rank, args=(number,)) for number in range(2)]
    for process in ranks:
        process.start()
    results = dict(answers.get(timeout=90) for _ in ranks)
    for process in ranks:
        process.join()
    (folder / "meeting").unlink(missing_ok=True)
    return [results[0], results[1]]


def shards(number: int, step: int) -> Callable[[Path], None]:
    """Writes a shard of this rank, and on rank 0 the other files."""

    def write(folder: Path) -> None:
        below = folder / f"checkpoint-{step}" / "optimizer_0"
        below.mkdir(exist_ok=True)
        (below / f"__{number}_0.distcp").write_bytes(bytes([number, step]) * 1000)
        if number == 0:
            (below / ".metadata").write_bytes(b"where is what")

    return write


def save(run: Run, steps: list[int], fails: tuple[int, int] | None = None) -> Callable[[int], list[str]]:
    """Saves at each step, and returns how each save ended. ``fails``: (rank, step)."""

    def work(number: int) -> list[str]:
        mine = replace(run, rank=number)
        saver = Saver(mine)
        ends: list[str] = []
        saver.on_saved.append(lambda saved: ends.append(saved.path.name))
        for step in steps:
            write = shards(number, step)

            def full(folder: Path) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

            try:
                saver.save(StepState(step, 8 * step, ["torch.float32"], {}), full if (number, step) == fails else write)
                saver.wait()
            except NoSpace:
                ends.append(f"no space in step {step}")
        return ends

    return work


def placed(run: Run) -> list[str]:
    return sorted(path.name for path in run.folders.run_checkpoints.iterdir())


def test_the_manifest_lists_the_files_of_all_ranks(run: Run, tmp_path: Path) -> None:
    assert on_two_ranks(tmp_path, save(run, [2])) == [["checkpoint-2"], ["checkpoint-2"]]
    known = manifest.read(run.folders.run_checkpoints / "checkpoint-2")
    assert sorted(known.files) == ["optimizer_0/.metadata", "optimizer_0/__0_0.distcp", "optimizer_0/__1_0.distcp"]
    assert (known.step, known.samples, known.world) == (2, 16, 2)
    assert manifest.verify(run.folders.run_checkpoints / "checkpoint-2", known) == []


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_in_writing_shards_is_named_and_leaves_no_files(run: Run, tmp_path: Path, fails: int) -> None:
    """Torch gathers the failures of all ranks, and raises them on each."""

    def work(number: int) -> str:
        def write(folder: Path) -> None:
            shards(number, 2)(folder)
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            raise CheckpointException("write", {fails: (full, traceback.StackSummary())})

        saver = Saver(replace(run, rank=number))
        saver.save(StepState(2, 16, ["torch.float32"], {}), write)
        with pytest.raises(NoSpace) as raised:
            saver.wait()
        return str(raised.value)

    first, second = on_two_ranks(tmp_path, work)
    assert first == second
    assert os.strerror(errno.ENOSPC) in first
    assert placed(run) == []


def test_other_errors_in_writing_shards_are_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such plan"), save_errors(tmp_path):
        raise CheckpointException("plan", {1: (ValueError("no such plan"), traceback.StackSummary())})


def test_no_rank_starts_to_write_alone(run: Run, tmp_path: Path) -> None:
    def work(number: int) -> list[str]:
        if number == 1:

            def fails(folder: Path, **_: Any) -> None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

            mock.patch.object(Path, "mkdir", fails).start()
        written: list[str] = []
        saver = Saver(replace(run, rank=number))
        saver.save(StepState(2, 16, ["torch.float32"], {}), lambda folder: written.append(str(folder)))
        with pytest.raises(WorkspaceUnusable):
            saver.wait()
        return written

    assert on_two_ranks(tmp_path, work) == [[], []]
    assert placed(run) == []


@pytest.mark.parametrize("fails", [0, 1])
def test_a_rank_that_cannot_write_fails_on_all_ranks(run: Run, tmp_path: Path, fails: int) -> None:
    ends = on_two_ranks(tmp_path, save(run, [2, 4, 6], fails=(fails, 4)))
    assert ends == [["checkpoint-2", "no space in step 4", "checkpoint-6"]] * 2
    assert sorted(path.name for path in run.folders.run_checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-6"]


def alone(run: Run, keep: int = 1) -> Run:
    """The run with one rank."""
    checkpoints = run.job.checkpoints.model_copy(update={"keep": keep})
    return replace(run, world_size=1, job=run.job.model_copy(update={"checkpoints": checkpoints}))


def test_an_error_in_deleting_old_checkpoints_does_not_fail_the_save(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run = alone(run)
    monkeypatch.setattr(paths, "newest_first", fails)
    assert save(run, [2, 4])(0) == ["checkpoint-2", "checkpoint-4"]
    assert placed(run) == ["checkpoint-2", "checkpoint-4"]
    assert "old checkpoints are not deleted" in caplog.text


def test_a_superseded_run_adds_and_deletes_nothing(run: Run) -> None:
    run = alone(run)
    mine = Fence(run.attempt.uid, 1, "run1", run.job.digest)
    mine.write(run.folders)
    assert save(run, [2, 4])(0) == ["checkpoint-2", "checkpoint-4"]
    assert placed(run) == ["checkpoint-4"]
    replace(mine, attempt=2, run_id="run2").write(run.folders)
    with pytest.raises(Superseded):
        save(run, [6])(0)
    assert placed(run) == ["checkpoint-4"]


@pytest.mark.parametrize("shard", [0, 1])
def test_ranks_agree_on_broken_checkpoints(run: Run, tmp_path: Path, shard: int) -> None:
    on_two_ranks(tmp_path, save(run, [2, 4]))
    broken = run.folders.run_checkpoints / "checkpoint-4"
    flip(broken / "optimizer_0" / f"__{shard}_0.distcp")
    chosen = on_two_ranks(tmp_path, lambda number: resume.find_resume_point(replace(run, rank=number)))
    assert [choice.step for choice in chosen] == [2, 2]
    assert [choice.broken for choice in chosen] == [{broken}] * 2
