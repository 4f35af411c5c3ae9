"""When a rank that says nothing counts as hung, by what it does and by its own pace."""

from dataclasses import replace
from pathlib import Path

import pytest
from finetune_trainer import heartbeat
from finetune_trainer.heartbeat import Beat
from finetune_trainer.stillness import Bounds, Rank, Stillness

MINUTE = 60.0
BOUNDS = Bounds()


def paced(*beats: Beat) -> Rank:
    rank = Rank(0.0)
    for beat in beats:
        rank.hear(beat)
    return rank


def steps(seconds: float, number: int = 5) -> list[Beat]:
    return [Beat("train", step, step * seconds) for step in range(1, number + 1)]


@pytest.mark.parametrize(
    ("rank", "minutes"),
    [
        (paced(), 30),
        (paced(*steps(100, 1)), 30),
        (paced(*steps(1)), 10),
        (paced(*steps(90)), 30),
        (paced(*steps(90), Beat("train", 6, 90_000)), 30),
        (paced(*steps(1), Beat("evaluate", 5, 6)), 30),
        (paced(*steps(1), Beat("evaluate", 5, 6), Beat("train", 5, 306), Beat("evaluate", 6, 310)), 25),
        (paced(*steps(1), Beat("save", 5, 6), Beat("train", 5, 8), Beat("save", 6, 9)), 30),
        (paced(*steps(1), Beat("save", 5, 6, 100)), 10),
        (paced(*steps(1), Beat("save", 5, 6, 1200)), 100),
        (paced(*steps(1), Beat("finish", 5, 6)), 60),
    ],
    ids=[
        "nothing yet",
        "one step, of unknown pace",
        "fast steps",
        "slow steps",
        "one step was slower",
        "first evaluation",
        "second evaluation",
        "a save before any is in its place",
        "a save after a fast one",
        "a save after a slow one",
        "artifact",
    ],
)
def test_how_long_a_rank_may_stand_still(rank: Rank, minutes: float) -> None:
    assert rank.bound(BOUNDS) == minutes * MINUTE


def test_an_evaluation_is_no_step() -> None:
    rank = paced(*steps(1), Beat("evaluate", 5, 6), Beat("train", 5, 4000), Beat("train", 6, 4001))
    assert rank.bound(BOUNDS) == 10 * MINUTE


def test_signs_of_life_within_a_step_are_no_steps() -> None:
    rank = paced(Beat("train", 1, 0), Beat("train", 1, 89), Beat("train", 2, 90), Beat("train", 2, 150))
    rank.hear(Beat("train", 3, 180))
    assert rank.bound(BOUNDS) == 30 * MINUTE


def test_who_stands_still_is_named_with_all_the_others(tmp_path: Path) -> None:
    (tmp_path / "beat-2").write_text("train 7 1000.000000 0.0\n")
    (tmp_path / "beat-3").write_text("evaluate 6 2500.000000 0.0\n")
    found = Stillness(tmp_path, [2, 3], BOUNDS, now=900.0)
    assert found.look([2, 3], 1001) is None
    assert found.look([2, 3], 2799) is None
    said = found.look([2, 3], 2801)
    assert said is not None
    assert "rank 2 in phase train after step 7, for 1801 s (bound 1800 s)" in said
    assert "rank 3 in phase evaluate after step 6, for 301 s. The" in said
    assert found.look([3], 2900) is None, "rank 2 has ended"


@pytest.mark.parametrize(("phase", "waits"), [("save", True), ("load", True), ("train", False)])
def test_who_waits_for_files_of_another_rank_is_not_still(tmp_path: Path, phase: str, waits: bool) -> None:
    (tmp_path / "beat-0").write_text(f"{phase} 4 5000.000000 0.0\n")
    (tmp_path / "beat-1").write_text(f"{phase} 4 1000.000000 0.0\n")
    found = Stillness(tmp_path, [0, 1], BOUNDS, now=900.0)
    assert (found.look([0, 1], 5001) is None) is waits
    assert f"rank 0 in phase {phase} after step 4, for 1801 s (bound" in (found.look([0, 1], 6801) or "")


def test_a_rank_that_never_said_a_word_is_loading(tmp_path: Path) -> None:
    found = Stillness(tmp_path, [0], BOUNDS, now=0.0)
    assert found.look([0], 1799) is None
    assert "rank 0 in phase load after step 0" in (found.look([0], 1801) or "")


def test_what_a_rank_says_is_read_whole(tmp_path: Path) -> None:
    heartbeat.beat("train", 1)
    assert heartbeat.read(tmp_path, 0) is None
    heartbeat.open_file(tmp_path, 0)
    heartbeat.beat("evaluate", 1234567)
    heartbeat.beat("save", 2)
    heartbeat.saved(90.5)
    read, last = heartbeat.read(tmp_path, 0), heartbeat.last()
    assert read is not None
    assert (read.phase, read.step, read.save_seconds) == (last.phase, last.step, last.save_seconds) == ("save", 2, 90.5)
    assert read.time == pytest.approx(last.time, abs=1e-5)


def test_a_sign_of_life_leaves_the_phase_to_the_main_thread(tmp_path: Path) -> None:
    heartbeat.open_file(tmp_path, 0)
    heartbeat.beat("evaluate", 7)
    before = heartbeat.last()
    heartbeat.alive()
    now = heartbeat.last()
    assert now.time > before.time
    assert now == replace(before, time=now.time)
    read = heartbeat.read(tmp_path, 0)
    assert read is not None
    assert replace(read, time=now.time) == now
