"""An adapter merged into its base: in fp32, onto the unquantised weights, rounded once, and measured.

Called by ``artifact`` when a job asks for output.merge, and by ``export``. That the merged model in fp32 says the same
as base and adapter is certain or an error; what rounding and, for qlora, the change of the base cost is measured.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from finetune_trainer.model import base, build, vocabulary
from finetune_trainer.model import folder as model_folder

log = logging.getLogger(__name__)

OutputType = Literal["auto", "bf16", "fp16", "fp32"]
TOLERANCE = 1e-4
"""Of logits, as a share of the largest: fp32 sums in another order."""
AGREEMENT = 0.99
"""Share of tokens of which the rounded model should think the same most likely."""
SHARD_SIZE = "5GB"
PROBES, PROBE_LENGTH = 8, 64


@dataclass(frozen=True)
class Distance:
    """How far one model's predictions are from another's."""

    top1: float
    """Share of positions with the same most likely token."""
    kl: float
    """Mean Kullback-Leibler divergence, in nats."""


@dataclass(frozen=True)
class Shift:
    """How far one reward model's scores are from another's."""

    score: float
    """Largest difference of a score."""
    spread: float
    """Standard deviation of the scores themselves."""


@dataclass(frozen=True)
class Merged:
    """What a merge was measured at."""

    dtype: str
    difference: float
    """Largest difference of a logit, or score, in fp32, against base and adapter."""
    rounding: Distance | Shift
    """The stored model against the fp32 one."""
    drift: Distance | Shift | None
    """The stored model against the one that was trained, where that one's base was quantised."""

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
    """Write base and adapters, in their order, as one model into ``out``. ``tokens`` is the size of the tokenizer;
    ``trained`` are the logits of `probe` of the model that was trained, if its base was quantised. A reward model finds
    a text's end by ``pad_id``."""
    model = build.merged(
        base_folder, adapters[:-1], source, kind, allow_remote_code=allow_remote_code, attention="sdpa"
    )
    if kind == "reward":
        model.config.get_text_config().pad_token_id = pad_id
    vocabulary.grow(model, max(tokens, build.rows(adapters[-1])))
    rows = probes or probe_rows(model.config)
    tuned: Any = build.attach(model, adapters[-1], adapters[-1].name)
    apart = probe(tuned, rows)
    merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    keep_tied(merged)
    whole = probe(merged, rows)
    difference = max(float((a - b).abs().max()) for a, b in zip(apart, whole, strict=True))
    scale = max(1.0, max(float(logits.abs().max()) for logits in apart))
    if not difference <= TOLERANCE * scale:  # also when it is no number
        raise RuntimeError(f"the merged model is not base and adapter: a logit differs by {difference:g}")

    stored = output_dtype(dtype, base_folder)
    build.cast(merged, stored)
    rounded = probe(merged, rows)
    compare = shift if kind == "reward" else distance
    merged.save_pretrained(out, max_shard_size=SHARD_SIZE)
    result = Merged(
        dtype=str(stored).removeprefix("torch."),
        difference=difference,
        rounding=compare(whole, rounded),
        drift=compare(trained, rounded) if trained is not None else None,
    )
    if isinstance(result.rounding, Distance) and result.rounding.top1 < AGREEMENT:
        log.warning(
            "rounded to %s, the merged model agrees with itself in fp32 on %.1f %% of tokens: see output.dtype",
            result.dtype,
            100 * result.rounding.top1,
        )
    return result


def output_dtype(wanted: OutputType, base_folder: Path) -> torch.dtype:
    """auto: the type that the base model came in."""
    if wanted == "auto":
        found: torch.dtype = model_folder.dtype(base_folder)
        return found
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[wanted]


def keep_tied(model: PreTrainedModel) -> None:
    """An adapter that trained head and embedding apart leaves them untied; the config must not say otherwise."""
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
    """Token ids to compare models on where no data is at hand: the same for every model of a vocabulary."""
    text = config.get_text_config()
    length = min(PROBE_LENGTH, getattr(text, "max_position_embeddings", None) or PROBE_LENGTH)
    generator = torch.Generator().manual_seed(0)
    rows: list[list[int]] = torch.randint(text.vocab_size, (PROBES, length), generator=generator).tolist()
    return rows


def probe(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The logits of each row, or of a reward model its score, in fp32 on the CPU. The model is left as it was."""
    device = next(model.parameters()).device
    # Trained fp32 weights in a bf16 model meet as they did while training.
    mixed = len({weight.dtype for weight in model.parameters() if weight.is_floating_point()}) > 1
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            return [
                model(input_ids=torch.tensor([list(row)], device=device), use_cache=False).logits[0].float().cpu()
                for row in rows
            ]
    finally:
        model.train(training)


def distance(of: Sequence[torch.Tensor], to: Sequence[torch.Tensor]) -> Distance:
    """Both by position, over all rows."""
    a, b = torch.cat(list(of)).log_softmax(-1), torch.cat(list(to)).log_softmax(-1)
    kl = functional.kl_div(b, a, log_target=True, reduction="none").sum(-1).mean()
    return Distance(top1=float((a.argmax(-1) == b.argmax(-1)).float().mean()), kl=max(0.0, float(kl)))


def shift(of: Sequence[torch.Tensor], to: Sequence[torch.Tensor]) -> Shift:
    """Over all rows."""
    a, b = torch.stack(list(of)), torch.stack(list(to))
    return Shift(score=float((a - b).abs().max()), spread=float(a.std(correction=0)))
