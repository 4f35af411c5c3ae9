"""Curves as texts: what is read is what was written, all of the run is there, and all of them fit."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
from itertools import accumulate
from pathlib import Path

import pytest
from finetune_api import curves
from finetune_api.curves import BYTES, POINTS, Curve, Point, decode, encode, halved, mean, pack, unpack
from finetune_api.status import FineTuneJobStatus, Progress
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

DOCS = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


QUICK = settings(max_examples=20, deadline=None)


@st.composite
def runs(draw: st.DrawFn, most: int) -> list[Point]:
    """Log lines, mostly at equal distances. Long lists would take hypothesis minutes."""
    count, chance = draw(st.integers(1, most)), random.Random(draw(st.integers(0, 10**6)))
    apart, odd = chance.randint(1, 1000), chance.choice([0, 0.1, 1])
    increments = [chance.randint(0, 50) if chance.random() < odd else apart for _ in range(count)]
    values = [chance.choice(NOT_NUMBERS) if chance.random() < 0.05 else chance.lognormvariate(0, 9) for _ in increments]
    return list(zip(accumulate(increments), values, strict=True))


NOT_NUMBERS = (math.nan, math.inf, -math.inf)


def numbers(points: list[Point]) -> list[float | None]:
    """The values; None is no number, which equals itself."""
    return [value if math.isfinite(value) else None for _, value in points]


@QUICK
@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(-1e300, 1e300) | st.sampled_from(NOT_NUMBERS)), max_size=20))
def test_a_curve_is_read_as_it_was_written(points: list[Point]) -> None:
    points = sorted(points, key=lambda point: point[0])
    read = decode(encode(points))
    assert [step for step, _ in read] == [step for step, _ in points]
    assert numbers(read) == [value if value is None else float(f"{value:.4e}") for value in numbers(points)]
    assert encode(read) == encode(points)


def test_the_text_is_short_and_for_people() -> None:
    points = [(10, 2.345678), (20, 0.11), (30, math.nan), (35, 123456.0), (36, 2e-5), (37, 0.0), (38, -0.25)]
    assert encode(points) == "1;10*3,5,1*3;2.3457,.11,,12346e1,2e-5,0,-.25"
    assert encode([]) == "1;;"
    assert decode("1;;") == []


@pytest.mark.parametrize("text", ["2;10;1", "", "1", "1;10*2;1", "1;1;a", "1;x;1"])
def test_what_is_no_curve_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(text)


@QUICK
@given(runs(most=1500))
def test_a_curve_has_all_of_the_run_at_equal_widths(lines: list[Point]) -> None:
    curve = Curve()
    for step, value in lines:
        curve.add(step, value)
    at = range(0, len(lines), curve.width)
    assert [step for step, _ in curve.points] == [lines[first : first + curve.width][-1][0] for first in at]
    assert len(lines) <= POINTS or POINTS / 2 <= len(curve.points) <= POINTS
    if len(lines) <= POINTS:
        assert numbers(curve.points) == numbers(lines)


def test_a_point_is_the_mean_of_its_values() -> None:
    curve = Curve()
    for step in range(1, 4 * POINTS + 3):
        curve.add(step, float(step))
    assert curve.width == 8
    assert curve.points[:2] == [(8, 4.5), (16, 12.5)]
    assert curve.points[-1] == (4 * POINTS + 2, 4 * POINTS + 1.5), "its last point has two values so far"
    assert halved([(1, 1.0), (2, math.nan), (3, math.inf)])[0] == (2, 1.0)
    assert math.isnan(mean([(3, math.inf)])[1])


def test_a_curve_does_not_grow_with_the_run() -> None:
    curve, most = Curve(), 0
    for step in range(1, 5000):
        curve.add(step, 1.0)
        most = max(most, len(curve.points))
    assert most == POINTS


@QUICK
@given(st.lists(runs(most=POINTS), min_size=1, max_size=3), st.integers(1, 12))
def test_all_curves_fit(some: list[list[Point]], copies: int) -> None:
    named = {f"metric{number}-{copy}": points for number, points in enumerate(some) for copy in range(copies)}
    texts = pack(named)
    assert texts.keys() == named.keys()
    assert len(json.dumps(texts)) <= BYTES
    lasts = [decode(texts[name])[-1][0] for name in named]
    assert lasts == [points[-1][0] for points in named.values()], "each reaches the end of the run"
    if sum(len(encode(points)) + 30 for points in named.values()) <= BYTES:
        assert texts == {name: encode(points) for name, points in named.items()}


def test_no_text_is_left_out_of_the_crds_bounds() -> None:
    widest = [(step * step * 1000, -1.2345e-101) for step in range(1, POINTS + 2)]
    texts = pack({f"metric{number}": widest for number in range(40)})
    progress = {"attempt": 1, "step": 1, "totalSteps": 1, "percent": 1, "summary": "", "lastUpdateTime": "x"}
    assert Progress.model_validate({**progress, "curves": texts}).curves == texts
    with pytest.raises(ValidationError):
        Progress.model_validate({**progress, "curves": {"loss": "1" * (BYTES + 1)}})


def test_the_curves_of_a_status_are_read_also_between_two_attempts() -> None:
    status = {"phase": "Suspended", "progress": {"curves": {"loss": "1;2*2;3,2.5"}}}
    assert unpack(status) == {"loss": [(2, 3.0), (4, 2.5)]}
    assert unpack({}) == unpack({"progress": {}}) == {}
    assert FineTuneJobStatus.read(status).progress is None


def test_the_readers_in_the_guide_read_what_we_write() -> None:
    text = encode([(10, 2.5), (20, math.nan), (30, 0.125), (35, 2e-5)])
    python, awk = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)[0], awk_program()
    space: dict[str, object] = {}
    exec(python, space)
    read = space["decode"]
    assert callable(read)
    assert [(step, value) for step, value in read(text) if value is not None] == [
        point for point in curves.decode(text) if math.isfinite(point[1])
    ]
    shown = subprocess.run(["awk", "-F;", awk], input=text, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["10 2.5", "20 ", "30 .125", "35 2e-5"]


def awk_program() -> str:
    [program] = re.findall(r"awk -F';' '(.*?)'", DOCS.read_text(), re.S)
    return str(program)
