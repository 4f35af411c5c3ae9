"""When a run is saved, what it goes on from, and what it keeps."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_api.status import Checkpoint
from finetune_trainer.checkpoints import find
from finetune_trainer.errors import Diverged, InvalidData, Preempted
from finetune_trainer.model import base
from finetune_trainer.stages.sft import workflow

from tests.trainer import tiny
from tests.trainer.test_equivalence import stopped_at

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A complete checkpoint of step 2; tests copy it."""
    root = tmp_path_factory.mktemp("saved")
    (root / "models").symlink_to(model.parent)
    tiny.save_rows(root / "data" / "rows.jsonl")
    run = tiny.make_run(root, tiny.job(checkpoints={"everySteps": 2}, training={"maxSteps": 3}))
    workflow.run(run)
    return run.folders.run_checkpoints / "checkpoint-2"


def cut_short(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])

    return damage


def missing(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


@pytest.mark.parametrize(
    "damage",
    [*(cut_short(name) for name in FILES), *(missing(name) for name in FILES)],
)
def test_a_damaged_checkpoint_is_skipped_for_an_older_whole_one(
    tmp_path: Path, checkpoint: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(checkpoint, tmp_path / "1-a" / "checkpoint-2")
    shutil.copytree(checkpoint, tmp_path / "2-b" / "checkpoint-3")
    state = tmp_path / "2-b" / "checkpoint-3" / "trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 2', '"global_step": 3'))
    assert find.newest(tmp_path) == find.Found(tmp_path / "2-b" / "checkpoint-3", 3)
    damage(tmp_path / "2-b" / "checkpoint-3")
    assert find.newest(tmp_path) == find.Found(tmp_path / "1-a" / "checkpoint-2", 2)
    assert "2-b/checkpoint-3 is skipped" in caplog.text


def test_another_runs_checkpoints_are_kept_until_this_run_has_its_own(tmp_path: Path, checkpoint: Path) -> None:
    old, own = tmp_path / "1-a" / "checkpoint-2", tmp_path / "2-b"
    shutil.copytree(checkpoint, old)
    (own / "checkpoint-9").mkdir(parents=True)  # being written, or left by a crash
    find.prune(tmp_path, own, keep=1)
    assert old.is_dir()

    shutil.copytree(checkpoint, own / "checkpoint-4")
    state = own / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 2', '"global_step": 4'))
    find.prune(tmp_path, own, keep=1)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")] == ["2-b/checkpoint-4"]


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
    found = find.newest(run.folders.checkpoints)
    assert found is None or not has_nan(found.path)


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
