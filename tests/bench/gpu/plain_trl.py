"""The same case by plain TRL, as a script is written today: the same model, and the token ids that our prepare made."""

import time
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu import ours
from tests.bench.gpu.cases import Case
from tests.trainer.support import tiny


def trained(case: Case, root: Path) -> dict[str, Any]:
    """Stage sft."""
    from datasets import Dataset
    from finetune_trainer.data.splits import open_split
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    ours.volumes(case, root)
    run = ours.prepared_run(case, root)
    split = open_split(run.prepared.data, "train")
    rows = [split.row(at) for at in range(len(split))]
    data = Dataset.from_list([{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows])
    clock, losses, tokens = ours.Clock(), list[float](), list[float]()

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

        def on_log(self, *_: Any, **kwargs: Any) -> None:
            if "loss" in kwargs["logs"]:
                losses.append(float(kwargs["logs"]["loss"]))
                tokens.append(float(kwargs["logs"]["num_tokens"]))

    on_gpu, half = torch.cuda.is_available(), case.precision != "fp32"
    dtype = torch.bfloat16 if case.precision == "pureBf16" or (half and case.method == "lora") else torch.float32
    with ours.built_on_device():
        model: Any = AutoModelForCausalLM.from_pretrained(root / "models" / "model", dtype=dtype)
    arguments: dict[str, Any] = {
        "output_dir": str(root / "out"),
        "max_steps": case.steps,
        "per_device_train_batch_size": case.micro,
        "gradient_accumulation_steps": case.batch // case.micro,
        "learning_rate": 1e-5,
        "max_length": case.cutoff,
        "packing": case.packed,
        "bf16": half and on_gpu,
        "use_cpu": not on_gpu,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "optim": case.optimizer,
    }
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if case.method == "lora" else None
    trainer = SFTTrainer(
        model,
        args=SFTConfig(**arguments),
        train_dataset=data,
        processing_class=tiny.tokenizer(),
        peft_config=lora,
        callbacks=[Watch()],
    )
    clock.times[0] = time.perf_counter()
    trainer.train()
    return {**ours.result(clock, trainer.model, tokens[-1] / case.steps), "losses": losses}
