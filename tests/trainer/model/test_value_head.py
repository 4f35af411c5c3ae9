"""The critic's values come with the log-probabilities. It is saved in checkpoints, but not with a policy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.tuning import TuningSpec
from finetune_trainer.data import collate
from finetune_trainer.data.row import IGNORED, Row
from finetune_trainer.model import base, stream, trainable, value_head
from finetune_trainer.model.lm_head import TrainedPositions

LORA = TuningSpec.model_validate({"method": "lora", "lora": {"rank": 4}})
FULL = TuningSpec.model_validate({"method": "full"})


def policy(folder: Path, tuning: TuningSpec) -> Any:
    from trl.trainer.utils import add_fused_lm_head

    model = base.load(folder, "pvc://models/model", torch.float32, attention="auto")
    add_fused_lm_head(model)
    return trainable.apply(model, tuning, 0)


def batch() -> collate.Batch:
    return collate.stream([Row(list(range(5, 17)), [(4, 12)]), Row(list(range(17, 29)), [(4, 10)])])


def set_weights(model: Any) -> torch.Tensor:
    """Give the head weights that are not zero."""
    weight: torch.Tensor = next(
        weight for name, weight in model.named_parameters() if value_head.NAME in name and weight.requires_grad
    )
    with torch.no_grad():
        weight.copy_(torch.linspace(-1, 1, weight.numel()).reshape(1, -1))
    return weight.detach()


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("first", ["reduced", "added"])
def test_values_come_from_the_same_forward_pass_at_the_same_positions(
    model: Path, tuning: TuningSpec, first: str
) -> None:
    tuned = policy(model, tuning)
    inner = tuned.get_base_model() if tuning.method == "lora" else tuned
    given = batch()
    with torch.no_grad():
        hidden = inner.base_model(**stream.forward_inputs(given)).last_hidden_state
    if first == "reduced":
        positions = TrainedPositions(inner)
        value_head.add(tuned)
    else:
        value_head.add(tuned)
        positions = TrainedPositions(inner)
    assert not any(weight.any() for name, weight in tuned.named_parameters() if value_head.NAME in name)
    weight = set_weights(tuned)

    whole = tuned(**stream.forward_inputs(given), labels=given["labels"], fused_lm_head=True)
    reduced = positions.score(tuned, given)

    expected = (hidden[:, :-1] @ weight.T).squeeze(-1)
    assert torch.allclose(whole.state_values, expected, atol=1e-5)
    assert whole.state_values.shape == whole.log_probs.shape
    assert torch.allclose(reduced.state_values[0], expected[given["labels"][:, 1:] != IGNORED], atol=1e-5)
    reduced.state_values.sum().backward()
    learned = [name for name, weight in tuned.named_parameters() if value_head.NAME in name and weight.grad is not None]
    assert len(learned) == 2


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_it_is_saved_and_loaded_with_the_trained_weights(model: Path, tmp_path: Path, tuning: TuningSpec) -> None:
    tuned, again = policy(model, tuning), policy(model, tuning)
    for each in (tuned, again):
        value_head.add(each)
    weight = set_weights(tuned)
    tuned.save_pretrained(str(tmp_path))
    if tuning.method == "lora":
        again.load_adapter(str(tmp_path), again.active_adapter, is_trainable=True)
    else:
        from safetensors.torch import load_file

        again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    loaded = [w for name, w in again.named_parameters() if value_head.NAME in name and w.requires_grad]
    assert torch.equal(loaded[0], weight)


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_a_policy_is_saved_without_it(model: Path, tmp_path: Path, tuning: TuningSpec) -> None:
    tuned = policy(model, tuning)
    tuned.save_pretrained(str(tmp_path / "before"))
    value_head.add(tuned)
    value_head.remove(tuned)
    tuned.save_pretrained(str(tmp_path / "after"))
    before, after = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("before", "after")
    )
    assert before == after
