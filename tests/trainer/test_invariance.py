"""How a global batch is cut into micro-batches, and over how many ranks, changes no loss of any stage."""

from pathlib import Path

import pytest

from tests.trainer import stages
from tests.trainer.attempt import Series
from tests.trainer.forge import Forge

CLOSE = 1e-5
STEPS = 8
"""More than two epochs of three, the last step of each filled up; of ppo two rollouts of four."""
NUMBERS = {
    "dpo": ("rewards/margins", "rewards/accuracies"),
    "kto": ("kl", "rewards/chosen"),
    "ppo": ("reward", "kl"),
    "rm": ("accuracy", "margin"),
}
"""What is logged besides the loss and doesn't hang on the cut, either."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stages.save_volumes(tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize("stage", stages.STAGES)
def test_losses_do_not_depend_on_micro_batches_and_ranks(forge: Forge, root: Path, tmp_path: Path, stage: str) -> None:
    job = stages.job(stage, "lora", training={"maxSteps": STEPS, "microBatchSize": 8, "learningRate": 0.01})
    whole = Series(forge, root, tmp_path / "8x1", job)
    assert whole.run(micro=8) == 0, whole.log
    assert len(whole.logged("loss")) == STEPS
    for world, micro in ((1, 4), (1, 1), (2, 4)):
        other = Series(forge, root, tmp_path / f"{world}-{micro}", job)
        assert other.run(world=world, micro=micro) == 0, other.log
        for name in ("loss", "total_tokens", *NUMBERS.get(stage, ())):
            assert other.logged(name) == pytest.approx(whole.logged(name), abs=CLOSE), (name, world, micro)
