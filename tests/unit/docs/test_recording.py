"""The recording of the tutorial has its commands as they stand."""

from __future__ import annotations

from tests.docsite import recording
from tests.docsite.recording import CLUSTER, LAPTOP, MISTAKE, Step


def test_a_recording_has_every_command_of_the_tutorial() -> None:
    every = {section: list(recording.commands(section)) for section in (LAPTOP, CLUSTER, MISTAKE)}
    assert all(every.values())
    made = recording.page(
        {
            name: [Step(each, "text\n$ more\n``````text\nx\n``````", 0) for each in found]
            for name, found in every.items()
        }
    )
    flat = [each for found in every.values() for each in found]
    assert recording.recorded_commands(made) == flat
    if recording.RECORDING.exists():
        assert recording.recorded_commands(recording.RECORDING.read_text(encoding="utf-8")) == flat, "record it again"


def test_the_training_is_recorded_where_it_is_removed_before() -> None:
    train = next(each for each in recording.commands(LAPTOP) if " train " in each)
    assert f"--workspace {recording.LEFT.relative_to(recording.CHECKOUT)} " in train


def test_only_the_mistake_may_fail() -> None:
    wrong = [
        each for name in (LAPTOP, CLUSTER, MISTAKE) for each in recording.commands(name) if Step(each, "", 0).expected
    ]
    assert len(wrong) == 1
    assert "=alpaca" in wrong[0]
