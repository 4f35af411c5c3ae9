"""What is measured, in all stages: one table of names, and the files that tools of the field expect.

Called by workflows on rank 0 after training; `plots` draws what is in the table. docs/metrics.md says what each means.
"""

import json
from pathlib import Path
from typing import Any

import torch
from finetune_api.status import Prepared

from finetune_trainer.checkpoints.storage import guard
from finetune_trainer.reporting.counters import Counters

LOGGED = {
    # pt, sft: tokens; rm: pairs
    "accuracy": "Accuracy",
    # rm
    "margin": "Margin",
    "mean_reward": "MeanReward",
    "min_reward": "MinReward",
    "max_reward": "MaxReward",
    # dpo, kto
    "rewards/chosen": "RewardChosen",
    "rewards/rejected": "RewardRejected",
    "rewards/accuracies": "Accuracy",
    "rewards/margins": "Margin",
    "logps/chosen": "LogpChosen",
    "logps/rejected": "LogpRejected",
    "sft_loss": "SftLoss",
    "odds_ratio_loss": "OddsRatioLoss",
    # kto, ppo
    "kl": "Kl",
    # ppo
    "reward": "Reward",
    "reward_normalized": "RewardNormalized",
    "kl_coefficient": "KlCoefficient",
    "policy_loss": "PolicyLoss",
    "value_loss": "ValueLoss",
    "clip_fraction": "ClipFraction",
    "entropy": "Entropy",
    "answer_length": "AnswerLength",
    "eos_rate": "EosRate",
}
"""What stages log besides the loss -> how its name in status.metrics ends: with eval before it, or, where the job isn't
evaluated, with final."""

TEXTS = {
    "bleu_4": "Bleu4",
    "rouge_1": "Rouge1",
    "rouge_2": "Rouge2",
    "rouge_l": "RougeL",
    "exact_match": "ExactMatch",
}
"""Of generated answers, the same way."""

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
"""Name in the files, as transformers and TRL have them -> name in status.metrics. A name that isn't here stays in the
files."""


def final(
    history: list[dict[str, Any]],
    counters: Counters,
    data: Prepared,
    global_batch: int,
    evaluation: dict[str, float],
    weights_step: int | None = None,
) -> dict[str, float]:
    """The run as a whole, over all attempts. train_loss is the mean over all steps, what begins with final_ was logged
    last. ``weights_step`` is the step that the artifact is of, where that isn't the last."""
    logged = [entry for entry in history if "loss" in entry]
    weights = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *logged], logged, strict=False)]
    seconds, last = counters.seconds, logged[-1]
    steps = last["step"]
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
    """The best evaluation so far, where there was one."""
    if counters.best_loss is None or counters.best_step is None:
        return {}
    return {"eval_best_loss": counters.best_loss, "eval_best_step": counters.best_step}


def _gpu_memory() -> dict[str, float]:
    """The most that rank 0's tensors held at once, where there is a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {"peak_gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}


def for_status(values: dict[str, float]) -> dict[str, str]:
    """As strings, under our names."""
    told = {ours: values[name] for name, ours in STATUS_NAMES.items() if name in values}
    for name, ending in (LOGGED | TEXTS).items():
        for when in ("eval", "final"):
            if f"{when}_{name}" in values:
                told[when + ending] = values[f"{when}_{name}"]
                break
    return {name: f"{value:.6g}" for name, value in told.items()}


def write(reports: Path, values: dict[str, float], state: Any) -> None:
    """train_results.json, eval_results.json where the job evaluates, all_results.json, trainer_state.json."""
    evaluation = {name: value for name, value in values.items() if name.startswith("eval_")}
    files = {"train_results.json": {n: v for n, v in values.items() if n not in evaluation}, "all_results.json": values}
    if evaluation:
        files["eval_results.json"] = {"epoch": values["epoch"], **evaluation}
    with guard(reports):
        reports.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (reports / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        state.save_to_json(str(reports / "trainer_state.json"))
