"""The door of a model: how a micro-batch, which is one stream of documents, gets in and out.

`data.collate` makes streams, and losses read what comes out as a stream. With `documents` attention a model takes the
stream as it is. Flash attention takes it, too, with lengths by other names. All other attention is a model's own, which
knows rows: `open_door` lets its backbone pad the documents on entry and join them again on leaving.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence

from finetune_trainer.model import documents
from finetune_trainer.model.documents import Documents

ROWS = "sdpa"
"""Attention to rows, of models that have `documents` attention to streams."""
ALIKE = 2
"""Documents share padded rows if the longest of them is at most so many times as long as the shortest."""


def forward_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a model's forward pass over a micro-batch. It runs without a cache, which would make
    documents see each other."""
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "documents": Documents(batch["lengths"], batch["bounds"]),
        "use_cache": False,
    }


def open_door(model: Any, *, padded: bool) -> None:
    """Let the backbone of a loaded model take streams. ``padded``: whether its attention needs rows."""
    backbone = model.base_model
    if padded:
        _wrap(backbone, _padded)
    elif backbone.config.get_text_config()._attn_implementation != documents.NAME:
        _wrap(backbone, _with_lengths)


@contextmanager
def in_rows(model: Any) -> Iterator[None]:
    """Let the model take rows with masks, as generation needs it: `documents` attention knows neither padding nor a
    cache."""
    config = model.config
    before = config.get_text_config()._attn_implementation
    if before == documents.NAME:
        config._attn_implementation = ROWS
    try:
        yield
    finally:
        if before == documents.NAME:
            config._attn_implementation = before


def _wrap(backbone: Any, enter: Any) -> None:
    """Let ``enter`` handle calls with documents. All others use the present forward method, as `generate` does.

    The method belongs to this backbone alone and takes it as an argument, so it is right for deep copies, too.
    """
    present = backbone.forward.__func__

    @functools.wraps(present)
    def forward(module: Any, *args: Any, documents: Documents | None = None, **kwargs: Any) -> Any:
        if documents is None:
            return present(module, *args, **kwargs)
        assert not args, "a stream comes as keyword arguments"
        given = {name: value for name, value in kwargs.items() if value is not None}  # peft names all it knows
        return enter(functools.partial(present, module), documents, **given)

    backbone.forward = MethodType(forward, backbone)


def _with_lengths(present: Any, stream: Documents, **kwargs: Any) -> Any:
    """The stream as transformers' flash attention takes it: without these names it would ask the GPU for lengths in
    every layer."""
    return present(
        cu_seq_lens_q=stream.bounds,
        cu_seq_lens_k=stream.bounds,
        max_length_q=stream.longest,
        max_length_k=stream.longest,
        **kwargs,
    )


def _padded(present: Any, stream: Documents, *, input_ids: torch.Tensor, **kwargs: Any) -> Any:
    """A row per document, padded on the right, and what comes out as a stream again. Documents of very different length
    are computed apart, so that padding is less than half."""
    del kwargs["position_ids"]  # a model that has positions makes the same
    documents_in = torch.split(input_ids[0], list(stream.lengths))
    outputs: list[Any] = []
    parts: dict[int, list[torch.Tensor]] = {}
    sharded = any(isinstance(module, FSDPModule) for module in present.args[0].modules())
    for group in _groups(stream.lengths, together=sharded):
        chosen = [documents_in[document] for document in group]
        mask = pad_sequence([torch.ones_like(ids) for ids in chosen], batch_first=True)
        output = present(input_ids=pad_sequence(chosen, batch_first=True), attention_mask=mask, **kwargs)
        outputs.append(output)
        for row, document in enumerate(group):
            parts[document] = [
                values.reshape(*mask.shape, -1)[row, : stream.lengths[document]]
                for values in (output.last_hidden_state, *(_router_logits(output) or ()))
            ]
    joined = [torch.cat([parts[document][which] for document in sorted(parts)]) for which in range(len(parts[0]))]
    output = outputs[0]
    output.last_hidden_state = joined[0].unsqueeze(0)
    if _router_logits(output):
        output.router_logits = tuple(joined[1:])
    return output


def _router_logits(output: Any) -> tuple[torch.Tensor, ...] | None:
    """[tokens, experts] of each layer with experts, if they were asked for."""
    return getattr(output, "router_logits", None)


def _groups(lengths: Sequence[int], *, together: bool) -> list[list[int]]:
    """The documents that share padded rows, longest first. ``together``: all of them, because ranks that share weights
    compute layers the same number of times."""
    order = sorted(range(len(lengths)), key=lambda document: -lengths[document])
    groups = [order[:1]]
    for document in order[1:]:
        if together or ALIKE * lengths[document] >= lengths[groups[-1][0]]:
            groups[-1].append(document)
        else:
            groups.append([document])
    return groups
