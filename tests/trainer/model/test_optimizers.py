"""Each optimizer trains, keeps the state that the estimate counts, and resumes as if it had never stopped."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from finetune_api.training import TrainingSpec
from finetune_trainer.errors import Preempted
from finetune_trainer.model import optimizer
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import workflow
from transformers import AutoModelForCausalLM

from tests.trainer.support import tiny

DEFAULT = "adamw_torch_fused"
"""All other tests use it."""
RATES = {"sgd": 0.1}
NAMES = [name for name in get_args(TrainingSpec.model_fields["optimizer"].annotation) if name != DEFAULT]
STATES = ("state1", "state2")
KEPT = {"adamw_8bit": STATES, "lion_32bit": STATES[:1], "lion_8bit": STATES[:1]}
"""Of bitsandbytes' optimizers that stay on the GPU: what they keep of a weight."""


def weights(run: Run) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(run.folders.artifact.glob("*.safetensors"))}


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_an_uninterrupted_run(root: Path, name: str) -> None:
    job = tiny.job(
        tuning={"method": "full"},
        training={"optimizer": name, "learningRate": RATES.get(name, 0.003), "scheduler": "constant"},
    )
    whole = tiny.make_run(root, job, workspace="whole")
    workflow.run(whole)
    cut = tiny.make_run(root, job, workspace="cut")
    with pytest.raises(Preempted):
        workflow.run(tiny.stopped_at(cut, 2))
    if name in KEPT:
        check_states(name, cut)
    workflow.run(tiny.make_run(root, job, workspace="cut", attempt=2))
    assert tiny.losses(cut) == tiny.losses(whole)
    assert tiny.losses(whole)[-1] < tiny.losses(whole)[0] - 0.1
    assert weights(cut) == weights(whole)


def check_states(name: str, run: Run) -> None:
    """As many bytes as the estimate says, and those of embeddings in 32 bit."""
    file = run.folders.run_checkpoints / "checkpoint-3" / "optimizer.pt"
    kept = torch.load(file, map_location="cpu", weights_only=True)["state"].values()
    states = [state["__bnb_optimizer_quant_state__"][part] for state in kept for part in KEPT[name]]
    model: Any = AutoModelForCausalLM.from_pretrained(run.prepared.model)
    exact = optimizer.embedding_weights(model)
    assert [weight.shape for weight in exact] == [model.get_input_embeddings().weight.shape]
    assert {state.dtype for state in states if state.shape == exact[0].shape} == {torch.float32}
    counted = sum(optimizer.state_bytes(name, weight, 4, exact=weight is exact[0]) for weight in model.parameters())
    assert sum(state.numel() * state.element_size() for state in states) == counted


def test_paged_states_are_loaded_into_pages() -> None:
    from bitsandbytes.optim import adamw

    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 80))
    weight.grad = torch.randn(64, 80)
    kind: Any = adamw.AdamW
    first, again = (kind([weight], optim_bits=8) for _ in range(2))
    first.step()

    pages = []
    make = again.get_state_buffer

    def page(*args: Any, **settings: Any) -> Any:
        pages.append(make(*args, **settings))
        return pages[-1]

    again.get_state_buffer = page
    optimizer.load_paged_state(again, first.state_dict())
    assert len(pages) == len(STATES)
    for part, page in zip(STATES, pages, strict=True):
        assert again.state[weight][part] is page
        assert torch.equal(page, first.state[weight][part])
