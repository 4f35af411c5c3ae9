"""Plain TRL, as a script is written today: ``python -m tests.bench.trl_script ROOT KIND STEPS PLACE``.

Run by `speed`, which reads what it appends to PLACE/log.jsonl. It imports what it needs and nothing of ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

BATCH, MICRO, CUTOFF, PACK = 8, 4, 512, 2


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
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
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
    }
    folder, stage = root / "models" / "model", "sft" if packed else kind
    rows = [json.loads(line) for line in (root / "data" / f"{stage}.jsonl").read_text().splitlines()]
    if stage == "sft":
        rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
        from trl.trainer.sft_config import SFTConfig as Config
        from trl.trainer.sft_trainer import SFTTrainer as Trainer

        arguments |= {"packing": True} if packed else {}
    elif stage == "rm":
        from trl.trainer.reward_config import RewardConfig as Config
        from trl.trainer.reward_trainer import RewardTrainer as Trainer
    elif stage == "dpo":
        from trl.trainer.dpo_config import DPOConfig as Config
        from trl.trainer.dpo_trainer import DPOTrainer as Trainer
    else:
        from trl.trainer.kto_config import KTOConfig as Config
        from trl.trainer.kto_trainer import KTOTrainer as Trainer
    lora: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    if stage == "rm":
        made = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        lora |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    else:
        made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    Trainer(
        made,
        args=Config(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(**lora),
        callbacks=[Log()],
    ).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
