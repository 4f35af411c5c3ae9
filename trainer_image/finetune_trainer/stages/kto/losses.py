"""The loss of stage kto: a pure function of log-probabilities.

The log-ratio of an answer y to a prompt is log p(y) - log r(y), for policy p and reference r. The reference point z0 is
the divergence of policy and reference on mismatched answers, those to other prompts. An answer is a gain or a loss
compared with it (Ethayarajh et al., 2024, arXiv:2402.01306, section 4.1).
"""

import torch


def reference_point(log_ratio_sum: float, rows: float) -> float:
    """z0, from the sum of the log-ratios of mismatched answers. A divergence is never negative, but its estimate may
    be."""
    return max(0.0, log_ratio_sum / rows)


def kto(
    log_ratios: torch.Tensor,
    desirable: torch.Tensor,
    reference_point: float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """[B] (equation 8): weight - value of the answer. ``beta``: risk aversion."""
    gain = beta * (log_ratios - reference_point)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(torch.where(desirable, gain, -gain)))
