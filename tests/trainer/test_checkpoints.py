"""When a run is saved, what it goes on from, and what it keeps."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_api.status import Checkpoint
from finetune_trainer.checkpoints import choose
from finetune_trainer.errors import Diverged, InvalidData, Preempted
from finetune_trainer.model import base
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import workflow

from tests.trainer import tiny
from tests.trainer.test_equivalence import stopped_at


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Run:
    """A run that was told to stop in its fourth step, with checkpoints of steps 2 and 4. Tests copy its workspace."""
    root = tmp_path_factory.mktemp("saved")
    (root / "models").symlink_to(model.parent)
    tiny.save_rows(root / "data" / "rows.jsonl")
    run = stopped_at(tiny.make_run(root, tiny.job(checkpoints={"everySteps": 2})), 3)
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
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_any_flipped_bit_is_found_and_named_and_the_checkpoint_before_is_used(
    next_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    files = [file for file in checkpoint(next_run, 4).rglob("*") if file.is_file()]
    assert {file.name for file in files} > {"adapter_model.safetensors", "optimizer.pt", "stage.json", "manifest.json"}
    assert choose.choose(next_run).path == checkpoint(next_run, 4)
    for file in files:
        flip(file)
        caplog.clear()
        chosen = choose.choose(next_run)
        assert chosen.path == checkpoint(next_run, 2), file
        assert chosen.broken == {checkpoint(next_run, 4)}
        assert f"checkpoint-4 is skipped: {file.name} is not as it was written" in caplog.text
        flip(file)
    assert choose.choose(next_run).path == checkpoint(next_run, 4)


def test_checkpoints_come_every_so_many_steps_and_keep_is_kept(root: Path) -> None:
    saved: list[Checkpoint] = []
    run = tiny.make_run(root, tiny.job(checkpoints={"everySteps": 1, "keep": 2}, training={"maxSteps": 5}))
    workflow.run(replace(run, report_checkpoint=saved.append))
    assert [c.step for c in saved] == [1, 2, 3, 4]  # after the last step comes the artifact
    assert sorted(path.name for path in run.folders.run_checkpoints.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_checkpoints_come_by_the_clock(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.stages import steps

    minutes = iter(range(1000))

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return 60.0 * next(minutes)  # every look at the clock takes a minute

    monkeypatch.setattr(steps, "time", Clock)
    saved: list[Checkpoint] = []
    run = tiny.make_run(root, tiny.job(checkpoints={"everyMinutes": 2}, training={"maxSteps": 6}))
    workflow.run(replace(run, report_checkpoint=saved.append))
    assert [c.step for c in saved] == [2, 4]


def test_no_save_is_begun_that_cannot_end_in_time(root: Path) -> None:
    job = tiny.job(checkpoints={"everySteps": 2})
    run = stopped_at(tiny.make_run(root, job), 2, seconds_left=lambda: 0.0)
    with pytest.raises(Preempted, match=r"too little time to save: the next attempt goes on from step 2 "):
        workflow.run(run)
    assert [path.name for path in run.folders.run_checkpoints.iterdir()] == ["checkpoint-2"]


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


def test_a_loss_that_is_no_number_ends_the_run_and_is_never_saved(root: Path) -> None:
    job = tiny.job(
        training={"learningRate": 1.0, "maxGradNorm": 0, "maxSteps": 200, "scheduler": "constant", "weightDecay": 1.0},
        tuning={"method": "full"},
        checkpoints={"everySteps": 1, "keep": 1},
    )
    run = tiny.make_run(root, job)
    blow_up(run.prepared.model, root / "models2" / "model")
    run = replace(run, prepared=replace(run.prepared, model=root / "models2" / "model"))
    with pytest.raises(Diverged, match=r"step \d+: .* Lower training.learningRate \(1\)"):
        workflow.run(run)
    found = choose.choose(run).path
    assert found is None or not has_nan(found)


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
