"""Curves in the terminal, jobs side by side, and the display of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_api.curves import pack
from finetune_cli import chart, compare, plots
from finetune_cli.problem import Problem
from finetune_cli.progress import Display

from tests.unit.cli.test_words_for_people import NOW, job

FALLING = [(step, 10.0 - step) for step in range(11)]


def test_a_falling_curve_falls_from_left_to_right() -> None:
    lines = chart.draw({"a": FALLING}, 30, 6, dots=False)
    rows = [line.partition("|")[2] for line in lines[:6]]
    assert rows[0].strip() == "*" * len(rows[0].strip())
    assert rows[0].index("*") == 0
    assert rows[-1].rstrip().endswith("*")
    assert [row.index("*") for row in rows] == sorted(row.index("*") for row in rows)
    assert lines[0].startswith("10 |")
    assert lines[-2].endswith(" 10")


def test_dots_are_braille_and_values_that_are_no_numbers_are_left_out() -> None:
    lines = chart.draw({"a": [(1, 1.0), (2, float("nan")), (3, 3.0)]}, 30, 4)
    assert any("⠀" < character <= "⣿" for line in lines for character in line)
    assert chart.draw({"a": [(1, float("nan"))]}) == ["no points"]


def test_curves_come_from_the_status() -> None:
    progress = {"loss": "0.1", "curves": pack({"loss": FALLING, "rewards": [(1, 2.0)]})}
    found = plots.selected([job(progress=progress)], None)
    assert found == {"a": FALLING}
    with pytest.raises(Problem, match="It has: loss, rewards"):
        plots.selected([job(progress=progress)], "accuracy")
    with pytest.raises(Problem, match=r"no curves in its status. Its newest loss is 0\.1"):
        plots.selected([job(progress={"loss": "0.1"})], None)


def test_a_curve_becomes_an_image(tmp_path: Path) -> None:
    plots.check_image("curve.png")
    plots.save({"a": FALLING, "b": FALLING[:3]}, str(tmp_path / "curve.png"), "loss")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(Problem, match=r"Endings: \.png"):
        plots.check_image("curve.bmp")


def test_a_comparison_has_only_what_differs() -> None:
    first = job("a", spec={"training": {"epochs": 1, "seed": 1}, "datasets": [{"source": "x"}]}, metrics={"loss": "1"})
    second = job("b", spec={"training": {"epochs": 2, "seed": 1}, "datasets": [{"source": "y"}]})
    assert compare.differences([first, second]) == [["datasets[0].source", "x", "y"], ["training.epochs", "1", "2"]]
    assert ["loss", "1", compare.NOT_SET] in compare.outcomes([first, second], NOW)


def test_a_pipe_gets_a_line_when_the_phase_changes(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    running: dict[str, Any] = {"u": job(progress={"summary": "1/2 (50%)", "percent": 50})}
    for _ in range(3):
        display.show(running)
    display.show({"u": job(phase="Succeeded")})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines] == [["a", "Running"], ["a", "Succeeded"]]
    assert "\x1b" not in "".join(lines)
