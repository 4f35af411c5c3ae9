"""Sampling of tokens with noise that is a function of (seed, rollout, row, position) and of nothing else.

The token with the highest sum of logit and Gumbel noise is a sample from the softmax of the logits (Gumbel, 1954;
Maddison et al., "A* Sampling", 2014). So greedy decoding over the scores of `KeyedGumbel` is sampling, and a row
samples the same tokens in any batch and on any rank. The noise is computed from integers alone, so it is the same on
every device: SplitMix64 (Steele, Lea and Flood, 2014), whose i-th output is a hash of seed + i x gamma.
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

from finetune_trainer.generation.batched import Processors


def _signed(value: int) -> int:
    """The lowest 64 bits as an int64 of torch."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


GAMMA = _signed(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def row_key(seed: int, rollout: int, row: int) -> int:
    """The seed of the noise of one answer."""
    digest = hashlib.sha256(f"answer:{seed}:{rollout}:{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def gumbel(keys: torch.Tensor, position: int, size: int) -> torch.Tensor:
    """[rows, size]: standard Gumbel noise for all tokens of the vocabulary at one position. ``keys`` is [rows]."""
    states = _mix(keys + _signed((position + 1) * GAMMA)).unsqueeze(1)
    tokens = torch.arange(1, size + 1, device=keys.device)
    # 53 random bits, the lowest of them set: exact in doubles, and neither 0 nor 1.
    uniform = (_shift_right(_mix(states + tokens * GAMMA), 11) | 1).double() * 2.0**-53
    return -torch.log(-torch.log(uniform))


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """The hash of SplitMix64. It needs integers that wrap around, as int64 does in torch."""
    bits = (bits ^ _shift_right(bits, 30)) * MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * MIX_2
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift, which fills with zeros. The shift of torch repeats the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


class KeyedGumbel(LogitsProcessor):
    """Adds noise to the scores of one batch, after all other processors. ``keys``: those of its rows; ``width``: tokens
    of its prompts with their padding."""

    def __init__(self, keys: Sequence[int], width: int) -> None:
        self._keys, self._width = torch.tensor(list(keys), dtype=torch.int64), width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        position = input_ids.shape[1] - self._width
        noise = gumbel(self._keys.to(scores.device), position, scores.shape[-1])
        return scores.double() + noise  # type: ignore[return-value]


class OnlyTokens(LogitsProcessor):
    """Excludes ids beyond the tokenizer. Many models have more rows than tokens, for speed. These rows are untrained
    and no text, and a reward model may not have them."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # noqa: ARG002
        scores[:, self._tokens :] = -torch.inf
        return scores


def logits_processors(settings: PpoSpec, keys: Sequence[int], width: int, tokens: int) -> LogitsProcessorList:
    """Temperature, top-k and top-p of the job, then the noise of the rows with these keys. ``tokens``: size of the
    tokenizer."""
    processors = LogitsProcessorList([OnlyTokens(tokens), TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k is not None:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(KeyedGumbel(keys, width))
    return processors


def batch_processors(settings: PpoSpec, keys: Sequence[int], tokens: int) -> Processors:
    """For `generation.batched`: the processors of any batch of the prompts that have these keys."""
    return lambda prompts, width: logits_processors(settings, [keys[prompt] for prompt in prompts], width, tokens)


def greedy_processors(tokens: int) -> Processors:
    """For `generation.batched`: the likeliest token of the tokenizer."""
    return lambda _prompts, _width: LogitsProcessorList([OnlyTokens(tokens)])
