"""fp16, for GPUs that are older than Ampere: the choice of the number type, and training with a scaled loss.

accelerate scales the loss on GPUs only. Here it gets the scaler of torch for CPUs, which is the same code.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from finetune_api.training import TrainingSpec
from finetune_trainer.errors import Diverged, InvalidSpec, Preempted
from finetune_trainer.model import base
from finetune_trainer.stages.sft import workflow
from finetune_trainer.training.divergence import SKIPPED_STEPS, SkippedSteps

from tests.trainer.support import tiny


@pytest.mark.parametrize(
    ("capability", "wanted", "chosen"),
    [
        ((7, 0), "auto", "fp16"),
        ((7, 5), "auto", "fp16"),
        ((8, 0), "auto", "bf16"),
        ((9, 0), "auto", "bf16"),
        (None, "auto", "fp32"),
        ((7, 5), "bf16", "bf16"),
        ((9, 0), "fp16", "fp16"),
        ((7, 5), "pureBf16", "pureBf16"),
    ],
)
def test_auto_is_fp16_on_gpus_older_than_ampere(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, wanted: Any, chosen: str
) -> None:
    """V100 (7.0) and T4 (7.5) emulate bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert base.precision(TrainingSpec(epochs=1, precision=wanted)) == chosen


def test_fp16_on_a_cpu_is_refused_with_what_to_use() -> None:
    with pytest.raises(InvalidSpec, match=r"training\.precision: fp16 needs a GPU.*Use auto, bf16 or fp32"):
        base.precision(TrainingSpec(epochs=1, precision="fp16"))


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Training computes in fp16. The value: the scale after each step."""
    monkeypatch.setattr(base, "precision", lambda _training: "fp16")
    make, scales = Accelerator.__init__, list[float]()

    class Scaler(torch.amp.GradScaler):
        def update(self, new_scale: Any = None) -> None:
            super().update(new_scale)
            scales.append(self.get_scale())

    def init(self: Any, *args: Any, **settings: Any) -> None:
        make(self, *args, **settings)
        # The first scale is too large, and it grows again soon.
        self.native_amp, self.scaler = True, Scaler("cpu", init_scale=2.0**24, growth_interval=3)

    monkeypatch.setattr(Accelerator, "__init__", init)
    return scales


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_training_in_fp16_finds_a_scale_learns_and_resumes(root: Path, scaled: list[float], method: str) -> None:
    """The resumed run has the scale of the first, and its weights bit for bit."""
    training = {"maxSteps": 16, "learningRate": 0.01, "scheduler": "constant"}
    job = tiny.job(training=training, tuning={"method": method}, checkpoints={"everySteps": 4})
    whole = tiny.make_run(root, job, workspace="whole")
    workflow.run(whole)
    straight = list(scaled)
    skipped = [scale < before for before, scale in zip([2.0**24, *straight], straight, strict=False)]
    assert any(skipped)
    assert not all(skipped)
    assert any(scale > before for before, scale in pairwise(straight))
    losses = tiny.losses(whole)
    assert losses[-1] < losses[0] - 0.1

    scaled.clear()
    with pytest.raises(Preempted):
        workflow.run(tiny.stopped_at(tiny.make_run(root, job, workspace="cut"), 9))
    cut = tiny.make_run(root, job, workspace="cut", attempt=2)
    workflow.run(cut)
    assert scaled == straight
    assert tiny.losses(cut) == losses
    weights = [next(run.folders.artifact.glob("*.safetensors")).read_bytes() for run in (whole, cut)]
    assert weights[0] == weights[1]


def test_a_scale_that_is_never_found_is_divergence() -> None:
    steps = SkippedSteps()
    for step in range(SKIPPED_STEPS - 1):
        steps.check(step, skipped=True)
    steps.check(100, skipped=False)
    for step in range(SKIPPED_STEPS - 1):
        steps.check(step, skipped=True)
    with pytest.raises(Diverged, match=r"exceed the range of fp16\. Set training\.precision to fp32"):
        steps.check(200, skipped=True)
