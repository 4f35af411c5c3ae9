"""When checkpoints are saved, from which one a run resumes, and which are kept."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from finetune_api.micro_batch import MicroBatch
from finetune_api.status import Checkpoint, Progress
from finetune_trainer.checkpoints import manifest, resume, stage_state
from finetune_trainer.checkpoints.saver import Saver
from finetune_trainer.errors import (
    Diverged,
    InvalidData,
    NoSpace,
    Preempted,
    Superseded,
    WorkspaceOccupied,
    WorkspaceUnusable,
)
from finetune_trainer.model import base
from finetune_trainer.reporting.counters import Counters
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import workflow
from finetune_trainer.training import checkpointing
from finetune_trainer.training.trainer import BaseTrainer
from finetune_trainer.workspace.fencing import Fence

from tests.trainer.support import tiny
from tests.unit.trainer.checkpoints.test_manifest import other_version


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Run:
    """A run that was stopped in its fourth step, with checkpoints of steps 2 and 4. Tests copy its workspace."""
    root = tmp_path_factory.mktemp("saved")
    (root / "models").symlink_to(model.parent)
    tiny.save_rows(root / "data" / "rows.jsonl")
    run = tiny.stopped_at(tiny.make_run(root, tiny.job(checkpoints={"everySteps": 2})), 3)
    with pytest.raises(Preempted):
        workflow.run(run)
    return run


@pytest.fixture
def next_run(saved: Run, tmp_path: Path) -> Run:
    """The second attempt, in a workspace of its own."""
    shutil.copytree(saved.folders.workspace.parent, tmp_path / "copy", symlinks=True)
    return tiny.make_run(tmp_path / "copy", saved.job, attempt=2)


def checkpoint(run: Run, step: int) -> Path:
    return run.folders.checkpoints / "1-run1" / f"checkpoint-{step}"


def flip(file: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_any_flipped_bit_is_reported_and_the_checkpoint_before_is_used(
    next_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    files = [file for file in checkpoint(next_run, 4).rglob("*") if file.is_file()]
    assert {file.name for file in files} > {"adapter_model.safetensors", "optimizer.pt", "stage.json", "manifest.json"}
    assert resume.find_resume_point(next_run).path == checkpoint(next_run, 4)
    for file in files:
        flip(file)
        caplog.clear()
        chosen = resume.find_resume_point(next_run)
        assert chosen.path == checkpoint(next_run, 2), file
        assert chosen.broken == {checkpoint(next_run, 4)}
        assert f"checkpoint-4 is skipped: {file.name} is not as it was written" in caplog.text
        flip(file)
    assert resume.find_resume_point(next_run).path == checkpoint(next_run, 4)


def test_a_run_resumes_before_a_broken_checkpoint_and_writes_it_again(next_run: Run) -> None:
    before = tiny.losses(next_run)
    flip(checkpoint(next_run, 4) / "optimizer.pt")
    reported: list[Checkpoint] = []
    progress: list[Progress] = []
    workflow.run(replace(next_run, report_checkpoint=reported.append, report_progress=progress.append))
    assert {each.start_step for each in progress} == {2}
    whole = checkpoint(next_run, 2).relative_to(next_run.folders.workspace).as_posix()
    assert (reported[0].attempt, reported[0].step, reported[0].path) == (1, 2, whole)
    assert [(each.attempt, each.step) for each in reported[1:2]] == [(next_run.attempt.attempt, 4)]
    assert tiny.losses(next_run)[:4] == before
    assert len(tiny.losses(next_run)) == 6
    assert not checkpoint(next_run, 4).exists()
    assert manifest.read_complete(next_run.folders.run_checkpoints / "checkpoint-4").step == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"globalBatchSize": 4}, "training.globalBatchSize is 8, this job's is 4"),
        ({"learningRate": 0.5}, "job digest is sha256:"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(next_run: Run, change: dict[str, object], named: str) -> None:
    other = tiny.job(checkpoints={"everySteps": 2}, training=change)
    if "globalBatchSize" in change:
        other = other.model_copy(update={"digest": next_run.job.digest})
    with pytest.raises(WorkspaceOccupied, match=rf"1-run1/checkpoint-4 belongs to another training: its {named}"):
        resume.find_resume_point(replace(next_run, job=other))


def test_a_checkpoint_of_another_version_is_refused(next_run: Run) -> None:
    other_version(checkpoint(next_run, 4), format=2)
    with pytest.raises(WorkspaceOccupied, match=r"1-run1/checkpoint-4 was written by another version of the trainer"):
        resume.find_resume_point(next_run)


def test_a_temporarily_unreadable_checkpoint_is_not_skipped(next_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr("finetune_trainer.checkpoints.manifest.hash_stream", fails)
        with pytest.raises(OSError, match="Input/output"):
            resume.find_resume_point(next_run)
    assert resume.find_resume_point(next_run).step == 4


def test_a_warning_is_logged_when_all_checkpoints_are_broken(next_run: Run, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 4):
        flip(checkpoint(next_run, step) / "optimizer.pt")
    assert resume.find_resume_point(next_run).path is None
    assert "all 2 checkpoints of this job are broken: training starts from the beginning" in caplog.text


def test_a_superseded_run_keeps_its_successors_artifact(next_run: Run) -> None:
    next_run.folders.artifact.mkdir(parents=True)
    (next_run.folders.artifact / "adapter_model.safetensors").write_text("the successor's")
    Fence(next_run.attempt.uid, 3, "run3", next_run.job.digest).write(next_run.folders)
    with pytest.raises(Superseded, match="attempt 3"):
        workflow.run(next_run)
    assert [file.read_text() for file in next_run.folders.artifact.iterdir()] == ["the successor's"]
    assert not list(next_run.folders.job.glob(".artifact*"))


def test_a_run_with_another_micro_batch_resumes_from_it(next_run: Run) -> None:
    assert resume.find_resume_point(replace(next_run, micro_batch=MicroBatch(2))).step == 4


def test_checkpoints_are_saved_every_so_many_steps_and_keep_is_respected(root: Path) -> None:
    reported: list[Checkpoint] = []
    run = tiny.make_run(root, tiny.job(checkpoints={"everySteps": 1, "keep": 2}, training={"maxSteps": 5}))

    def report(checkpoint: Checkpoint) -> None:
        assert (run.folders.workspace / checkpoint.path / "manifest.json").is_file()  # reported after it exists
        reported.append(checkpoint)

    workflow.run(replace(run, report_checkpoint=report))
    assert [c.step for c in reported] == [1, 2, 3, 4]  # the artifact follows the last step
    assert all(c.seconds is not None for c in reported)
    assert sorted(path.name for path in run.folders.run_checkpoints.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_checkpoints_are_saved_after_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = iter(range(1000))

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return 60.0 * next(minutes)  # every look at the clock takes a minute

    monkeypatch.setattr(checkpointing, "time", Clock)
    reported: list[Checkpoint] = []
    run = tiny.make_run(root, tiny.job(checkpoints={"everyMinutes": 3}, training={"maxSteps": 8}))
    workflow.run(replace(run, report_checkpoint=reported.append))
    # The clock is read when training begins, after each step and when a save is due. A save that takes a moment
    # starts a moment early, so it is complete in time.
    assert [c.step for c in reported] == [3, 6]


def test_a_checkpoint_has_its_evaluation_and_the_best_is_kept(root: Path) -> None:
    tiny.save_rows(root / "data" / "held.jsonl", rows=5)
    job = tiny.job(
        evaluation={"datasets": [{"source": "pvc://data/held.jsonl", "format": "openai"}], "everySteps": 2},
        checkpoints={"everySteps": 2, "keep": 1},
        training={"maxSteps": 9, "learningRate": 0.3, "scheduler": "constant"},  # soon gets worse
    )
    run = tiny.make_run(root, job)
    outcome = workflow.run(run)
    losses = dict(zip((2, 4, 6, 8), tiny.logged(run, "eval_loss"), strict=False))
    best = min(losses, key=lambda step: losses[step])
    checkpoints = [manifest.read(path) for path in run.folders.run_checkpoints.iterdir()]
    assert {checkpoint.step: checkpoint.metrics["eval_loss"] for checkpoint in checkpoints} == {
        best: losses[best],
        8: losses[8],
    }
    assert float(outcome.metrics["bestEvalLoss"]) == pytest.approx(min(tiny.logged(run, "eval_loss")))


@pytest.mark.parametrize("where", ["library", "background", "rename"])
@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, NoSpace), (errno.EROFS, WorkspaceUnusable)])
def test_a_failed_save_ends_the_run_and_keeps_the_last_good_checkpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, error: type[Exception]
) -> None:
    owner, name = {"library": (torch, "save"), "background": (manifest, "hash_files"), "rename": (os, "rename")}[where]
    original = getattr(owner, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if any("checkpoint-4" in str(arg) for arg in args):
            raise OSError(number, os.strerror(number))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    reported: list[Checkpoint] = []
    run = replace(
        tiny.make_run(root, tiny.job(checkpoints={"everySteps": 2}, training={"maxSteps": 9})),
        report_checkpoint=reported.append,
    )
    with pytest.raises(error):
        workflow.run(run)
    assert [c.step for c in reported] == [2]
    assert [path.name for path in run.folders.run_checkpoints.iterdir()] == ["checkpoint-2"]
    assert resume.find_resume_point(run).step == 2


@pytest.fixture
def fails_while_saving(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Event], Run]]:
    """A run whose third step fails with these words, while the save of step 2 waits for the event."""
    given_up = Event()

    def make(words: str, landed: Event) -> Run:
        hash_files, training_step = manifest.hash_files, BaseTrainer.training_step

        def waits(*args: Any) -> Any:
            while not landed.wait(0.05) and not given_up.is_set():
                pass
            return hash_files(*args)

        def fails(self: BaseTrainer, *args: Any) -> Any:
            if self.state.global_step == 2:
                assert self.saver.in_flight
                raise RuntimeError(words)
            return training_step(self, *args)

        monkeypatch.setattr(manifest, "hash_files", waits)
        monkeypatch.setattr(BaseTrainer, "training_step", fails)
        return tiny.make_run(root, tiny.job(checkpoints={"everySteps": 2}))

    yield make
    given_up.set()


def test_an_error_does_not_lose_a_checkpoint_in_flight(
    fails_while_saving: Callable[[str, Event], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    landed, reported = Event(), list[Checkpoint]()
    run = replace(fails_while_saving("CUDA out of memory", landed), report_checkpoint=reported.append)
    finish_within = Saver.finish_within

    def settling(self: Saver, patience: float) -> None:
        landed.set()
        finish_within(self, max(patience, 60.0))

    monkeypatch.setattr(Saver, "finish_within", settling)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        workflow.run(run)
    assert [c.step for c in reported] == [2]
    assert resume.find_resume_point(run).step == 2


@pytest.mark.parametrize("words", ["CUDA out of memory", "Connection closed by peer"])
def test_an_error_does_not_wait_forever_for_a_save(
    fails_while_saving: Callable[[str, Event], Run],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    words: str,
) -> None:
    monkeypatch.setattr(checkpointing, "AT_MOST", 0.0)
    run = fails_while_saving(words, Event())
    with pytest.raises(RuntimeError, match=words):
        workflow.run(run)
    assert resume.find_resume_point(run).path is None
    # A peer that is gone is not waited for at all.
    assert ("the checkpoint in flight is lost" in caplog.text) == (words == "CUDA out of memory")


def test_the_state_of_a_stage_is_loaded_again(tmp_path: Path) -> None:
    class Buffer:
        def __init__(self, *values: float) -> None:
            self.values, self.coefficient = torch.tensor(values), sum(values)

        def state_dict(self) -> dict[str, Any]:
            return {"values": self.values, "coefficient": self.coefficient}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.values, self.coefficient = state["values"], state["coefficient"]

    counted = Counters(tokens=70, samples=8)
    counted.record_evaluation(2, 1.5)
    counted.record_evaluation(4, float("nan"))
    stage_state.save(tmp_path, {"counters": counted, "stage": Buffer(1.0, 2.5)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage.json", "stage.safetensors"]

    buffer, counters = Buffer(), Counters()
    stage_state.load(tmp_path, {"counters": counters, "stage": buffer})
    assert (buffer.values.tolist(), buffer.coefficient) == ([1.0, 2.5], 3.5)
    assert (counters.tokens, counters.samples, counters.best_loss, counters.best_step) == (70, 8, 1.5, 2)
    assert counters.seconds >= counted.state_dict()["seconds"] - 1


def test_no_save_is_started_that_cannot_end_in_time(root: Path) -> None:
    job = tiny.job(checkpoints={"everySteps": 2})
    run = tiny.stopped_at(tiny.make_run(root, job), 2, seconds_left=lambda: 0.0)
    with pytest.raises(Preempted, match=r"too little time to save: the next attempt resumes from step 2 "):
        workflow.run(run)
    assert [path.name for path in run.folders.run_checkpoints.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("total", [5, 6])  # within an epoch, and at the end of one
@pytest.mark.parametrize("when", ["last step", "final evaluation"])
def test_a_stop_near_the_end_leaves_the_evaluation_and_the_artifact_to_the_next_attempt(
    root: Path, total: int, when: str
) -> None:
    tiny.save_rows(root / "data" / "held.jsonl", rows=5)
    job = tiny.job(
        evaluation={"datasets": [{"source": "pvc://data/held.jsonl", "format": "openai"}]},
        training={"maxSteps": total},
    )
    straight = tiny.make_run(root, job, workspace="straight")
    expected = workflow.run(straight)

    stopped = tiny.stopped_at(tiny.make_run(root, job), total if when == "final evaluation" else total - 1)
    goes_on = rf"resumes from step {total} \(jobs/tiny/checkpoints/1-run1/checkpoint-{total}\)"
    for _ in range(2):  # the second run is stopped in the evaluation, too, and has nothing to save
        with pytest.raises(Preempted, match=goes_on):
            workflow.run(stopped)
        assert not stopped.folders.artifact.exists()
        stopped = tiny.stopped_at(tiny.make_run(root, job, attempt=2), total)

    third = tiny.make_run(root, job, attempt=3)
    outcome = workflow.run(third)
    assert not list(third.folders.run_checkpoints.iterdir())
    assert tiny.losses(third) == tiny.losses(straight)
    for name in ("steps", "tokens", "evalLoss", "bestEvalLoss", "finalLoss", "trainLoss"):
        assert outcome.metrics[name] == expected.metrics[name]
    weights = "adapter_model.safetensors"
    assert (third.folders.artifact / weights).read_bytes() == (straight.folders.artifact / weights).read_bytes()


def test_a_stop_before_training_ends_at_once(root: Path) -> None:
    run = replace(tiny.make_run(root, tiny.job()), stop_requested=lambda: True)
    with pytest.raises(Preempted, match="before training began"):
        workflow.run(run)
    assert not list(run.folders.run_checkpoints.iterdir())


def test_bad_data_ends_a_run_before_the_model_is_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "data" / "rows.jsonl").write_text('{"messages": []}\n')
    monkeypatch.setattr(base, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InvalidData, match=r"rows\.jsonl:1: messages: found list"):
        workflow.run(tiny.make_run(root, tiny.job()))


def test_a_loss_of_nan_ends_the_run_and_is_never_saved(root: Path) -> None:
    job = tiny.job(
        training={"learningRate": 1.0, "maxGradNorm": 0, "maxSteps": 200, "scheduler": "constant", "weightDecay": 1.0},
        tuning={"method": "full"},
        checkpoints={"everySteps": 1, "keep": 1},
    )
    run = tiny.make_run(root, job)
    blow_up(run.prepared.model, root / "models2" / "model")
    run = replace(run, prepared=replace(run.prepared, model=root / "models2" / "model"))
    with pytest.raises(Diverged, match=r"Step \d+: .* Lower training.learningRate \(1\)"):
        workflow.run(run)
    path = resume.find_resume_point(run).path
    assert path is None or not has_nan(path)


def blow_up(model: Path, to: Path) -> None:
    """The same model with weights so large that its logits overflow."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, to)
    weights = load_file(to / "model.safetensors")
    weights["model.norm.weight"] *= 1e38
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})


def has_nan(checkpoint: Path) -> bool:
    from safetensors.torch import load_file

    return any(bool(tensor.isnan().any()) for tensor in load_file(checkpoint / "model.safetensors").values())


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json", "stage.json"])
def test_a_checkpoint_of_somebody_else_runs_no_code_and_ends_the_job(next_run: Run, tmp_path: Path, name: str) -> None:
    """Whoever writes into the workspace can also write a manifest that fits."""
    newest = max(next_run.folders.checkpoints.rglob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    torch.save(Bomb(tmp_path / "ran"), newest / name)
    known = manifest.read(newest)
    files = manifest.hash_files(newest, manifest.list_files(newest))
    manifest.write(newest, known.model_copy(update={"files": files}))
    with pytest.raises(WorkspaceOccupied, match="can't be loaded"):
        workflow.run(next_run)
    assert not (tmp_path / "ran").exists()
