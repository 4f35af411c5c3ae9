"""Advantages and losses of PPO, against values computed by hand."""

import numpy as np
import pytest
import torch
from finetune_trainer.stages.ppo.losses import Mask, gae, policy_losses, value_losses, whiten


def mask(*lengths: int) -> Mask:
    return np.arange(max(lengths)) < np.array(lengths)[:, None]


def test_advantages_of_a_row_of_three_tokens() -> None:
    """gamma 0.5, lambda 0.5: deltas are 1 + .5*2 - 1 = 1, 0 + .5*4 - 2 = 0 and 8 - 4 = 4, discounted by 0.25."""
    rewards, values = np.array([[1.0, 0.0, 8.0]]), np.array([[1.0, 2.0, 4.0]])
    advantages, returns = gae(rewards, values, mask(3), 0.5, 0.5)
    np.testing.assert_allclose(advantages, [[1 + 0.25 * 1.0, 0 + 0.25 * 4, 4.0]])
    np.testing.assert_allclose(returns, [[2.25, 3.0, 8.0]])


def test_padding_of_an_answer_does_not_count() -> None:
    """A short answer has the same advantages alone and beside a long answer, whatever its padding contains."""
    rewards, values = np.array([[0.0, 1.0, 99.0], [1.0, 1.0, 1.0]]), np.array([[0.3, 0.2, 99.0], [0.1, 0.1, 0.1]])
    together, _ = gae(rewards, values, mask(2, 3), 1.0, 0.95)
    alone, _ = gae(rewards[:1, :2], values[:1, :2], mask(2), 1.0, 0.95)
    np.testing.assert_allclose(together[0], [*alone[0], 0.0])


def test_with_lambda_1_returns_are_the_sum_of_later_rewards() -> None:
    rewards, values = np.array([[1.0, 2.0, 3.0]]), np.array([[7.0, -5.0, 0.5]])
    _, returns = gae(rewards, values, mask(3), 1.0, 1.0)
    np.testing.assert_allclose(returns, [[6.0, 5.0, 3.0]])


def test_whitening_is_over_all_answers() -> None:
    values = np.array([[1.0, 2.0, 1e6], [3.0, 4.0, 5.0]])
    white = whiten(values, mask(2, 3))
    in_mask = white[mask(2, 3)]
    assert in_mask.mean() == pytest.approx(0.0, abs=1e-12)
    assert in_mask.std() == pytest.approx(1.0, abs=1e-6)
    assert white[0, 2] == 0


def test_whitened_rewards_keep_their_mean() -> None:
    white = whiten(np.array([[1.0, 3.0]]), mask(2), centre=False)
    np.testing.assert_allclose(white, [[1.0, 3.0]], atol=1e-6)  # mean 2, deviation 1


def test_the_policy_gains_nothing_beyond_the_clip_range() -> None:
    """Ratios 1, 2 and 0.5 with positive and negative advantage, clipped at 0.2. A gain counts up to 1.2 or down to 0.8,
    a loss in full."""
    ratios = torch.tensor([1.0, 2.0, 0.5, 2.0, 0.5], requires_grad=True)
    advantages = torch.tensor([3.0, 1.0, -1.0, -1.0, 1.0])
    losses, clipped = policy_losses(ratios.log(), torch.zeros(5), advantages, 0.2)
    assert losses.tolist() == pytest.approx([-3.0, -1.2, 0.8, 2.0, -0.5])
    assert clipped.tolist() == [False, True, True, False, False]
    (gradient,) = torch.autograd.grad(losses.sum(), ratios)
    assert gradient.tolist() == pytest.approx([-3.0, 0.0, 0.0, 1.0, -1.0])


def test_the_value_loss_is_of_the_larger_error() -> None:
    """Old value 1, clip range 0.2. With return 3, value 2 counts as 1.2; with return 1, as 2. Value 1.1 is in range."""
    values, returns = torch.tensor([2.0, 2.0, 1.1]), torch.tensor([3.0, 1.0, 1.0])
    losses = value_losses(values, torch.ones(3), returns, 0.2)
    assert losses.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 1.0, 0.5 * 0.01])
