"""Losses of stage dpo, one value a pair: pure functions of log-probabilities.

Called by `trainer`. A margin is by how much more the policy prefers the chosen answer y+ to the rejected one y- than
the reference does: [log p(y+) - log r(y+)] - [log p(y-) - log r(y-)], for policy p and reference r, given the prompt.
"""

import torch
from torch.nn.functional import logsigmoid

from finetune_trainer.data.row import IGNORED


def of_answer(log_probs: torch.Tensor, labels: torch.Tensor, ld_alpha: float | None = None) -> torch.Tensor:
    """[2B]: log-probability of each answer, from those of its tokens [2B, L-1]; chosen answers first.

    With ``ld_alpha``, tokens beyond the length of the pair's shorter answer count that much (LD-DPO: Liu et al., 2024,
    arXiv:2409.06411, equation 9): else long answers move the loss by their length alone.
    """
    if ld_alpha is None:
        return log_probs.sum(dim=1)
    trained = labels[:, 1:] != IGNORED
    place = trained.cumsum(dim=1)
    shorter = torch.stack(trained.sum(dim=1).chunk(2)).amin(dim=0).repeat(2)
    return (log_probs * torch.where(place <= shorter[:, None], 1.0, ld_alpha)).sum(dim=1)


def sigmoid(margin: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """DPO (Rafailov et al., 2023, arXiv:2305.18290, equation 7). With ``label_smoothing``, the share of pairs that are
    taken to be the wrong way round, it is conservative DPO (Mitchell, 2023, "A note on DPO with noisy preferences")."""
    right, wrong = logsigmoid(beta * margin), logsigmoid(-beta * margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def hinge(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """SLiC's calibration loss on DPO's margin (Zhao et al., 2023, arXiv:2305.10425, equation 3; Liu et al., 2023,
    arXiv:2309.06657, equation 9)."""
    return torch.relu(1 - beta * margin)


def ipo(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """IPO (Azar et al., 2023, arXiv:2310.12036, equation 17; ``beta`` is its tau). The margin is one of means over each
    answer's tokens, which is what the paper's authors computed: of sums, the target 1 / 2 tau would depend on
    length."""
    return (margin - 1 / (2 * beta)) ** 2


def odds_ratio(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """ORPO's second term, without its weight (Hong et al., 2024, arXiv:2403.07691, equation 7), of means over tokens:
    -log sigmoid(log odds(y+) - log odds(y-)), with odds = P / (1 - P)."""
    return -logsigmoid((chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected)))


def simpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """SimPO (Meng et al., 2024, arXiv:2405.14734, equation 6), of means over tokens."""
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - e^x) for x < 0, exact near both ends (Maechler, 2012). An answer that is certain has no odds: it is taken
    to be nearly so."""
    x = x.clamp(max=-1e-6)
    near = x > -0.6931
    # Each branch gets an argument that it can take, or its gradient would be no number where the other one is chosen.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -0.1))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )
