"""The time that a rank computes: the sections of a step between a begin and an end, and nothing else."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer.training import own_time
from finetune_trainer.training.own_time import UNMEASURED, OwnTime, measure_inside


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time now."""
    now = [0.0]
    monkeypatch.setattr(own_time, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_sections_are_added_up_and_waiting_is_left_out(clock: list[float]) -> None:
    own = OwnTime(torch.device("cpu"))
    own.end()  # nothing has begun
    for begun, ended in ((1.0, 3.0), (10.0, 14.0)):
        clock[0] = begun
        own.begin()
        own.begin()
        clock[0] = ended
        own.end()
    assert own.take() == 6
    assert own.take() == UNMEASURED, "the next step begins at nothing"


def test_inside_a_layer_its_modules_are_measured(clock: list[float]) -> None:
    class Slow(torch.nn.Module):
        def forward(self, value: Any) -> Any:
            clock[0] += 2
            return value

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mlp = Slow(), Slow()

        def forward(self, value: Any) -> Any:
            clock[0] += 100  # it waits for its weights
            return self.mlp(self.attention(value))

    own, layer = OwnTime(torch.device("cpu")), Layer()
    measure_inside(layer, own)
    layer(torch.zeros(1))
    assert own.take() == 4
    layer.eval()
    layer(torch.zeros(1))
    assert own.take() == UNMEASURED, "an evaluation is no step"
