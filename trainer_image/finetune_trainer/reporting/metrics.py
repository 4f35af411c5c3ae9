"""The metrics of all stages: their names in the status, and the result files that the field's tools read.

Workflows call this on rank 0 after training. docs/metrics.md explains each.
"""

import json
from pathlib import Path
from typing import Any

import torch
from finetune_api.status import Prepared
from transformers import TrainerState

from finetune_trainer.reporting.counters import Counters
from finetune_trainer.reporting.names import LOGGED
from finetune_trainer.workspace.storage import save_errors

TEXTS = {
    "bleu_4": "Bleu4",
    "rouge_1": "Rouge1",
    "rouge_2": "Rouge2",
    "rouge_l": "RougeL",
    "exact_match": "ExactMatch",
}
"""The same for metrics of generated answers."""

STATUS_NAMES = {
    "train_loss": "trainLoss",
    "final_loss": "finalLoss",
    "eval_loss": "evalLoss",
    "eval_perplexity": "evalPerplexity",
    "eval_best_loss": "bestEvalLoss",
    "eval_best_step": "bestEvalStep",
    "weights_step": "weightsStep",
    "epoch": "epochs",
    "train_steps": "steps",
    "train_samples": "rows",
    "train_samples_cut": "rowsCut",
    "train_samples_invalid": "rowsInvalid",
    "num_tokens": "tokens",
    "train_tokens_per_second": "tokensPerSecond",
    "train_runtime": "trainSeconds",
    "peak_gpu_memory_gib": "peakGpuMemoryGiB",
}
"""Name in the files, as in transformers and TRL -> name in status.metrics. All other metrics are only in the files."""


def final(
    history: list[dict[str, Any]],
    counters: Counters,
    data: Prepared,
    global_batch: int,
    evaluation: dict[str, float],
    weights_step: int | None = None,
    last_step: int | None = None,
) -> dict[str, float]:
    """The metrics of the whole run, over all attempts. train_loss is the mean over all steps; names that begin with
    final_ are from the last log line. ``weights_step`` is the step of the artifact's weights, when it is not the last
    step. ``last_step`` is the last step, when that may have no log line."""
    logged = [entry for entry in history if "loss" in entry]
    weights = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *logged], logged, strict=False)]
    seconds, last = counters.seconds, logged[-1]
    steps = last_step or last["step"]
    return {
        "epoch": round(last["epoch"], 4),
        "train_loss": sum(e["loss"] * w for e, w in zip(logged, weights, strict=True)) / sum(weights),
        "final_loss": last["loss"],
        **{f"final_{name}": last[name] for name in LOGGED if name in last},
        "train_steps": steps,
        "train_samples": data.rows,
        "train_samples_cut": data.truncated_rows,
        "train_samples_invalid": data.invalid_rows,
        "num_tokens": counters.tokens,
        "train_runtime": round(seconds, 2),
        "train_samples_per_second": round(steps * global_batch / seconds, 3),
        "train_steps_per_second": round(steps / seconds, 3),
        "train_tokens_per_second": round(counters.tokens / seconds, 2),
        **_best(counters),
        **({} if weights_step is None else {"weights_step": weights_step}),
        **_gpu_memory(),
        **evaluation,
    }


def _best(counters: Counters) -> dict[str, float]:
    """The best evaluation so far, if any."""
    if counters.best_loss is None or counters.best_step is None:
        return {}
    return {"eval_best_loss": counters.best_loss, "eval_best_step": counters.best_step}


def _gpu_memory() -> dict[str, float]:
    """The peak memory of rank 0's tensors, on a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {"peak_gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}


def for_status(values: dict[str, float]) -> dict[str, str]:
    """The metrics for status.metrics: strings, under the names of the API."""
    selected = {ours: values[name] for name, ours in STATUS_NAMES.items() if name in values}
    for name, ending in (LOGGED | TEXTS).items():
        for prefix in ("eval", "final"):
            if f"{prefix}_{name}" in values:
                selected[prefix + ending] = values[f"{prefix}_{name}"]
                break
    return {name: f"{value:.6g}" for name, value in selected.items()}


def write(reports: Path, values: dict[str, float], state: TrainerState) -> None:
    """Write train_results.json, all_results.json, trainer_state.json, and with evaluation eval_results.json."""
    evaluation = {name: value for name, value in values.items() if name.startswith("eval_")}
    files = {"train_results.json": {n: v for n, v in values.items() if n not in evaluation}, "all_results.json": values}
    if evaluation:
        files["eval_results.json"] = {"epoch": values["epoch"], **evaluation}
    with save_errors(reports):
        reports.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (reports / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        state.save_to_json(str(reports / "trainer_state.json"))
