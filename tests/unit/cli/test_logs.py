"""`finetune logs`: no line is lost and none is printed twice, wherever connections break."""

from __future__ import annotations

import random

import pytest
from finetune_cli.logs import reader
from finetune_cli.logs.place import Place
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.cli.log_server import POD, PodLog, served


def log_of(times: list[int], jitter: int = 0) -> list[str]:
    """Lines at these tenths of a second. Some are equal in time and text."""
    return [
        f"2026-01-31T12:{(time // 600) % 60:02d}:{time // 10 % 60:02d}.{time % 10}00000000Z line {number % 7}\n"
        for number, time in enumerate(times)
    ]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PAUSE_SECONDS", 0.0)


def printed(log: PodLog) -> list[str]:
    with served(log) as client:
        return [f"{line.stamp} {line.text}\n" for line in reader.lines(client, POD, follow=True)]


def test_every_line_comes_once_through_broken_connections() -> None:
    numbers = random.Random(1)
    lines = log_of(sorted(numbers.randrange(300) for _ in range(400)))
    size = sum(map(len, lines))
    log = PodLog(lines, cuts=[size // 3, size // 2, 10, size - 1])
    assert printed(log) == lines
    assert log.asked[0] is None
    assert all(log.asked[1:])


def test_lines_that_the_kubelet_wrote_out_of_order_come_once() -> None:
    lines = log_of([10, 12, 11, 12, 25, 24, 25, 30, 29, 41])
    size = len(lines[0])
    for cut in range(size // 2, size * len(lines), size // 2):
        assert printed(PodLog(lines, cuts=[cut])) == lines


def test_the_log_goes_through_a_file_that_the_kubelet_has_put_aside() -> None:
    lines = log_of([10, 11, 12, 13, 14, 15])
    log = PodLog(lines, cuts=[len(lines[0]) * 3], first=3)
    assert printed(log) == lines


def test_the_end_is_read_once_more_after_the_container_has_ended() -> None:
    log = PodLog(log_of([1, 2, 3]), cuts=[])
    assert len(printed(log)) == 3
    assert log.follows == [True, False]


def test_a_notice_of_the_kubelet_comes_once() -> None:
    """It has no time, for example when the log of a container is gone."""
    assert printed(PodLog(["unable to retrieve container logs\n"], cuts=[])) == [" unable to retrieve container logs\n"]


@given(
    times=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    late=st.lists(st.integers(0, 9), min_size=40, max_size=40),
)
@settings(max_examples=200)
def test_a_place_skips_exactly_what_was_read(times: list[int], cuts: list[int], late: list[int]) -> None:
    """Lines up to a second late, and connections that break anywhere."""
    lines = log_of([max(0, time - delay) for time, delay in zip(sorted(times), late, strict=False)])
    place, read, cuts = Place(), list[str](), [*cuts, len(lines)]
    for cut in cuts:
        start = place.reopen()
        sent = [line for line in lines if start is None or line >= start.removesuffix("Z")]
        stop = cut if cut is not cuts[-1] else len(sent)
        for line in sent[:stop]:
            if place.is_new(line.partition(" ")[0]):
                read.append(line)
    assert read == lines


def test_a_place_needs_no_memory_that_grows() -> None:
    place = Place()
    for line in log_of(list(range(20_000))):
        place.is_new(line.partition(" ")[0])
    assert len(place._counts) <= 3
