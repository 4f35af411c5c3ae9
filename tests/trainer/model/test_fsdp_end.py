"""A sharded run that is stopped in the evaluation after the last step is saved, resumed, and gives its artifact."""

from pathlib import Path

import pytest

from tests.trainer.model.test_fsdp import job, run_of
from tests.trainer.support import fsdp_cpu, tiny
from tests.trainer.support.forge import Forge


@pytest.mark.parametrize("method", ["full", "lora"])
def test_shards_are_saved_after_the_last_step_and_become_the_artifact(root: Path, forge: Forge, method: str) -> None:
    tiny.save_rows(root / "data" / "held.jsonl", rows=5)
    evaluation = {"datasets": [{"source": "pvc://data/held.jsonl", "format": "openai"}]}
    resolved = job("fsdp", {"tuning": {"method": method}, "evaluation": evaluation}, maxSteps=4)
    fsdp_cpu.train(forge, root, resolved, 2, "straight")
    straight = run_of(root, resolved, "straight").folders

    fsdp_cpu.train(forge, root, resolved, 2, "resumed", stop_after=4)
    resumed = run_of(root, resolved, "resumed").folders
    assert [path.name for path in resumed.run_checkpoints.iterdir()] == ["checkpoint-4"]
    assert not resumed.artifact.exists()

    fsdp_cpu.train(forge, root, resolved, 2, "resumed", attempt=2)
    for weights in straight.artifact.glob("*.safetensors"):
        assert (resumed.artifact / weights.name).read_bytes() == weights.read_bytes()
    logged = [tiny.logged(run_of(root, resolved, name), "eval_loss") for name in ("straight", "resumed")]
    assert logged[0] == logged[1]
