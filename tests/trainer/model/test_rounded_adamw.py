"""AdamW with stochastic rounding: small updates of bf16 weights are not lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Preempted
from finetune_trainer.model.rounded_adamw import RoundedAdamW, stochastic_round
from finetune_trainer.stages.sft import workflow
from torch import nn

from tests.trainer.support import tiny

COUNT, STEPS, RATE = 65_536, 400, 2e-6


def moved(dtype: torch.dtype, kind: Callable[..., torch.optim.Optimizer], **settings: Any) -> torch.Tensor:
    """How far weights around 1 move in steps of some millionths, with gradients that are large at first."""
    source = torch.Generator().manual_seed(1)
    start = (torch.rand(COUNT, generator=source) + 0.5).to(dtype)
    weight = nn.Parameter(start.clone())
    optimizer = kind([weight], lr=RATE, **settings)
    for step in range(STEPS):
        gradient = 1 + 0.5 * torch.randn(COUNT, generator=source)
        weight.grad = ((10 if step < 5 else 1) * gradient).to(dtype)
        optimizer.step()
    return weight.detach().float() - start.float()


def test_weights_in_bf16_follow_weights_in_fp32() -> None:
    """Plain AdamW in bf16 stalls: no weight moves at all."""
    exact = moved(torch.float32, torch.optim.AdamW, weight_decay=0.0).mean()
    assert moved(torch.bfloat16, torch.optim.AdamW, weight_decay=0.0).abs().max() == 0
    rounded = moved(torch.bfloat16, RoundedAdamW, seed=1).mean()
    assert rounded == pytest.approx(float(exact), rel=0.05)


def test_without_rounding_the_numbers_are_those_of_torch() -> None:
    """fp32 weights get the same numbers, with weight decay."""
    ours = moved(torch.float32, RoundedAdamW, weight_decay=0.1, seed=1)
    assert torch.allclose(ours, moved(torch.float32, torch.optim.AdamW, weight_decay=0.1), atol=1e-6)


def test_a_number_is_rounded_to_a_neighbour_and_to_itself_on_average() -> None:
    exact = torch.tensor([1.0, 1.001, -3.3, 1e-20, 65_504.0, 0.0]).repeat(100_000, 1)
    rounded = stochastic_round(exact, torch.Generator().manual_seed(0))
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert torch.allclose(rounded.double().mean(0), exact[0].double(), rtol=1e-4)
    assert all(len(set(rounded[:, column].tolist())) == (1 if column in (0, 5) else 2) for column in range(6))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_in_pure_bf16_rounds_like_an_uninterrupted_one(root: Path, method: str) -> None:
    """The random bits follow from seed and step."""
    training = {"precision": "pureBf16", "learningRate": 0.003, "scheduler": "constant"}
    job = tiny.job(tuning={"method": method}, training=training)
    whole = tiny.make_run(root, job, workspace="whole")
    workflow.run(whole)
    cut = tiny.make_run(root, job, workspace="cut")
    with pytest.raises(Preempted):
        workflow.run(tiny.stopped_at(cut, 2))
    workflow.run(tiny.make_run(root, job, workspace="cut", attempt=2))
    assert tiny.losses(cut) == tiny.losses(whole)
    weights = [next(run.folders.artifact.glob("*.safetensors")).read_bytes() for run in (whole, cut)]
    assert weights[0] == weights[1]
