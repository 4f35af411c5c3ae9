"""The table of `finetune estimate`: made of the config of a model alone, for every method and number of GPUs."""

from pathlib import Path

from finetune_trainer.prepare.memory_table import METHODS, estimates

from tests.trainer.support import tiny


def test_methods_and_gpus_are_compared_without_weights(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", hidden_size=128, num_hidden_layers=2)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    found = {(row["method"], row["gpus"]): row for row in estimates(tiny.job(), folder, (1, 4))}
    assert set(found) == {(method, gpus) for method in METHODS for gpus in (1, 4)}
    assert found["qlora", 1]["certainBytes"] < found["lora", 1]["certainBytes"] < found["full", 1]["certainBytes"]
    assert found["full", 4]["certainBytes"] < found["full", 1]["certainBytes"]
    assert {row["parallelism"] for key, row in found.items() if key[1] == 4} == {"fsdp", "ddp"}
    assert all(row["bytes"] <= row["bytesWithoutRecomputing"] for row in found.values())
