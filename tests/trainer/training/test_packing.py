"""Documents of a pack train as if each had a row of its own."""

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.row import Row
from finetune_trainer.stages.sft import workflow

from tests.trainer.support import tiny

CLOSE = 1e-5
DOCUMENTS = [
    Row([9, 8, 7, 6, 5], [(2, 5)]),
    Row([11], []),
    Row([20, 21, 22], [(0, 3)]),
    Row([31, 32, 33, 34], [(1, 4)]),
]


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_a_packed_run_has_the_losses_of_an_unpacked_run(root: Path, attention: str) -> None:
    """Every step has all rows, so the two train on the same."""
    model = {"source": "pvc://models/model", "attention": attention}
    apart = tiny.make_run(
        root, tiny.job(model=model, training={"globalBatchSize": 24, "microBatchSize": 8}), workspace="apart"
    )
    workflow.run(apart)

    def packed(packs: int, workspace: str) -> Any:
        batch = {"packing": "bfd", "globalBatchSize": packs, "microBatchSize": 1}
        return tiny.make_run(root, tiny.job(model=model, training=batch), workspace=workspace)

    from finetune_trainer.data.splits import open_split

    packs = open_split(packed(1, "counted").prepared.data, "train").packs
    assert packs is not None
    together = packed(len(packs), "together")
    workflow.run(together)
    assert 1 < len(packs) < 12
    assert tiny.losses(together) == pytest.approx(tiny.losses(apart), abs=CLOSE)
    assert tiny.logged(together, "total_tokens") == tiny.logged(apart, "total_tokens")
