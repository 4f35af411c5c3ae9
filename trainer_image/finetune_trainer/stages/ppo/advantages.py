"""How much better a token was than expected: generalized advantage estimation, and whitening.

Used by the rollout, over all answers of all ranks at once, so nothing here depends on ranks or micro-batches. Arrays
are [answers, tokens]; ``mask`` is true for an answer's tokens, which come first.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
EPSILON = 1e-8


def gae(rewards: Floats, values: Floats, mask: Mask, gamma: float, lam: float) -> tuple[Floats, Floats]:
    """(advantages, returns), zero where there is no token (Schulman et al., "High-Dimensional Continuous Control Using
    Generalized Advantage Estimation", 2016, eq. 11, 12 and 16):

    delta_t = r_t + gamma V_(t+1) - V_t,  A_t = delta_t + gamma lambda A_(t+1),  R_t = A_t + V_t.

    After an answer's last token nothing is expected any more: V and A are 0 there.
    """
    rewards, values = np.where(mask, rewards, 0.0), np.where(mask, values, 0.0).astype(np.float64)
    advantages = np.zeros_like(values)
    after: Floats = np.zeros(len(values))
    next_value: Floats = after
    for token in reversed(range(values.shape[1])):
        delta = rewards[:, token] + gamma * next_value - values[:, token]
        after = np.where(mask[:, token], delta + gamma * lam * after, 0.0)
        advantages[:, token], next_value = after, values[:, token]
    return advantages, advantages + values


def whiten(values: Floats, mask: Mask, *, centre: bool = True) -> Floats:
    """To unit variance, and with ``centre`` to mean zero, over all tokens; zero elsewhere."""
    there = values[mask].astype(np.float64)
    if there.size == 0:
        return np.zeros_like(values, dtype=np.float64)
    mean = there.mean()
    white = (values - mean) / np.sqrt(there.var() + EPSILON)
    return np.where(mask, white if centre else white + mean, 0.0)
