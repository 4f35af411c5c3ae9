"""The loss of stage kto: a pure function of log-probabilities.

Called by `trainer`. Of an answer y to a prompt, the log-ratio is log p(y) - log r(y), for policy p and reference r. The
reference point z0 says how much policy and reference differ on answers to other prompts: an answer is a gain or a loss
beside it (Ethayarajh et al., 2024, arXiv:2402.01306, section 4.1).
"""

import torch


def reference_point(kl_ratios_sum: float, rows: float) -> float:
    """z0, from the log-ratios of mismatched answers: the divergence is never below 0, its estimate can be."""
    return max(0.0, kl_ratios_sum / rows)


def kto(
    ratios: torch.Tensor,
    desirable: torch.Tensor,
    reference_point: float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """One value a row (equation 8): weight - value of the answer. ``beta`` is how much risk is shunned."""
    gain = beta * (ratios - reference_point)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(torch.where(desirable, gain, -gain)))
