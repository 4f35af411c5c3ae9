"""The losses of PPO, and the advantages and returns in them.

`collector` computes advantages once per rollout, over all answers of all ranks, in numpy. `trainer` computes losses in
each step, in torch. Every function is a sum or a value per token, so results depend neither on the number of ranks nor
on the micro-batch.
"""

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
EPSILON = 1e-8


def gae(rewards: Floats, values: Floats, mask: Mask, gamma: float, lam: float) -> tuple[Floats, Floats]:
    """Advantages and returns, each [answers, tokens], by generalized advantage estimation (Schulman et al.,
    "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2016, eq. 11, 12 and 16):

    delta_t = r_t + gamma V_(t+1) - V_t,  A_t = delta_t + gamma lambda A_(t+1),  R_t = A_t + V_t.

    All arguments are [answers, tokens]; ``mask`` is true for an answer's tokens, which come first. Behind an answer's
    last token V and A are 0, and so are the results.
    """
    rewards, values = np.where(mask, rewards, 0.0), np.where(mask, values, 0.0).astype(np.float64)
    advantages = np.zeros_like(values)
    next_advantage: Floats = np.zeros(len(values))
    next_value: Floats = next_advantage
    for token in reversed(range(values.shape[1])):
        delta = rewards[:, token] + gamma * next_value - values[:, token]
        next_advantage = np.where(mask[:, token], delta + gamma * lam * next_advantage, 0.0)
        advantages[:, token], next_value = next_advantage, values[:, token]
    return advantages, advantages + values


def whiten(values: Floats, mask: Mask, *, centre: bool = True) -> Floats:
    """[answers, tokens]: scaled to variance 1 over all tokens of the mask, and with ``centre`` shifted to mean 0. Zero
    outside the mask."""
    in_mask = values[mask].astype(np.float64)
    if in_mask.size == 0:
        return np.zeros_like(values, dtype=np.float64)
    mean = in_mask.mean()
    white = (values - mean) / np.sqrt(in_mask.var() + EPSILON)
    return np.where(mask, white if centre else white + mean, 0.0)


def policy_losses(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens] each: the loss, and whether clipping changed it. The loss is minus the clipped surrogate objective
    (Schulman et al., "Proximal Policy Optimization Algorithms", 2017, eq. 7), with r = p / p_old:

    -min(r A, clip(r, 1 - e, 1 + e) A).

    All arguments are [tokens] of answers.
    """
    ratio = (log_probs - old_log_probs).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def value_losses(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """[tokens]: half the squared error of the value, or of the value clipped to within ``clip`` of the old value,
    whichever is larger (Engstrom et al., "Implementation Matters in Deep Policy Gradients", 2020, section 3):

    max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) / 2.

    All arguments are [tokens] of answers.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
