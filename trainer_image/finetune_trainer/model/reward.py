"""A trained reward model at work: texts in, scores out.

Used by stage ppo. It is what stage rm made, or one like it: a whole model, or an adapter on a base, which may have to
take in an earlier adapter first, which lies beside it. It scores as it did while it was trained: nothing is merged that
was not merged then, and the head computes in fp32.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.contract import source_of

from finetune_trainer.model import adapters, base, build, vocabulary
from finetune_trainer.model import folder as model_folder
from finetune_trainer.model import tokenizer as tokenizers
from finetune_trainer.prepared import PreparedJob
from finetune_trainer.run import Run

STATISTICS = "reward_statistics.json"
FIELD = "ppo.rewardModel"


@dataclass(frozen=True)
class RewardModel:
    """Frozen, on one device, whole on each rank."""

    model: Any
    pad_id: int
    mixed: bool
    """Whether most of it is in bf16."""
    mean: float | None
    """Of held-out scores, as stage rm measured them; None where it didn't make this."""
    std: float | None

    @torch.no_grad()
    def score(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B] in fp32: how good each text is, by its last token. Padded on either side."""
        # To the right side, as in training, and by its own padding: so it finds the end.
        order = (1 - attention_mask.long()).argsort(dim=1, stable=True)
        ids, mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        device = self.model.device
        # Trained fp32 weights in a bf16 model meet as they did in training.
        with torch.autocast(device.type, torch.bfloat16, enabled=self.mixed):
            said = self.model(
                input_ids=ids.masked_fill(mask == 0, self.pad_id).to(device),
                attention_mask=mask.to(device),
                use_cache=False,
            )
        scores: torch.Tensor = said.logits[:, 0].float()
        return scores


def load(run: Run, device: torch.device | None = None) -> RewardModel:
    """The job's. Raises InvalidSpec where its files don't make one."""
    folder = run.prepared.reward
    assert folder is not None, "prepare has put it there"
    source = source_of(run.job, "rewardModel") or folder.name
    is_adapter = model_folder.is_adapter(folder)
    origin = run.prepared.reward_base if is_adapter else folder
    assert origin is not None
    earlier = folder / model_folder.BASE_ADAPTER
    dtype = adapters.load_dtype("lora", base.precision(run.job.training))
    model: Any = build.merged(
        origin,
        [earlier] if is_adapter and earlier.is_dir() else [],
        source,
        "reward",
        dtype=dtype,
        attention=run.job.model.attention,
        # Code of a model is only run where the job says so, which it says of its own.
        allow_remote_code=base.remote_code(run.job) and origin == run.prepared.model,
        field=FIELD,
    )
    if is_adapter:
        vocabulary.grow(model, build.rows(folder))
        model = build.attach(model, folder, source, exact=True, field=FIELD)
    pad_id = _pad_id(run.prepared, folder, model.config)
    model.config.get_text_config().pad_token_id = pad_id
    model.requires_grad_(False)
    model.eval()
    statistics = _statistics(folder)
    return RewardModel(
        model=model.to(device),
        pad_id=pad_id,
        mixed=dtype == torch.bfloat16,
        mean=statistics.get("mean"),
        std=statistics.get("std"),
    )


def _pad_id(prepared: PreparedJob, folder: Path, config: Any) -> int:
    """What a text's end was told by in training."""
    known: int | None = None
    if not model_folder.is_adapter(folder):
        known = config.get_text_config().pad_token_id
    if known is None:
        place = next(
            one for one in (folder, prepared.reward_base, prepared.model) if one and (one / "tokenizer.json").is_file()
        )
        known = tokenizers.load(place).pad_token_id
    return known


def _statistics(folder: Path) -> dict[str, float]:
    file = folder / STATISTICS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
