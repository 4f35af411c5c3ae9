"""What a step makes smaller: the clipped objectives of policy and values, token by token.

Used by the trainer. Everything is a sum over the tokens given: the trainer divides by the tokens of the whole global
batch, so neither micro-batch nor ranks matter. All tensors are flat: one number for each token of the answers.
"""

import torch


def policy_losses(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, whether clipping made a difference) of each token: minus the clipped surrogate objective (Schulman et al.,
    "Proximal Policy Optimization Algorithms", 2017, eq. 7): -min(r A, clip(r, 1 - e, 1 + e) A), r = p / p_old."""
    ratio = (log_probs - old_log_probs).exp()
    free, held = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, held), held > free


def value_losses(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Half the squared error of each token, the larger one of the value as it is and of one that has not left the old
    one by more than ``clip`` (Engstrom et al., "Implementation Matters in Deep Policy Gradients", 2020, section 3)."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)
