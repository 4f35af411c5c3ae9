"""Stages dpo and kto with sharded weights: results are those of ranks with whole models."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.checkpoints.test_exact import Sharded, sharded
from tests.trainer.support import stages
from tests.trainer.support.attempt import Series
from tests.trainer.support.forge import Forge
from tests.trainer.training.test_reference import save_adapter

NAMES = ("loss", "rewards/chosen", "eval_loss")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = stages.save_volumes(tmp_path_factory.mktemp("root"))
    save_adapter(root)
    return root


@pytest.mark.parametrize(
    ("stage", "tuning", "more"),
    [
        ("dpo", {"method": "full"}, {"dpo": {"sftWeight": 0.1}}),
        ("dpo", {"method": "full"}, {"dpo": {"precomputeReference": True}}),
        ("dpo", {"method": "lora", "adapter": {"source": "pvc://data/earlier"}}, {}),
        ("kto", {"method": "freeze", "freeze": {"layers": 1}}, {}),
        ("kto", {"method": "lora", "lora": {"rank": 4}}, {}),
    ],
    ids=["dpo-full", "dpo-precomputed", "dpo-continued", "kto-freeze", "kto-lora"],
)
def test_sharded_models_have_the_losses_of_whole_models(
    forge: Forge, root: Path, tmp_path: Path, stage: str, tuning: dict[str, Any], more: dict[str, Any]
) -> None:
    sections = {"tuning": tuning, "evaluation": {"splitFraction": 0.25, "everySteps": 2}, **more}
    training = {"maxSteps": 3, "microBatchSize": 2, "learningRate": 0.01}
    whole = Series(forge, root, tmp_path / "whole", stages.job(stage, training=training, **sections))
    assert whole.run() == 0, whole.log
    job = stages.job(stage, training=training | {"parallelism": "fsdp"}, **sections)
    shares = Series(forge, root, tmp_path / "shares", job, sharded)
    assert shares.run(world=2) == 0, shares.log
    assert set(shares.events(Sharded)) == {Sharded(True)}
    for name in NAMES:
        assert shares.logged(name) == pytest.approx(whole.logged(name), abs=1e-5), name
    assert whole.logged("rewards/chosen")[0] == 0.0
