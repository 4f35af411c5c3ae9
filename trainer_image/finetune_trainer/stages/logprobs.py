"""What a model makes of given tokens: log-probabilities, in one forward pass and without the logits of all positions.

Used by stages dpo, kto and ppo, for the policy and for its reference alike, so that two models that are equal are equal
to the last bit here. `add` is called once for each model, before it is given to a trainer.
"""

from typing import Any

import torch
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel
from trl.trainer.utils import add_fused_lm_head

from finetune_trainer.data.row import IGNORED
from finetune_trainer.model.head import TrainedPositions

POSITIONS = "trained_positions"
"""Attribute of a model that `add` was called for."""


def unwrapped(model: Any) -> Any:
    """Not as DDP wraps it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def bare(model: Any) -> Any:
    """The causal language model itself, without an adapter around it."""
    model = unwrapped(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def add(model: Any, temperature: float = 1.0, outputs: tuple[str, ...] = ("log_probs",)) -> None:
    """Give the model its fused head, if it has none yet. Logits are divided by ``temperature`` there; ``outputs`` as
    TRL has them."""
    base = bare(model)
    if not hasattr(base, POSITIONS):
        add_fused_lm_head(base, temperature=temperature, outputs=outputs)
        setattr(base, POSITIONS, TrainedPositions(base))


def of_answers(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[N, L-1]: of token t+1 at position t where ``labels`` count it, else 0. ``model`` may be wrapped."""
    if input_ids.device.type != "cpu":
        scored = model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False, fused_lm_head=True
        )
        return scored.log_probs.float()  # type: ignore[no-any-return]
    # There TRL's head would score every position, prompts and padding included.
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    scored = getattr(bare(model), POSITIONS).score(model, batch).log_probs.float()
    trained = labels[:, 1:] != IGNORED
    return scored.new_zeros(trained.shape).masked_scatter(trained, scored)  # type: ignore[no-any-return]


def counted(labels: torch.Tensor) -> torch.Tensor:
    """[N]: how many tokens of each row count."""
    return (labels[:, 1:] != IGNORED).sum(dim=1)
