"""What `gpu_check` measures, the most important first: a run that is cut short has told the most that it can.

A case is plain data, so that a process of its own can be told which. It needs nothing but Python.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

Program = Literal["environment", "parity", "ours", "trl", "launcher"]
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    # Llama 3.1 8B's: grouped queries, and a vocabulary whose logits outweigh everything else.
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
    },
    "tiny": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}
"""Configs of Llama models, which get random weights: speed and memory are those of trained ones."""
STAGES = ("pt", "sft", "rm", "dpo", "kto", "ppo")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    program: Program
    name: str
    seconds: int
    """After these it is stopped."""
    model: str = "SmolLM2-135M"
    stage: str = "sft"
    method: str = "lora"
    precision: str = "bf16"
    optimizer: str = "adamw_torch"
    packed: bool = False
    cutoff: int = 512
    """Tokens of a pack, and of the longest row."""
    batch: int = 32
    micro: int = 16
    steps: int = 8


def cases() -> Iterator[Case]:
    """All of them, in their order."""
    yield Case("environment", "environment", 60)
    yield Case("parity", "attention: documents together and alone", 60, batch=16, micro=8, steps=4)
    big = Case("ours", "", 75, model="8B", packed=True, cutoff=4096, batch=4, micro=4, steps=8)
    trl = replace(big, program="trl")
    long: dict[str, Any] = {"packed": False, "cutoff": 32768, "batch": 1, "micro": 1, "steps": 5}
    full: dict[str, Any] = {"method": "full", "precision": "pureBf16"}
    yield replace(big, name="8B lora, packed 4k")
    yield replace(trl, name="8B lora, packed 4k, TRL")
    yield replace(big, name="8B full pureBf16, packed 4k", **full)
    yield replace(big, name="8B lora, rows of 32k", **long)
    yield replace(trl, name="8B lora, rows of 32k, TRL", **long)
    yield replace(trl, name="8B full bf16, packed 4k, TRL", **full)
    small = Case("ours", "", 40)
    yield replace(small, name="launcher, sft lora", program="launcher", seconds=60)
    for stage in ("sft", "dpo", "rm", "kto", "pt", "ppo"):
        for method in ("lora", "full"):
            seconds = 60 if stage == "ppo" else small.seconds
            yield replace(small, name=f"{stage} {method}", stage=stage, method=method, seconds=seconds)
    yield replace(small, name="sft lora, packed", packed=True, cutoff=2048, batch=8, micro=8)
    yield replace(small, name="sft lora, rows of 8k", cutoff=8192, batch=2, micro=2)
    yield replace(small, name="sft qlora", method="qlora")
    yield replace(small, name="dpo qlora", stage="dpo", method="qlora")
    yield replace(big, name="8B full, 8-bit optimizer, packed 4k", method="full", optimizer="adamw_8bit", micro=2)
    yield replace(big, name="8B full pureBf16, rows of 32k", **(full | long))


def on_cpu(case: Case) -> Case:
    """The same on a CPU, so small that it says nothing but that the program works."""
    return replace(
        case,
        model="tiny",
        precision="fp32" if case.precision == "bf16" else case.precision,
        cutoff=min(case.cutoff, 128),
        batch=4,
        micro=2,
        steps=3,
    )
