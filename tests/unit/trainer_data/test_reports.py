"""Small sums of the reports."""

import json
from pathlib import Path

import pytest
from finetune_trainer.reporting.plots import smoothed
from finetune_trainer.reporting.progress import cut_back, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.4, "59s"), (59.6, "1m00s"), (312, "5m12s"), (3599.7, "1h00m"), (11_220, "3h07m"), (187_200, "2d04h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_smoothing_keeps_a_constant_and_follows_a_change() -> None:
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    curve = smoothed([4.0, 4.0, 1.0, 1.0, 1.0])
    assert curve[1] > curve[2] > curve[3] > curve[4] > 1.0
    assert smoothed([]) == []


def test_a_resumed_log_goes_on_after_the_checkpoints_step(tmp_path: Path) -> None:
    file = tmp_path / "reports" / "trainer_log.jsonl"
    cut_back(file, 3)  # nothing there yet
    lines = [json.dumps({"current_steps": step, "loss": 1.0}) for step in range(1, 6)]
    file.write_text("\n".join([*lines, '{"current_st']))
    cut_back(file, 3)
    assert file.read_text().splitlines() == lines[:3]
