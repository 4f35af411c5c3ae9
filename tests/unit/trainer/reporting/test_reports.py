"""Small helpers of the reports."""

import json
from pathlib import Path

import pytest
from finetune_trainer.reporting.progress import duration, truncate_after_step


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.4, "59s"), (59.6, "1m00s"), (312, "5m12s"), (3599.7, "1h00m"), (11_220, "3h07m"), (187_200, "2d04h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_resumed_log_continues_after_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "reports" / "trainer_log.jsonl"
    assert truncate_after_step(file, 3) == []  # nothing there yet
    lines = [json.dumps({"current_steps": step, "loss": 1.0}) for step in range(1, 6)]
    file.write_text("\n".join([*lines, '{"current_st']))
    assert truncate_after_step(file, 3) == [json.loads(line) for line in lines[:3]]
    assert file.read_text().splitlines() == lines[:3]
