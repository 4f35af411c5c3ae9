"""GPU memory that is used up, through the real launcher; the error is torch's, raised on the CPU."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from finetune_api.contract import ResolvedJob

from tests.trainer import tiny
from tests.trainer.forge import Forge
from tests.trainer.nodes import Nodes


def job(root: Path) -> ResolvedJob:
    tiny.save_rows(root / "data" / "held.jsonl", rows=11)
    held = {"source": "pvc://data/held.jsonl", "format": "openai"}
    return tiny.job(evaluation={"datasets": [held], "everySteps": 2}, training={"maxSteps": 4})


def room_for(rows: int, rank: int) -> None:
    """In an evaluation rank 1 has room for so many rows at once."""
    import torch
    from finetune_trainer.stages.sft.trainer import SftTrainer

    measure = SftTrainer.scored

    def scored(self: Any, model: Any, batch: Any) -> Any:
        if rank == 1 and not model.training and len(batch["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return measure(self, model, batch)

    mock.patch.object(SftTrainer, "scored", scored).start()


def room_for_one(rank: int) -> None:
    room_for(1, rank)


def room_for_none(rank: int) -> None:
    room_for(0, rank)


def room_for_all(rank: int) -> None:
    room_for(100, rank)


def test_an_evaluation_without_room_goes_on_with_fewer_rows(forge: Forge, root: Path) -> None:
    (root / "ample").mkdir()
    for name in ("models", "data"):
        (root / "ample" / name).symlink_to(root / name)
    ample = Nodes(forge, root / "ample", job(root), nodes=1, ranks=2)
    assert ample.run(room_for_all) == [0]
    scarce = Nodes(forge, root, job(root), nodes=1, ranks=2)
    assert scarce.run(room_for_one) == [0]
    log = (scarce.etc(0) / "log").read_text()
    assert log.count("the evaluation goes on with 2 rows at once") == 1
    assert log.count("the evaluation goes on with 1 rows at once") == 1
    assert scarce.logged("eval_loss") == pytest.approx(ample.logged("eval_loss"), abs=1e-5)
    assert scarce.logged("loss") == ample.logged("loss")


def test_an_evaluation_without_room_for_a_row_is_told(forge: Forge, root: Path) -> None:
    pod = Nodes(forge, root, job(root), nodes=1, ranks=2)
    assert pod.run(room_for_none) == [71]
    told = pod.said(0).out_of_memory
    assert told is not None
    assert (told.phase, told.rank, told.micro_batch_size) == ("evaluate", 1, 1)
