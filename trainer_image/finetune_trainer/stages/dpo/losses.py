"""Losses of stage dpo, one value per pair: pure functions of log-probabilities.

The margin of a chosen answer y+ and a rejected answer y- is how much more the policy p prefers y+ than the reference r
does: [log p(y+) - log r(y+)] - [log p(y-) - log r(y-)], given the prompt.
"""

import torch
from torch.nn.functional import logsigmoid

from finetune_trainer.data.collate import Batch
from finetune_trainer.data.row import IGNORED
from finetune_trainer.training import logprobs


def desensitized(log_probs: torch.Tensor, batch: Batch, ld_alpha: float) -> torch.Tensor:
    """[T]: log-probabilities of the tokens of pairs, chosen answers first. Those beyond the length of the pair's
    shorter answer are weighted with ``ld_alpha`` (LD-DPO: Liu et al., 2024, arXiv:2409.06411, equation 9). Without it,
    long answers change the loss by their length alone."""
    tokens, document = logprobs.label_counts(batch), batch["document_ids"]
    before = tokens.cumsum(dim=0) - tokens
    position = (batch["labels"][0] != IGNORED).cumsum(dim=0) - before[document]
    shorter = torch.stack(tokens.chunk(2)).amin(dim=0).repeat(2)
    return log_probs * torch.where(position <= shorter[document], 1.0, ld_alpha)


def sigmoid(margin: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """DPO (Rafailov et al., 2023, arXiv:2305.18290, equation 7). ``label_smoothing``: the share of pairs that
    is assumed to be labelled wrongly, as in conservative DPO (Mitchell, 2023, "A note on DPO with noisy
    preferences")."""
    right, wrong = logsigmoid(beta * margin), logsigmoid(-beta * margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def hinge(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """SLiC's calibration loss on DPO's margin (Zhao et al., 2023, arXiv:2305.10425, equation 3; Liu et al., 2023,
    arXiv:2309.06657, equation 9)."""
    return torch.relu(1 - beta * margin)


def ipo(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """IPO (Azar et al., 2023, arXiv:2310.12036, equation 17; ``beta`` is its tau). The margin is of means over the
    tokens of each answer, as the authors computed it: with sums, the target 1 / 2 tau would depend on the length."""
    return (margin - 1 / (2 * beta)) ** 2


def odds_ratio(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """The second term of ORPO, without its weight (Hong et al., 2024, arXiv:2403.07691, equation 7), of means over
    tokens: -log sigmoid(log odds(y+) - log odds(y-)), with odds = P / (1 - P)."""
    return -logsigmoid((chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected)))


def simpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """SimPO (Meng et al., 2024, arXiv:2405.14734, equation 6), of means over tokens."""
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - e^x) for x < 0, exact near both ends (Maechler, 2012). A certain answer has no odds, so x is kept just
    below 0."""
    x = x.clamp(max=-1e-6)
    near = x > -0.6931
    # Each branch gets a valid argument everywhere: NaN gradients of the branch that is not chosen would spread.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -0.1))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )
