"""Plain TRL, as a script is written today: ``python -m tests.bench.trl_script ROOT KIND STEPS PLACE``.

Run by `speed`, which reads what it appends to PLACE/log.jsonl. It imports what it needs and nothing of ours.
"""

# ruff: noqa: ARG002  (a callback's arguments are given, used or not)

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

BATCH, MICRO, CUTOFF, PACK = 8, 4, 512, 2
NAMES = {"sft": ("sft", "SFT"), "rm": ("reward", "Reward"), "dpo": ("dpo", "DPO"), "kto": ("kto", "KTO")}


def main(root: Path, kind: str, steps: int, place: Path) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs["logs"]
            with (place / "log.jsonl").open("a") as out:
                out.write(json.dumps({"loss": logs["loss"], "epoch": state.epoch}) + "\n" if "loss" in logs else "")

    packed = kind == "packed"
    arguments: dict[str, Any] = {
        "output_dir": str(place / "out"),
        "max_steps": steps,
        "per_device_train_batch_size": PACK if packed else MICRO,
        "gradient_accumulation_steps": 1 if packed else BATCH // MICRO,
        "learning_rate": 1e-4,
        "max_length": CUTOFF,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    folder, stage = root / "models" / "model", "sft" if packed else kind
    rows = [json.loads(line) for line in (root / "data" / f"{stage}.ordered.jsonl").read_text().splitlines()]
    if stage == "sft":
        rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
        arguments |= {"packing": True} if packed else {"shuffle_dataset": False}
    file, name = NAMES[stage]
    config = getattr(import_module(f"trl.trainer.{file}_config"), f"{name}Config")
    trainer = getattr(import_module(f"trl.trainer.{file}_trainer"), f"{name}Trainer")
    lora: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    if stage == "rm":
        made = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        lora |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    else:
        made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer(
        made,
        args=config(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(**lora),
        callbacks=[Log()],
    ).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
