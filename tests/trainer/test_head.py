"""The fused head on CPUs says what TRL's says, and so do its slopes."""

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data import collate
from finetune_trainer.model import head
from finetune_trainer.model.head import TrainedPositions

from tests.trainer.test_packing import DOCUMENTS, load

CLOSE = 1e-5
OUTPUTS = ("log_probs", "entropy", "is_top1")
COUNTED = 8
"""Tokens of `DOCUMENTS` with labels."""


def two(folder: Path, temperature: float = 1.0, **config: Any) -> tuple[Any, Any]:
    """The same model twice, with TRL's head."""
    from trl.trainer.utils import add_fused_lm_head

    made = load(folder, "sdpa"), load(folder, "sdpa")
    for one in made:
        one.config.update(config)
        add_fused_lm_head(one, temperature=temperature, outputs=OUTPUTS)
    return made


def batch(fill: str) -> collate.Batch:
    made = collate.packed([DOCUMENTS[:3], DOCUMENTS[3:]], 0) if fill == "packed" else collate.flat(DOCUMENTS)
    del made["tokens"]
    return made


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch, model: Path) -> list[int]:
    """Three positions at once; how often the slopes were found while scoring."""
    from transformers import AutoConfig

    forward, used = head._Scores.forward, list[int]()

    def counted(ctx: Any, hidden: Any, *rest: Any) -> Any:
        used.append(len(hidden))
        return forward(ctx, hidden, *rest)

    monkeypatch.setattr(head, "LOGITS", 3 * AutoConfig.from_pretrained(model).vocab_size)
    monkeypatch.setattr(head._Scores, "forward", staticmethod(counted))
    return used


@pytest.mark.parametrize("trained", ["backbone", "everything"])
@pytest.mark.parametrize("variant", [{}, {"logit_scale": 0.5}, {"final_logit_softcapping": 2.0}], ids=str)
@pytest.mark.parametrize("fill", ["packed", "flat"])
def test_scores_and_slopes_are_those_of_trls_head(
    model: Path, in_parts: list[int], fill: str, variant: dict[str, float], trained: str
) -> None:
    import torch

    theirs, ours = two(model, temperature=0.7, **variant)
    for one in (theirs, ours):
        one.get_output_embeddings().weight.requires_grad_(trained == "everything")
    given, weights = batch(fill), torch.linspace(-1, 1, COUNTED)
    expected = theirs(**given, use_cache=False, fused_lm_head=True)
    said = TrainedPositions(ours).score(ours, given, OUTPUTS)
    there = given["labels"][:, 1:] != -100
    for name in OUTPUTS:
        assert torch.allclose(said[name][0].float(), expected[name][there].float(), atol=CLOSE), name
    (said.log_probs[0] * weights).sum().backward()
    (expected.log_probs[there] * weights).sum().backward()
    compared = 0
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if mine.grad is not None:
            assert torch.allclose(mine.grad, other.grad, atol=CLOSE), name
            compared += 1
    assert compared > 10
    assert in_parts == ([COUNTED] if trained == "backbone" and "final_logit_softcapping" not in variant else [])


def test_without_slopes_a_head_that_is_trained_is_scored_the_same(model: Path, in_parts: list[int]) -> None:
    import torch

    theirs, ours = two(model)
    with torch.no_grad():
        expected = theirs(**batch("packed"), use_cache=False, fused_lm_head=True).log_probs.sum()
        found = TrainedPositions(ours).score(ours, batch("packed")).log_probs.sum()
    assert float(found) == pytest.approx(float(expected), abs=CLOSE)
    assert in_parts == [COUNTED]


def test_under_autocast_it_computes_in_16_bit_and_adds_up_in_32(model: Path) -> None:
    import torch

    exact, ours = two(model)
    for one in (exact, ours):
        one.get_output_embeddings().weight.requires_grad_(False)
    expected = TrainedPositions(exact).score(exact, batch("packed")).log_probs
    with torch.autocast("cpu", torch.bfloat16):
        found = TrainedPositions(ours).score(ours, batch("packed")).log_probs
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.05)
    for scores in (expected, found):
        scores.sum().backward()
    mine, other = (one.base_model.norm.weight.grad for one in (ours, exact))
    assert torch.allclose(mine, other, rtol=0.1, atol=0.05)


def test_trls_head_is_left_as_it_was(model: Path) -> None:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    _, ours = two(model)
    TrainedPositions(ours).score(ours, batch("packed"))
    assert vars(utils)["_ChunkedLogProbFunction"] is ChunkedLogProbFunction
