"""Drawing tokens with noise that is a function of (seed, rollout, row, position) and of nothing else.

The token with the highest sum of logit and Gumbel noise is a draw from the softmax of the logits (Gumbel, 1954;
Maddison et al., "A* Sampling", 2014): so greedy decoding over what `KeyedGumbel` returns is sampling, and a row draws
the same tokens whatever batch it is in and whatever rank it is on. The noise is made by integers alone, hence the same
on every device: SplitMix64 (Steele, Lea and Flood, 2014), whose i-th output is a hash of seed + i x gamma.
"""

import hashlib
from collections.abc import Sequence

import torch
from finetune_api.stages import PpoSpec
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def _signed(value: int) -> int:
    """The lowest 64 bits as torch's int64 has them."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


GAMMA = _signed(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def row_key(seed: int, rollout: int, row: int) -> int:
    """What the noise of one answer starts from."""
    digest = hashlib.sha256(f"answer:{seed}:{rollout}:{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def gumbel(keys: torch.Tensor, position: int, size: int) -> torch.Tensor:
    """[rows, size] of standard Gumbel noise for the tokens of one position; ``keys`` are the rows' [rows]."""
    states = _mixed(keys + _signed((position + 1) * GAMMA)).unsqueeze(1)
    tokens = torch.arange(1, size + 1, device=keys.device)
    # 53 random bits, the lowest one set: in doubles exact, and neither 0 nor 1.
    uniform = (_shifted(_mixed(states + tokens * GAMMA), 11) | 1).double() * 2.0**-53
    return -torch.log(-torch.log(uniform))


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """SplitMix64's hash; torch's int64 wraps around as it wants."""
    bits = (bits ^ _shifted(bits, 30)) * MIX_1
    bits = (bits ^ _shifted(bits, 27)) * MIX_2
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """To the right, with zeros coming in: torch's own shift repeats the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


class KeyedGumbel(LogitsProcessor):
    """For one batch, the last of its processors. ``keys`` are those of its rows, ``width`` is that of its prompts."""

    def __init__(self, keys: Sequence[int], width: int) -> None:
        self._keys, self._width = torch.tensor(list(keys), dtype=torch.int64), width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        position = input_ids.shape[1] - self._width
        noise = gumbel(self._keys.to(scores.device), position, scores.shape[-1])
        return scores.double() + noise  # type: ignore[return-value]


def processors(settings: PpoSpec, keys: Sequence[int], width: int) -> LogitsProcessorList:
    """Temperature, top-k and top-p as the job has them, then the noise of these rows."""
    made = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k is not None:
        made.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        made.append(TopPLogitsWarper(settings.top_p))
    made.append(KeyedGumbel(keys, width))
    return made
