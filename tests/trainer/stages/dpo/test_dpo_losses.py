"""The losses of stages dpo and kto on fixed log-probabilities, against closed forms and TRL."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.stages.dpo import losses
from finetune_trainer.stages.kto import losses as kto_losses
from finetune_trainer.training import logprobs

MARGINS = torch.tensor([-3.0, 0.0, 0.5, 20.0], requires_grad=True)
CHOSEN, REJECTED = torch.tensor([-0.3, -2.0, -0.001, -7.0]), torch.tensor([-1.1, -0.4, -3.0, -7.0])
"""Means over tokens."""


def values(losses: torch.Tensor) -> list[float]:
    return losses.tolist()


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid_and_conservative_dpo(smoothing: float) -> None:
    expected = [
        -(1 - smoothing) * math.log(sigma(0.3 * m)) - smoothing * math.log(sigma(-0.3 * m)) for m in MARGINS.tolist()
    ]
    assert values(losses.sigmoid(MARGINS, 0.3, smoothing)) == pytest.approx(expected, rel=1e-5)


def test_conservative_dpo_is_minimal_at_the_assumed_rate_of_wrong_labels() -> None:
    at_best = torch.tensor([math.log(0.9 / 0.1) / 0.3], requires_grad=True)
    losses.sigmoid(at_best, 0.3, 0.1).backward()  # type: ignore[no-untyped-call]
    assert at_best.grad is not None
    assert float(at_best.grad) == pytest.approx(0, abs=1e-6)


def test_hinge() -> None:
    assert values(losses.hinge(MARGINS, 0.1)) == pytest.approx([1.3, 1.0, 0.95, 0.0])


def test_ipo_is_minimal_at_a_margin_of_half_the_inverse_of_tau() -> None:
    assert values(losses.ipo(MARGINS, 0.1)) == pytest.approx([64.0, 25.0, 20.25, 225.0])


def test_odds_ratio() -> None:
    def odds(mean: float) -> float:
        return math.exp(mean) / -math.expm1(mean)

    expected = [
        -math.log(sigma(math.log(odds(c) / odds(r)))) for c, r in zip(CHOSEN.tolist(), REJECTED.tolist(), strict=True)
    ]
    assert values(losses.odds_ratio(CHOSEN, REJECTED)) == pytest.approx(expected, rel=1e-5)


def test_odds_of_a_certain_answer_and_their_gradient_are_finite() -> None:
    certain = torch.tensor([0.0, -1e-9, -80.0], requires_grad=True)
    losses.odds_ratio(certain, torch.full((3,), -1.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert certain.grad is not None
    assert bool(certain.grad.isfinite().all())


def test_simpo() -> None:
    expected = [-math.log(sigma(2 * (c - r) - 0.5)) for c, r in zip(CHOSEN.tolist(), REJECTED.tolist(), strict=True)]
    assert values(losses.simpo(CHOSEN, REJECTED, 2.0, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_losses_equal_those_of_trl() -> None:
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    cpo: Any = CPOTrainer.cpo_loss
    orpo: Any = ORPOTrainer.odds_ratio_loss
    trl = {"alpha": 0.0, "label_smoothing": 0.0, "accelerator": SimpleNamespace(device="cpu")}
    theirs = cpo(SimpleNamespace(**trl, loss_type="simpo", beta=2.0, simpo_gamma=0.5), CHOSEN, REJECTED)[0]
    torch.testing.assert_close(losses.simpo(CHOSEN, REJECTED, 2.0, 0.5), theirs)
    theirs = orpo(SimpleNamespace(**trl, beta=0.1), CHOSEN, REJECTED)[0]
    torch.testing.assert_close(-0.1 * losses.odds_ratio(CHOSEN, REJECTED), theirs)
    smooth = SimpleNamespace(**trl | {"label_smoothing": 0.2}, loss_type="sigmoid", beta=0.3)
    theirs = cpo(smooth, CHOSEN, REJECTED)[0]
    torch.testing.assert_close(losses.sigmoid(CHOSEN - REJECTED, 0.3, 0.2), theirs)


def test_tokens_beyond_the_shorter_answer_count_less() -> None:
    trained = [(4, (1, 4)), (4, (2, 4)), (4, (2, 4)), (4, (1, 3))]
    batch = collate.stream([Row([5] * length, [span]) for length, span in trained])
    log_probs = torch.tensor([0.0, -1.0, -2.0, -4.0, 0.0, 0.0, -1.0, -2.0, 0, 0, -8.0, -16.0, 0.0, -1.0, -3.0, 0.0])
    assert values(logprobs.sum_by_document(log_probs, batch)) == [-7.0, -3.0, -24.0, -4.0]
    for alpha, first in ((0.5, -5.0), (0.0, -3.0), (1.0, -7.0)):
        answers = logprobs.sum_by_document(losses.desensitized(log_probs, batch, alpha), batch)
        assert values(answers) == [first, -3.0, -24.0, -4.0]


def test_kto_compares_answers_with_the_reference_point() -> None:
    ratios, desirable = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([True, False, True])
    expected = [1.5 * (1 - sigma(0.5 * 1.2)), 0.7 * (1 - sigma(-0.5 * 1.2)), 1.5 * (1 - sigma(-0.5 * 1.8))]
    found = kto_losses.kto(ratios, desirable, 0.8, 0.5, desirable_weight=1.5, undesirable_weight=0.7)
    assert values(found) == pytest.approx(expected)


def test_the_reference_point_is_a_divergence() -> None:
    assert kto_losses.reference_point(6.0, 8) == 0.75
    assert kto_losses.reference_point(-6.0, 8) == 0.0
