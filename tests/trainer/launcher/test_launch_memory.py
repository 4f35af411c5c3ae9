"""GPU memory that is used up, with the real launcher. The error is torch's, raised on the CPU."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from finetune_api.contract import ResolvedJob

from tests.trainer.support import tiny
from tests.trainer.support.forge import Forge
from tests.trainer.support.nodes import Nodes


def job(root: Path) -> ResolvedJob:
    tiny.save_rows(root / "data" / "held.jsonl", rows=11)
    held = {"source": "pvc://data/held.jsonl", "format": "openai"}
    return tiny.job(evaluation={"datasets": [held], "everySteps": 2}, training={"maxSteps": 4})


def memory_for(rows: int, rank: int) -> None:
    """In an evaluation rank 1 has memory for ``rows`` rows at once."""
    import torch
    from finetune_trainer.stages.sft.trainer import SftTrainer

    original = SftTrainer.evaluation_step

    def evaluation_step(self: Any, model: Any, batch: Any) -> Any:
        if rank == 1 and len(batch["lengths"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, model, batch)

    mock.patch.object(SftTrainer, "evaluation_step", evaluation_step).start()


def memory_for_one(rank: int) -> None:
    memory_for(1, rank)


def memory_for_none(rank: int) -> None:
    memory_for(0, rank)


def memory_for_all(rank: int) -> None:
    memory_for(100, rank)


def test_an_evaluation_out_of_memory_continues_with_fewer_rows(forge: Forge, root: Path) -> None:
    (root / "ample").mkdir()
    for name in ("models", "data"):
        (root / "ample" / name).symlink_to(root / name)
    ample = Nodes(forge, root / "ample", job(root), nodes=1, ranks=2)
    assert ample.run(memory_for_all) == [0]
    scarce = Nodes(forge, root, job(root), nodes=1, ranks=2)
    assert scarce.run(memory_for_one) == [0]
    log = (scarce.etc(0) / "log").read_text()
    assert log.count("The evaluation continues with 2 rows at once") == 1
    assert log.count("The evaluation continues with 1 rows at once") == 1
    assert scarce.logged("eval_loss") == pytest.approx(ample.logged("eval_loss"), abs=1e-5)
    assert scarce.logged("loss") == ample.logged("loss")


def test_an_evaluation_without_memory_for_one_row_is_reported(forge: Forge, root: Path) -> None:
    pod = Nodes(forge, root, job(root), nodes=1, ranks=2)
    assert pod.run(memory_for_none) == [71]
    details = pod.result(0).out_of_memory
    assert details is not None
    assert (details.phase, details.rank, details.micro_batch_size) == ("evaluate", 1, 1)
