"""The six stages on the tiny model: rows that each can train on, and a small job of each.

Used by the tests that hold all stages to the same: golden runs, TRL's losses, micro-batches and ranks, kills.
"""

import json
from pathlib import Path
from typing import Any, cast

from finetune_api.contract import ResolvedJob
from finetune_trainer.director import find_workflow
from finetune_trainer.run import Run, WorkflowResult

from tests.trainer.support import tiny

STAGES = ("pt", "sft", "rm", "dpo", "kto", "ppo")
FORMATS = {"pt": "text", "sft": "openai", "rm": "preference", "dpo": "preference", "kto": "kto", "ppo": "openai"}
ROWS = 21
"""Three steps of eight an epoch, the last of which is filled up with three rows of its first. (Of pt, which packs, it
is documents.)"""
SETTINGS: dict[str, dict[str, Any]] = {
    # Two rollouts of 16 prompts in eight steps of eight: each is passed over twice.
    "ppo": {
        "rewardModel": {"source": "pvc://models/reward"},
        "rolloutBatchSize": 16,
        "rolloutMicroBatchSize": 4,
        "epochs": 2,
        "maxNewTokens": 8,
    },
}

NUMBERS: dict[str, tuple[str, ...]] = {
    "rm": ("accuracy", "margin", "mean_reward"),
    "dpo": ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    "kto": ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    "ppo": ("reward", "kl", "policy_loss", "value_loss", "entropy", "clip_fraction"),
}
"""What a stage logs besides the loss: means over micro-batches, ranks and the steps since the line before."""


def save_volumes(root: Path, *, rows: int = ROWS, template: str = tiny.CHATML, **model: Any) -> Path:
    """The volumes below ``root``: ``models`` with the tiny model and a reward model, ``data`` with rows of each."""
    tiny.save_model(root / "models" / "model", template=template, **model)
    save_reward_model(root / "models" / "reward", template=template, **model)
    for stage in STAGES:
        save(root / "data" / f"{stage}.jsonl", [row(stage, index) for index in range(rows)])
    return root


def save(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


def save_reward_model(folder: Path, *, template: str = tiny.CHATML, seed: int = 1, **settings: Any) -> Path:
    """A model of the tiny one's shape that scores, with random weights, and the same tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tiny.save_model(folder, template=template, seed=seed, **settings)
    config, kind = LlamaConfig.from_pretrained(folder, num_labels=1), cast(Any, LlamaForSequenceClassification)
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    return folder


def row(stage: str, index: int) -> dict[str, Any]:
    """Row ``index`` of a stage's data: the wanted answer repeats the requested word, the other answer does not."""
    word, times = tiny.WORDS[index % len(tiny.WORDS)], 1 + index % 3
    prompt = [{"role": "user", "content": f"say {word} {times}"}]
    right, wrong = " ".join([word] * times), " ".join([tiny.WORDS[(3 * index + 1) % len(tiny.WORDS)]] * (1 + index % 2))
    if right == wrong:
        wrong += " nothing"
    good, bad = ([{"role": "assistant", "content": said}] for said in (right, wrong))
    if stage == "pt":
        return {"text": " ".join(tiny.WORDS[(index + j) % len(tiny.WORDS)] for j in range(1 + 3 * (index % 9)))}
    if stage in ("rm", "dpo"):
        return {"prompt": prompt, "chosen": good, "rejected": bad}
    if stage == "kto":
        wanted = index % 5 < 3
        return {"prompt": prompt, "completion": good if wanted else bad, "label": wanted}
    return {"messages": prompt + good}


def dataset(stage: str) -> dict[str, str]:
    """Its rows, as spec.datasets names them."""
    return {"source": f"pvc://data/{stage}.jsonl", "format": FORMATS[stage]}


def job(stage: str, method: str = "full", **sections: Any) -> ResolvedJob:
    """A job of the stage on `save_volumes`. Sections replace those here and those of `tiny.job`."""
    training = sections.pop("training", {})
    if stage == "pt":  # so short that 21 documents fill enough rows
        training = {"cutoffLength": 32, **training}
    own = SETTINGS.get(stage, {}) | sections.pop(stage, {})
    return tiny.job(
        stage=stage,
        training={"learningRate": 0.003, **training},
        **({stage: own} if own else {}),
        **{
            "datasets": [dataset(stage)],
            "tuning": {"method": method, **({"lora": {"rank": 4}} if "lora" in method else {})},
            **sections,
        },
    )


def train(run: Run) -> WorkflowResult:
    """The run's stage, as the worker runs it."""
    return find_workflow(run.job.stage)(run)


def history(run: Run, name: str) -> list[float]:
    """What trainer_state.json says of a metric, evaluations included."""
    entries = json.loads((run.folders.reports / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in entries if name in entry]
