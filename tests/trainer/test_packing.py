"""Documents that share a row train as if each had its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data import collate
from finetune_trainer.data.row import IGNORED, Row
from finetune_trainer.stages.sft import workflow

from tests.trainer import tiny

CLOSE = 1e-5
DOCUMENTS = [
    Row([9, 8, 7, 6, 5], [(2, 5)]),
    Row([11], []),
    Row([20, 21, 22], [(0, 3)]),
    Row([31, 32, 33, 34], [(1, 4)]),
]


def load(folder: Path, attention: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    loading: Any = AutoModelForCausalLM.from_pretrained
    return loading(folder, attn_implementation=attention, dtype=torch.float32).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packs", [[DOCUMENTS], [DOCUMENTS[:3], DOCUMENTS[3:]]], ids=["one row", "two rows"])
def test_a_document_sees_nothing_of_its_neighbours(model: Path, attention: str, packs: Sequence[Sequence[Row]]) -> None:
    import torch

    made = load(model, attention)
    batch = collate.packed(packs, pad_id=0)
    with torch.no_grad():
        together = made(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for logits, pack in zip(together, packs, strict=True):
            at = 0
            for row in pack:
                alone = made(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
                assert torch.allclose(logits[at : at + len(row.input_ids)], alone, atol=CLOSE)
                at += len(row.input_ids)


def test_the_first_token_of_a_document_is_not_learnt_from_the_one_before() -> None:
    labels = collate.packed([DOCUMENTS], pad_id=0)["labels"][0].tolist()
    assert [labels[start] for start in (0, 5, 6, 9)] == [IGNORED] * 4
    assert labels[7:9] == [21, 22]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_run_has_the_losses_of_one_that_is_not(root: Path, attention: str) -> None:
    """With all rows in every step, the two train on the same."""
    model = {"source": "pvc://models/model", "attention": attention}
    apart = tiny.make_run(
        root, tiny.job(model=model, training={"globalBatchSize": 24, "microBatchSize": 8}), workspace="apart"
    )
    workflow.run(apart)

    def packed(packs: int, workspace: str) -> Any:
        batch = {"packing": "bfd", "globalBatchSize": packs, "microBatchSize": 1}
        return tiny.make_run(root, tiny.job(model=model, training=batch), workspace=workspace)

    from finetune_trainer.data.store import open_split

    packs = open_split(packed(1, "counted").prepared.data, "train").packs
    assert packs is not None
    together = packed(len(packs), "together")
    workflow.run(together)
    assert 1 < len(packs) < 12
    assert tiny.losses(together) == pytest.approx(tiny.losses(apart), abs=CLOSE)
    assert tiny.logged(together, "total_tokens") == tiny.logged(apart, "total_tokens")
