"""When a rank without heartbeats counts as hung, by its phase and its pace."""

from dataclasses import replace
from pathlib import Path

import pytest
from finetune_trainer.launcher.hang_detection import HangDetector, HangLimits, RankPace
from finetune_trainer.runtime import exit_report, heartbeat
from finetune_trainer.runtime.heartbeat import Beat

MINUTE = 60.0
LIMITS = HangLimits()


def pace_of(*beats: Beat) -> RankPace:
    pace = RankPace(0.0)
    for beat in beats:
        pace.record(beat)
    return pace


def steps(seconds: float, number: int = 5) -> list[Beat]:
    return [Beat("train", step, step * seconds) for step in range(1, number + 1)]


@pytest.mark.parametrize(
    ("pace", "minutes"),
    [
        (pace_of(), 30),
        (pace_of(*steps(100, 1)), 30),
        (pace_of(*steps(1)), 10),
        (pace_of(*steps(90)), 30),
        (pace_of(*steps(90), Beat("train", 6, 90_000)), 30),
        (pace_of(*steps(1), Beat("evaluate", 5, 6)), 30),
        (pace_of(*steps(1), Beat("evaluate", 5, 6), Beat("train", 5, 306), Beat("evaluate", 6, 310)), 25),
        (pace_of(*steps(1), Beat("save", 5, 6), Beat("train", 5, 8), Beat("save", 6, 9)), 30),
        (pace_of(*steps(1), Beat("save", 5, 6, 100)), 10),
        (pace_of(*steps(1), Beat("save", 5, 6, 1200)), 100),
        (pace_of(*steps(1), Beat("finish", 5, 6)), 60),
    ],
    ids=[
        "no heartbeat",
        "one step, of unknown duration",
        "fast steps",
        "slow steps",
        "one slower step",
        "first evaluation",
        "second evaluation",
        "save before the first has ended",
        "save after a fast save",
        "save after a slow save",
        "artifact",
    ],
)
def test_limit_of_each_phase(pace: RankPace, minutes: float) -> None:
    assert pace.limit(LIMITS) == minutes * MINUTE


def test_the_time_of_an_evaluation_does_not_count_as_a_step() -> None:
    pace = pace_of(*steps(1), Beat("evaluate", 5, 6), Beat("train", 5, 4000), Beat("train", 6, 4001))
    assert pace.limit(LIMITS) == 10 * MINUTE


def test_heartbeats_within_a_step_do_not_count_as_steps() -> None:
    pace = pace_of(Beat("train", 1, 0), Beat("train", 1, 89), Beat("train", 2, 90), Beat("train", 2, 150))
    pace.record(Beat("train", 3, 180))
    assert pace.limit(LIMITS) == 30 * MINUTE


def test_the_message_names_the_hung_rank_and_the_state_of_all(tmp_path: Path) -> None:
    (tmp_path / "beat-2").write_text("train 7 1000.000000 0.0\n")
    (tmp_path / "beat-3").write_text("evaluate 6 2500.000000 0.0\n")
    detector = HangDetector(tmp_path, [2, 3], LIMITS, now=900.0)
    assert detector.check([2, 3], 1001) == []
    assert detector.check([2, 3], 2799) == []
    message = exit_report.hung(detector.check([2, 3], 2801)).message
    assert "rank 2 in phase train after step 7, for 1801 s (limit 1800 s)" in message
    assert "rank 3 in phase evaluate after step 6, for 301 s. See" in message
    assert detector.check([3], 2900) == [], "rank 2 has ended"


@pytest.mark.parametrize(("phase", "waits_for_peer"), [("save", True), ("load", True), ("train", False)])
def test_a_rank_that_waits_for_files_of_another_rank_is_not_hung(
    tmp_path: Path, phase: str, waits_for_peer: bool
) -> None:
    (tmp_path / "beat-0").write_text(f"{phase} 4 5000.000000 0.0\n")
    (tmp_path / "beat-1").write_text(f"{phase} 4 1000.000000 0.0\n")
    detector = HangDetector(tmp_path, [0, 1], LIMITS, now=900.0)
    assert (detector.check([0, 1], 5001) == []) is waits_for_peer
    hung = {silence.rank: silence.limit for silence in detector.check([0, 1], 6801)}
    assert hung == {0: 1800, 1: 1800}


def test_a_rank_without_a_heartbeat_is_loading(tmp_path: Path) -> None:
    detector = HangDetector(tmp_path, [0], LIMITS, now=0.0)
    assert detector.check([0], 1799) == []
    assert [(silence.phase, silence.step) for silence in detector.check([0], 1801)] == [("load", 0)]


def test_a_heartbeat_is_read_back(tmp_path: Path) -> None:
    heartbeat.beat("train", 1)
    assert heartbeat.read(tmp_path, 0) is None
    heartbeat.open_file(tmp_path, 0)
    heartbeat.beat("evaluate", 1234567)
    heartbeat.beat("save", 2)
    heartbeat.record_save(90.5)
    read, last = heartbeat.read(tmp_path, 0), heartbeat.last()
    assert read is not None
    assert (read.phase, read.step, read.save_seconds) == (last.phase, last.step, last.save_seconds) == ("save", 2, 90.5)
    assert read.time == pytest.approx(last.time, abs=1e-5)


def test_a_refresh_keeps_phase_and_step(tmp_path: Path) -> None:
    heartbeat.open_file(tmp_path, 0)
    heartbeat.beat("evaluate", 7)
    before = heartbeat.last()
    heartbeat.refresh()
    now = heartbeat.last()
    assert now.time > before.time
    assert now == replace(before, time=now.time)
    read = heartbeat.read(tmp_path, 0)
    assert read is not None
    assert replace(read, time=now.time) == now
