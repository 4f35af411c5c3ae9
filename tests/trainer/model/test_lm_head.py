"""On CPUs, the log-probabilities of trained positions and their gradients equal those of TRL's fused head."""

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data import collate
from finetune_trainer.model import lm_head, stream
from finetune_trainer.model.lm_head import TrainedPositions

from tests.trainer.training.test_packing import DOCUMENTS

CLOSE = 1e-5
OUTPUTS = ("log_probs", "entropy", "is_top1")
COUNTED = 8
"""Tokens of `DOCUMENTS` with labels."""


def two_models(folder: Path, temperature: float = 1.0, **config: Any) -> tuple[Any, Any]:
    """The same model twice, with TRL's head."""
    import torch
    from finetune_trainer.model import base
    from trl.trainer.utils import add_fused_lm_head

    models: list[Any] = [base.load(folder, "pvc://models/model", torch.float32, attention="auto") for _ in range(2)]
    for model in models:
        model.eval()
        model.config.update(config)
        add_fused_lm_head(model, temperature=temperature, outputs=OUTPUTS)
    return models[0], models[1]


BATCH = collate.stream(DOCUMENTS)


def whole(model: Any) -> Any:
    """The output of TRL's head."""
    return model(**stream.forward_inputs(BATCH), labels=BATCH["labels"], fused_lm_head=True)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch, model: Path) -> list[int]:
    """Score three positions at a time. Records the number of positions of each call of our own function."""
    from transformers import AutoConfig

    forward, calls = lm_head._LogProbs.forward, list[int]()

    def recorded(ctx: Any, hidden: Any, *rest: Any) -> Any:
        calls.append(len(hidden))
        return forward(ctx, hidden, *rest)

    monkeypatch.setattr(lm_head, "MAX_LOGITS", 3 * AutoConfig.from_pretrained(model).vocab_size)
    monkeypatch.setattr(lm_head._LogProbs, "forward", staticmethod(recorded))
    return calls


@pytest.mark.parametrize("trained", ["backbone", "everything"])
@pytest.mark.parametrize("variant", [{}, {"logit_scale": 0.5}, {"final_logit_softcapping": 2.0}], ids=str)
def test_outputs_and_gradients_equal_those_of_trls_head(
    model: Path, in_parts: list[int], variant: dict[str, float], trained: str
) -> None:
    import torch

    theirs, ours = two_models(model, temperature=0.7, **variant)
    for each in (theirs, ours):
        each.get_output_embeddings().weight.requires_grad_(trained == "everything")
    weights = torch.linspace(-1, 1, COUNTED)
    expected = whole(theirs)
    actual = TrainedPositions(ours).score(ours, BATCH, OUTPUTS)
    positions = BATCH["labels"][:, 1:] != -100
    for name in OUTPUTS:
        assert torch.allclose(actual[name][0].float(), expected[name][positions].float(), atol=CLOSE), name
    (actual.log_probs[0] * weights).sum().backward()
    (expected.log_probs[positions] * weights).sum().backward()
    compared = 0
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if mine.grad is not None:
            assert torch.allclose(mine.grad, other.grad, atol=CLOSE), name
            compared += 1
    assert compared > 10
    assert in_parts == ([COUNTED] if trained == "backbone" and "final_logit_softcapping" not in variant else [])


def test_without_gradients_a_trained_head_gives_the_same_log_probabilities(model: Path, in_parts: list[int]) -> None:
    import torch

    theirs, ours = two_models(model)
    with torch.no_grad():
        expected = whole(theirs).log_probs.sum()
        actual = TrainedPositions(ours).score(ours, BATCH).log_probs.sum()
    assert float(actual) == pytest.approx(float(expected), abs=CLOSE)
    assert in_parts == [COUNTED]


def test_under_autocast_it_computes_in_16_bit_and_adds_up_in_32(model: Path) -> None:
    import torch

    exact, ours = two_models(model)
    for each in (exact, ours):
        each.get_output_embeddings().weight.requires_grad_(False)
    expected = TrainedPositions(exact).score(exact, BATCH).log_probs
    with torch.autocast("cpu", torch.bfloat16):
        actual = TrainedPositions(ours).score(ours, BATCH).log_probs
    assert actual.dtype == torch.float32
    assert torch.allclose(actual, expected, atol=0.05)
    for log_probs in (expected, actual):
        log_probs.sum().backward()
    mine, other = (each.base_model.norm.weight.grad for each in (ours, exact))
    assert torch.allclose(mine, other, rtol=0.1, atol=0.05)


def test_trls_function_is_not_replaced(model: Path) -> None:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    _, ours = two_models(model)
    TrainedPositions(ours).score(ours, BATCH)
    assert vars(utils)["_ChunkedLogProbFunction"] is ChunkedLogProbFunction


def test_other_calls_and_deep_copies_use_their_own_weights(model: Path) -> None:
    """A reference model is a deep copy of a policy that was already extended."""
    import copy

    import torch

    theirs, ours = two_models(model)
    positions = TrainedPositions(ours)
    duplicate = copy.deepcopy(ours)
    with torch.no_grad():
        expected = whole(theirs).log_probs
        for weight in ours.parameters():
            weight.zero_()
        called = whole(duplicate).log_probs
        scored = positions.score(duplicate, BATCH).log_probs
    assert torch.equal(called, expected)
    assert torch.allclose(scored.sum(), expected.sum(), atol=CLOSE)
