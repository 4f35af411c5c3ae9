"""Two attempts alive on one workspace: a pod that the cluster lost sight of trains on beside the pod that follows it.
Time and again the older one ends by itself, and the job ends with the weights of one that was left alone."""

import random
from pathlib import Path

import pytest
from finetune_api.exit_codes import ExitCode
from finetune_trainer.checkpoints import manifest

from tests.trainer.support import stages
from tests.trainer.support.attempt import Mark, Series
from tests.trainer.support.forge import Child, Forge

STEPS = 150
TUNING = {"method": "lora", "lora": {"dropout": 0.1}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stages.save_volumes(tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize("generations", [6, pytest.param(20, marks=pytest.mark.sweep)])
def test_two_generations_on_one_workspace_do_no_harm(
    forge: Forge, root: Path, tmp_path: Path, generations: int
) -> None:
    training = {"maxSteps": STEPS, "globalBatchSize": 4, "microBatchSize": 4}
    job = stages.job("sft", training=training, tuning=TUNING, checkpoints={"everySteps": 100})
    alone = Series(forge, root, tmp_path / "alone", job)
    assert alone.run() == 0, alone.log

    job = stages.job("sft", training=training, tuning=TUNING, checkpoints={"everySteps": 1})
    series = Series(forge, root, tmp_path / "generations", job)
    chance = random.Random(20)
    older = series.start()
    for generation in range(generations):
        reach(older, chance.choice(["step", "save", "saved"]), chance.randint(1, 3))
        newer = series.start()
        assert older.wait() == ExitCode.SUPERSEDED, f"generation {generation}: {older.log.read_text()}"
        reach(newer, "step", 1)  # it has read the newest checkpoint, and removes none before it has saved its own
        folders = list(series.home.glob("checkpoints/*/checkpoint-*"))
        assert [flaw for folder in folders for flaw in manifest.verify(folder, manifest.read(folder))] == []
        older = newer
    assert older.wait() == 0, series.log
    assert series.weights == alone.weights
    assert series.logged("current_steps") == list(range(1, STEPS + 1))
    assert series.logged("loss") == alone.logged("loss")


def reach(child: Child, what: str, times: int) -> None:
    """Wait for an event of the rank, so many times."""
    marks = (mark for mark in child.listen() if isinstance(mark, Mark) and mark.what == what)
    for _ in range(times):
        next(marks)
