"""docs/fault-sweep.md adds up from the results of single lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.controlplane import fault_report
from tests.controlplane.fault_proxy import Call, Fault
from tests.controlplane.fault_report import PAGE, Outcomes, is_done, page

CALLS = [Call("POST", "jobs", "n", "a", 201), Call("PATCH", "finetunejobs/status", "n", "a", 200)]


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """[commit, digest], which a test changes."""
    made = ["c0ffee", "1"]
    monkeypatch.setattr(fault_report, "version", lambda: (made[0], made[1]))
    return made


def sweep(life: str, results: Path, wrong: tuple[int, ...] = (), tests: int = 2) -> None:
    """A run of a life, with results."""
    outcomes = Outcomes()
    killed = [(life, Fault("crash before", at)) for at in (1, 2)]
    refused = [(life, Fault("refuse", at, 503)) for at in (1, 2)]
    for cases in (killed, refused)[:tests]:
        outcomes.add(cases, wrong if cases is refused else ())
    outcomes.write({life: CALLS}, results)


def test_lives_add_up_over_runs(tmp_path: Path, today: list[str]) -> None:
    sweep("retry", tmp_path)
    today[0] = "decade"
    sweep("bad data", tmp_path, wrong=(1,))
    text = page(tmp_path)
    assert "**7 of 8 cases passed, in 2 of 12 lives.**" in text
    assert "| chain | | | not run yet |" in text
    assert "commit c0ffee" in next(line for line in text.splitlines() if line.startswith("| retry | 2 | 4 of 4 |"))
    assert "commit decade" in next(line for line in text.splitlines() if line.startswith("| bad data | 2 | 3 of 4 |"))
    assert "| refused with 503 | 1 of 2 | 2 of 2 |" in text
    assert "- **bad data**: refuse 503 at call 2" in text
    assert "- **retry**: `POST jobs, PATCH finetunejobs/status`" in text


def test_a_life_is_done_again_if_the_operator_changed_or_a_case_went_wrong(tmp_path: Path, today: list[str]) -> None:
    assert not is_done("retry", tmp_path)
    sweep("retry", tmp_path)
    assert is_done("retry", tmp_path)
    today[0] = "another commit, with the same operator"
    assert is_done("retry", tmp_path)
    today[1] = "2"
    assert not is_done("retry", tmp_path)
    sweep("retry", tmp_path, wrong=(0,))
    assert not is_done("retry", tmp_path)
    today[1] = ""
    sweep("retry", tmp_path)
    assert not is_done("retry", tmp_path), "of changes that are not committed"


@pytest.mark.usefixtures("today")
def test_a_run_that_is_stopped_between_its_tests_leaves_what_was_there(tmp_path: Path) -> None:
    sweep("retry", tmp_path)
    before = page(tmp_path)
    sweep("retry", tmp_path, tests=1)
    assert page(tmp_path) == before


def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.controlplane.fault_sweep --page"
