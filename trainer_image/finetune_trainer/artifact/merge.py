"""Merges an adapter into its base: in fp32, on the unquantised weights, rounded once, and measured.

Called by `writer` for a job with output.merge, and by `export`. The merged model in fp32 must give the logits of base
and adapter, else the merge fails. The effect of rounding and, for qlora, of the unquantised base is measured and
reported.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from finetune_trainer.model import base, limits, merging, model_files, saved_adapter, stream, vocabulary

log = logging.getLogger(__name__)

OutputType = Literal["auto", "bf16", "fp16", "fp32"]
TOLERANCE = 1e-4
"""Allowed difference of logits, relative to the largest: fp32 sums depend on their order."""
AGREEMENT = 0.99
"""Share of tokens for which the rounded model should have the same top token; below it a warning is logged."""
SHARD_SIZE = "5GB"
PROBES, PROBE_LENGTH = 8, 64
"""Number and length of the rows that models are compared on when there is no data."""


@dataclass(frozen=True)
class Distance:
    """The difference between the predictions of two models."""

    top1: float
    """Share of positions with the same top token."""
    kl: float
    """Mean Kullback-Leibler divergence, in nats."""


@dataclass(frozen=True)
class ScoreShift:
    """The difference between the scores of two reward models."""

    score: float
    """Largest difference of a score."""
    spread: float
    """Standard deviation of the scores themselves."""


@dataclass(frozen=True)
class Merged:
    """What a merge measured."""

    dtype: str
    difference: float
    """Largest difference of a logit or score in fp32, merged model against base and adapter."""
    rounding: Distance | ScoreShift
    """The stored model against the merged model in fp32."""
    drift: Distance | ScoreShift | None
    """The stored model against the trained model, when the base of that was quantised."""

    def facts(self) -> dict[str, Any]:
        """For provenance and the model card."""
        return asdict(self)


def merge(
    base_folder: Path,
    adapters: Sequence[Path],
    out: Path,
    dtype: OutputType,
    *,
    source: str,
    tokens: int = 0,
    probes: Sequence[Sequence[int]] | None = None,
    trained: list[torch.Tensor] | None = None,
    allow_remote_code: bool = False,
    kind: base.Kind = "causal",
    pad_id: int | None = None,
) -> Merged:
    """Merge ``adapters``, in their order, into the base and write the model into ``out``.

    ``tokens`` is the size of the tokenizer. ``probes`` are rows of token ids to compare models on. ``trained`` are the
    logits of `probe` on the trained model, when its base was quantised. A reward model finds the end of a text by
    ``pad_id``.
    """
    model = merging.load_merged(base_folder, adapters[:-1], source, kind, allow_remote_code=allow_remote_code)
    if kind == "reward":
        model.config.get_text_config().pad_token_id = pad_id
    vocabulary.grow(model, max(tokens, saved_adapter.embedding_rows(adapters[-1])))
    rows = probes or probe_rows(model.config)
    tuned: Any = saved_adapter.attach(model, adapters[-1], adapters[-1].name)
    separate = probe(tuned, rows)
    merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    keep_tied(merged)
    whole = probe(merged, rows)
    difference = max(float((a - b).abs().max()) for a, b in zip(separate, whole, strict=True))
    scale = max(1.0, max(float(logits.abs().max()) for logits in separate))
    if not difference <= TOLERANCE * scale:  # also when it is NaN
        raise RuntimeError(f"the merged model differs from base and adapter by {difference:g} in a logit")

    stored = output_dtype(dtype, base_folder)
    base.cast(merged, stored)
    rounded = probe(merged, rows)
    compare = score_shift if kind == "reward" else distance
    merged.save_pretrained(out, max_shard_size=SHARD_SIZE)
    result = Merged(
        dtype=str(stored).removeprefix("torch."),
        difference=difference,
        rounding=compare(whole, rounded),
        drift=compare(trained, rounded) if trained is not None else None,
    )
    if isinstance(result.rounding, Distance) and result.rounding.top1 < AGREEMENT:
        log.warning(
            "The merged model in %s has the same top token as in fp32 for only %.1f %% of tokens. Set output.dtype to"
            " fp32 if the difference matters",
            result.dtype,
            100 * result.rounding.top1,
        )
    return result


def output_dtype(wanted: OutputType, base_folder: Path) -> torch.dtype:
    """The data type of the stored weights. "auto" is the type of the base model's files."""
    if wanted == "auto":
        stored: torch.dtype = model_files.stored_dtype(base_folder)
        return stored
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[wanted]


def keep_tied(model: PreTrainedModel) -> None:
    """Make the config agree with the weights: an adapter that trained head and embedding separately unties them."""
    text = model.config.get_text_config()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inputs: Any = model.get_input_embeddings()
    if not text.tie_word_embeddings or head is None or head.weight is inputs.weight:
        return
    if torch.equal(head.weight, inputs.weight):
        head.weight = inputs.weight
    else:
        text.tie_word_embeddings = model.config.tie_word_embeddings = False


def probe_rows(config: Any) -> list[list[int]]:
    """Rows of token ids to compare models on without data: the same for every model with this vocabulary."""
    text = config.get_text_config()
    limit = limits.positions(config)
    length = min(PROBE_LENGTH, limit.value) if limit else PROBE_LENGTH
    generator = torch.Generator().manual_seed(0)
    rows: list[list[int]] = torch.randint(text.vocab_size, (PROBES, length), generator=generator).tolist()
    return rows


def probe(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The logits of each row, or the score of a reward model, as fp32 on the CPU. Does not change the model."""
    device = next(model.parameters()).device
    # A 16 bit model with trained fp32 weights runs under autocast, as in training.
    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    mixed, half = len(dtypes) > 1, torch.float16 if torch.float16 in dtypes else torch.bfloat16
    training = model.training
    model.eval()
    try:
        with (
            stream.in_rows(model),
            torch.inference_mode(),
            torch.autocast(device.type, half, enabled=mixed),
        ):
            return [
                model(input_ids=torch.tensor([list(row)], device=device), use_cache=False).logits[0].float().cpu()
                for row in rows
            ]
    finally:
        model.train(training)


def distance(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Distance:
    """Over all positions of all rows. Both arguments are lists of logits as `probe` returns them."""
    a, b = torch.cat(list(reference)).log_softmax(-1), torch.cat(list(other)).log_softmax(-1)
    kl = functional.kl_div(b, a, log_target=True, reduction="none").sum(-1).mean()
    return Distance(top1=float((a.argmax(-1) == b.argmax(-1)).float().mean()), kl=max(0.0, float(kl)))


def score_shift(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> ScoreShift:
    """Over all rows. Both arguments are lists of scores as `probe` returns them."""
    a, b = torch.stack(list(reference)), torch.stack(list(other))
    return ScoreShift(score=float((a - b).abs().max()), spread=float(a.std(correction=0)))
