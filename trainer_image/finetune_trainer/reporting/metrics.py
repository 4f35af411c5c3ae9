"""Final metrics: one table of names, and the files that tools of the field expect.

Called by workflows on rank 0 after training.
"""

import json
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.checkpoints.storage import guard
from finetune_trainer.data.dataset import TrainingData
from finetune_trainer.reporting.progress import ProgressReport

STATUS_NAMES = {
    "train_loss": "trainLoss",
    "final_loss": "finalLoss",
    "epoch": "epochs",
    "train_steps": "steps",
    "train_samples": "rows",
    "train_samples_cut": "rowsCut",
    "train_samples_left_out": "rowsLeftOut",
    "num_tokens": "tokens",
    "train_tokens_per_second": "tokensPerSecond",
    "train_runtime": "trainSeconds",
    "peak_gpu_memory_gib": "peakGpuMemoryGiB",
}
"""Name in the files, as transformers and TRL have them -> name in status.metrics. A name that isn't here stays in the
files."""


def final(
    history: list[dict[str, Any]], progress: ProgressReport, data: TrainingData, global_batch: int
) -> dict[str, float]:
    """The run as a whole, over all attempts. train_loss is the mean over all steps, final_loss the last logged."""
    logged = [entry for entry in history if "loss" in entry]
    weights = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *logged], logged, strict=False)]
    seconds = progress.seconds
    steps = logged[-1]["step"]
    return {
        "epoch": round(logged[-1]["epoch"], 4),
        "train_loss": sum(e["loss"] * w for e, w in zip(logged, weights, strict=True)) / sum(weights),
        "final_loss": logged[-1]["loss"],
        "train_steps": steps,
        "train_samples": len(data.rows),
        "train_samples_cut": data.cut,
        "train_samples_left_out": data.emptied,
        "num_tokens": progress.tokens,
        "train_runtime": round(seconds, 2),
        "train_samples_per_second": round(steps * global_batch / seconds, 3),
        "train_steps_per_second": round(steps / seconds, 3),
        "train_tokens_per_second": round(progress.tokens / seconds, 2),
        **_gpu_memory(),
    }


def _gpu_memory() -> dict[str, float]:
    """The most that rank 0's tensors held at once, where there is a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {"peak_gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}


def for_status(values: dict[str, float]) -> dict[str, str]:
    """As strings, under our names."""
    return {ours: f"{values[name]:.6g}" for name, ours in STATUS_NAMES.items() if name in values}


def write(reports: Path, values: dict[str, float], state: Any) -> None:
    """train_results.json, all_results.json, trainer_state.json."""
    with guard(reports):
        reports.mkdir(parents=True, exist_ok=True)
        for name in ("train_results.json", "all_results.json"):
            (reports / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        state.save_to_json(str(reports / "trainer_state.json"))
