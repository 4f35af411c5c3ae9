"""Kill -9 again and again in one run, half of them while a checkpoint is being written: nothing saved is lost, and what
comes out is what comes out without them. Sixty times in stage sft, eight times in each of the others."""

import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from finetune_trainer.checkpoints import manifest

from tests.trainer import stages
from tests.trainer.attempt import Mark, Series
from tests.trainer.forge import Child, Forge

KILLS = {stage: 60 if stage == "sft" else 8 for stage in stages.STAGES}
STEPS = {stage: 150 if stage == "sft" else 60 for stage in stages.STAGES}
"""More than they let it do: no attempt gets as far as its third save, or without one through its sixth step."""
TUNING = {"method": "lora", "lora": {"dropout": 0.1}}
BY_KILL = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Of the launcher; of a rank, which the launcher tells."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stages.save_volumes(tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize("stage", stages.STAGES)
def test_kills_lose_nothing(forge: Forge, root: Path, tmp_path: Path, stage: str) -> None:
    kills_wanted, steps_wanted = KILLS[stage], STEPS[stage]
    training = {"maxSteps": steps_wanted, "globalBatchSize": 4, "microBatchSize": 4}
    job = stages.job(stage, training=training, tuning=TUNING, checkpoints={"everySteps": 25})
    whole = Series(forge, root, tmp_path / "whole", job)
    assert forge.start(int, log=tmp_path / "first.log").wait() == 0  # the server's own start is no part of any run's
    began = time.monotonic()
    assert whole.run() == 0, whole.log
    times = Times(began, whole.told(Mark))

    job = stages.job(stage, training=training, tuning=TUNING, checkpoints={"everySteps": 1})
    killed = Series(forge, root, tmp_path / "killed", job)
    chance = random.Random(60)
    kills = in_a_save = newest = 0
    while kills < kills_wanted or in_a_save < kills_wanted / 2:
        child = killed.start()
        kill(child, chance, times, while_saving=2 * in_a_save <= kills)
        assert child.wait() in BY_KILL, killed.log
        kills += 1

        marks = [one for one in child.told if isinstance(one, Mark)]
        steps, begun, saved = ([mark.step for mark in marks if mark.what == what] for what in ("step", "save", "saved"))
        in_a_save += len(begun) > len(saved)
        assert steps[:1] in ([], [newest + 1]), "the attempt began elsewhere than at the newest checkpoint"
        there = {manifest.read(place).step: place for place in killed.home.glob("checkpoints/*/checkpoint-*")}
        assert [flaw for place in there.values() for flaw in manifest.verify(place, manifest.read(place))] == []
        newest = max(there, default=0)
        assert newest >= max(saved, default=0), "a checkpoint that was there is gone"

    assert killed.run() == 0, killed.log
    assert killed.weights == whole.weights
    assert killed.logged("current_steps") == list(range(1, steps_wanted + 1))
    assert killed.logged("loss") == whole.logged("loss")
    assert killed.logged("total_tokens") == whole.logged("total_tokens")
    assert not list(killed.home.glob("checkpoints/*/.*")), "what killed attempts had begun is left"


class Times:
    """How long things take, so that random moments fall everywhere."""

    def __init__(self, began: float, marks: list[Mark]) -> None:
        at = {what: [mark.at for mark in marks if mark.what == what] for what in ("step", "save", "saved")}
        self.start = at["step"][0] - began
        self.step = median(after - before for before, after in pairwise(at["step"]))
        self.save = median(after - before for before, after in zip(at["save"], at["saved"], strict=True))


def kill(child: Child, chance: random.Random, times: Times, *, while_saving: bool) -> None:
    """Kill the rank, or its launcher and so both, at a random moment of a save, or of the start and the first steps."""
    marks = (mark for mark in child.listen() if isinstance(mark, Mark))
    if while_saving:
        marks = (mark for mark in marks if mark.what == "save")
    awaited, longest, rank = chance.randint(1, 2) if while_saving else chance.randint(0, 5), times.start, child.pid
    for _ in range(awaited):
        rank, longest = next(marks).pid, times.save if while_saving else times.step
    time.sleep(chance.uniform(0, longest))
    os.kill(chance.choice([rank, child.pid]), signal.SIGKILL)
