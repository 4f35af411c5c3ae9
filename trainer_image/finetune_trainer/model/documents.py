"""Attention over a stream of documents: each token sees the earlier tokens of its own document, and no padding exists.

transformers calls `attention` in every layer of a model that is loaded with ``attn_implementation="documents"``. There
is no function for its masks, so transformers makes none. `stream.forward_inputs` hands `Documents` to the model as a
keyword, which models pass on to their layers: a layer that is computed again in the backward pass gets it, too.

On GPUs in 16 bit, torch's `varlen_attn` (flash attention or cuDNN) computes all documents at once. Elsewhere
`scaled_dot_product_attention` computes one after the other. Neither waits for the GPU: lengths are known on the host.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

NAME = "documents"
"""The implementation's name in transformers."""
HALF = (torch.float16, torch.bfloat16)
AMPERE = (8, 0)
"""The lowest compute capability that flash attention supports."""
SIZE_STEP, LARGEST = 8, 256
"""Numbers of a head in flash attention: a multiple of the first, and at most the second."""
UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models hand to their attention and `attention` does not compute: capped scores, sinks, learned biases."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a stream are. It is one object, and no tuple of numbers, because FSDP walks through the
    arguments of each layer."""

    lengths: tuple[int, ...]
    """Tokens of each document, on the host."""
    bounds: torch.Tensor
    """[documents + 1], int32, on the model's device: where each document begins, and where the last one ends."""

    @property
    def longest(self) -> int:
        return max(self.lengths)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """[1, heads, tokens, size] -> [1, tokens, heads, size]. Keys and values may have fewer heads than queries, and
    values another size. What a model asks for beyond that raises an error, because it would be left out without a word:
    `attention.documents_obstacle` knows such models beforehand."""
    asked = [name for name in UNKNOWN if kwargs.get(name) is not None]
    asked += ["attention_mask"] if attention_mask is not None else []
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if documents is None or asked or not causal:
        raise ValueError(
            f"{type(module).__name__} wants attention that {NAME!r} does not compute: {asked or ''} {causal=}"
            if documents is not None
            else f"a model with {NAME!r} attention is called without documents: use model.stream.forward_inputs"
        )
    query, key, value = _alike(query, key, value)
    if _has_kernel(query, dropout):
        return _variable_length(query, key, value, documents, sliding_window, scaling), None
    return _one_by_one(query, key, value, documents, sliding_window, scaling, dropout), None


def _has_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Whether `varlen_attn` computes this: flash attention is for 16 bit, GPUs since Ampere and heads of at most 256
    numbers, and torch's has no dropout."""
    if query.device.type != "cuda" or query.dtype not in HALF or dropout or query.shape[-1] > LARGEST:
        return False
    return _capability(query.device) >= AMPERE


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _alike(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in the number type that attention computes in: autocast's, or the smallest of theirs. Norms and
    rotary embeddings may leave queries and keys in fp32 where values are in bf16."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = min((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _variable_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    size, value_size = query.shape[-1], value.shape[-1]
    width = -(-max(size, value_size) // SIZE_STEP) * SIZE_STEP
    # A window that reaches over the longest document is none, and more kernels know attention without a window.
    left = -1 if window is None or window >= documents.longest else window - 1
    output = varlen_attn(
        _by_token(query, width),
        _by_token(key, width),
        _by_token(value, width),
        cu_seq_q=documents.bounds,
        cu_seq_k=documents.bounds,
        max_q=documents.longest,
        max_k=documents.longest,
        scale=size**-0.5 if scale is None else scale,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)  # a pair, if more than the output was asked for
    return output[..., :value_size].unsqueeze(0)


def _by_token(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """[1, heads, tokens, size] -> [tokens, heads, width]."""
    by_token = tensor[0].transpose(0, 1)
    if by_token.shape[-1] < width:
        by_token = functional.pad(by_token, (0, width - by_token.shape[-1]))
    return by_token.contiguous()


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    window: int | None,
    scale: float | None,
    dropout: float,
) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    split = (torch.split(tensor, list(documents.lengths), dim=2) for tensor in (query, key, value))
    for one_query, one_key, one_value in zip(*split, strict=True):
        length = one_query.shape[2]
        mask = _window_mask(length, window, query.device) if window is not None and window < length else None
        output = functional.scaled_dot_product_attention(
            one_query,
            one_key,
            one_value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=grouped,
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length]: each token sees itself and the ``window`` - 1 tokens before."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return causal.triu(1 - window)


AttentionInterface.register(NAME, attention)
