"""A trained reward model at inference: token ids in, scores out.

Used by stage ppo. It is an artifact of stage rm or an equivalent model: a whole model, or an adapter on a base, which
may first need the earlier adapter beside it merged. It scores exactly as in its training: no adapter is merged that was
not merged then, and the head computes in fp32.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.contract import source_of
from transformers import PretrainedConfig

from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.model import base, merging, model_files, reward_head, saved_adapter, stream, trainable, vocabulary
from finetune_trainer.model import tokenizer as tokenizers
from finetune_trainer.run import Run
from finetune_trainer.workspace.prepared import PreparedJob

STATISTICS = "reward_statistics.json"
FIELD = "ppo.rewardModel"


@dataclass(frozen=True)
class RewardModel:
    """Frozen, on one device. Each rank holds all of it."""

    model: Any
    pad_id: int
    dtype: torch.dtype
    """Number type of the base."""
    mean: float | None
    """Mean of held-out scores, measured by stage rm. None for a model that stage rm did not train."""
    std: float | None
    """Their standard deviation."""

    @torch.no_grad()
    def score(self, texts: Sequence[list[int]]) -> torch.Tensor:
        """[texts] in fp32: the score of each text, at its last token that is not the padding token."""
        device = self.model.device
        batch = collate.stream([Row(text, []) for text in texts])
        batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        # Trained fp32 weights in a 16 bit model need autocast, as in training.
        mixed = self.dtype != torch.float32
        with torch.autocast(device.type, self.dtype if mixed else None, enabled=mixed):
            output = self.model(**stream.forward_inputs(batch))
        scores: torch.Tensor = output.logits[:, 0].float()
        return scores


def load(run: Run, device: torch.device | None = None, *, tokens: int = 0) -> RewardModel:
    """The job's reward model. ``tokens``: size of the job's tokenizer. Raises InvalidSpec when its files are not those
    of a reward model."""
    folder = run.prepared.reward
    assert folder is not None, "prepare has fetched it"
    source = source_of(run.job, "rewardModel") or folder.name
    is_adapter = model_files.is_adapter(folder)
    base_folder = run.prepared.reward_base if is_adapter else folder
    assert base_folder is not None
    earlier = folder / model_files.BASE_ADAPTER
    dtype = trainable.load_dtype("lora", base.precision(run.job.training))
    model: Any = merging.load_merged(
        base_folder,
        [earlier] if is_adapter and earlier.is_dir() else [],
        source,
        "reward",
        dtype=dtype,
        attention=run.job.model.attention,
        # The job allows the code of its own model only.
        allow_remote_code=base.remote_code(run.job) and base_folder == run.prepared.model,
        field=FIELD,
    )
    pad_id = _pad_id(run.prepared, folder, model.config)
    # Tokenizers may have tokens that weights lack, most often a padding token. In training such a model grows, too.
    saved_rows = saved_adapter.embedding_rows(folder) if is_adapter else 0
    vocabulary.grow(model, saved_rows or max(tokens, pad_id + 1))
    if is_adapter:
        model = saved_adapter.attach(model, folder, source, exact=True, field=FIELD)
    reward_head.read_value_head(model, folder, frozen=True)
    model.config.get_text_config().pad_token_id = pad_id
    model.requires_grad_(False)
    model.eval()
    statistics = _statistics(folder)
    return RewardModel(
        model=model.to(device),
        pad_id=pad_id,
        dtype=dtype,
        mean=statistics.get("mean"),
        std=statistics.get("std"),
    )


def _pad_id(prepared: PreparedJob, folder: Path, config: PretrainedConfig) -> int:
    """The padding token of the model's training, by which it finds the end of a text."""
    pad_id: int | None = None
    if not model_files.is_adapter(folder):
        pad_id = config.get_text_config().pad_token_id
    if pad_id is None:
        candidates = (folder, prepared.reward_base, prepared.model)
        with_tokenizer = next(path for path in candidates if path and (path / "tokenizer.json").is_file())
        pad_id = tokenizers.load(with_tokenizer).pad_token_id
    return pad_id


def _statistics(folder: Path) -> dict[str, float]:
    file = folder / STATISTICS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
