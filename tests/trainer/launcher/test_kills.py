"""A job that is killed (SIGKILL) again and again, half of the times during a save, loses no checkpoint and ends
with the weights of a job that is not killed. With --sweep, sixty kills in stage sft and eight in each other stage."""

import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from finetune_trainer.checkpoints import manifest

from tests.trainer.support import stages
from tests.trainer.support.attempt import Mark, Series
from tests.trainer.support.forge import Child, Forge

STEPS = {60: 200, 15: 90, 8: 60}
"""By kills. More than they allow, for no attempt ends more than six steps."""
TUNING = {"method": "lora", "lora": {"dropout": 0.1}}
BY_KILL = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes: the launcher was killed; a rank was killed, which the launcher reports."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stages.save_volumes(tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize(
    ("stage", "kills_wanted"),
    [
        ("sft", 15),
        ("ppo", 8),
        pytest.param("sft", 60, marks=pytest.mark.sweep),
        *(pytest.param(stage, 8, marks=pytest.mark.sweep) for stage in stages.STAGES if stage not in ("sft", "ppo")),
    ],
)
def test_kills_lose_nothing(forge: Forge, root: Path, tmp_path: Path, stage: str, kills_wanted: int) -> None:
    steps_wanted = STEPS[kills_wanted]
    training = {"maxSteps": steps_wanted, "globalBatchSize": 4, "microBatchSize": 4}
    job = stages.job(stage, training=training, tuning=TUNING, checkpoints={"everySteps": 25})
    whole = Series(forge, root, tmp_path / "whole", job)
    assert forge.start(int, log=tmp_path / "first.log").wait() == 0  # wait for the start of the fork server
    began = time.monotonic()
    assert whole.run() == 0, whole.log
    times = Times(began, whole.events(Mark))

    job = stages.job(stage, training=training, tuning=TUNING, checkpoints={"everySteps": 1})
    killed = Series(forge, root, tmp_path / "killed", job)
    chance = random.Random(60)
    kills = in_a_save = newest = 0
    while kills < kills_wanted or in_a_save < kills_wanted / 2:
        child = killed.start()
        kill(child, chance, times, while_saving=2 * in_a_save <= kills)
        assert child.wait() in BY_KILL, killed.log
        kills += 1

        marks = [mark for mark in child.received if isinstance(mark, Mark)]
        steps, begun, saved = ([mark.step for mark in marks if mark.what == what] for what in ("step", "save", "saved"))
        in_a_save += len(begun) > len(saved)
        assert steps[:1] in ([], [newest + 1]), "the attempt did not start from the newest checkpoint"
        folders = list(killed.home.glob("checkpoints/*/checkpoint-*"))
        manifests = [manifest.read(folder) for folder in folders]
        assert [flaw for pair in zip(folders, manifests, strict=True) for flaw in manifest.verify(*pair)] == []
        newest = max((entry.step for entry in manifests), default=0)
        assert newest >= max(saved, default=0), "a saved checkpoint is gone"

    assert killed.run() == 0, killed.log
    assert killed.weights == whole.weights
    assert killed.logged("current_steps") == list(range(1, steps_wanted + 1))
    assert killed.logged("loss") == whole.logged("loss")
    assert killed.logged("total_tokens") == whole.logged("total_tokens")
    assert not list(killed.home.glob("checkpoints/*/.*")), "unfinished files of killed attempts are left"


class Times:
    """Durations of the start, a step and a save, so that random moments fall everywhere."""

    def __init__(self, began: float, marks: list[Mark]) -> None:
        at = {what: [mark.at for mark in marks if mark.what == what] for what in ("step", "save", "saved")}
        self.start = at["step"][0] - began
        self.step = median(after - before for before, after in pairwise(at["step"]))
        self.save = median(after - before for before, after in zip(at["save"], at["saved"], strict=True))


def kill(child: Child, chance: random.Random, times: Times, *, while_saving: bool) -> None:
    """Kill the rank, or its launcher and so both, at a random moment in a save, or in the start and the first steps."""
    marks = (mark for mark in child.listen() if isinstance(mark, Mark))
    if while_saving:
        marks = (mark for mark in marks if mark.what == "save")
    awaited, longest, rank = chance.randint(1, 2) if while_saving else chance.randint(0, 5), times.start, child.pid
    for _ in range(awaited):
        rank, longest = next(marks).pid, times.save if while_saving else times.step
    # Where the machine has become faster since `times`, the whole training could fit into this pause.
    for message in child.listen_for(chance.uniform(0, longest)):
        if isinstance(message, Mark) and message.what == "saved":
            break
    os.kill(chance.choice([rank, child.pid]), signal.SIGKILL)
