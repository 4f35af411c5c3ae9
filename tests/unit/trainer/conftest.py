"""What every test of the trainer's parts gets."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has decided to recompute is not told of the next test's errors."""
    from finetune_trainer.runtime import gpumemory

    monkeypatch.setattr(gpumemory, "_recomputation", [])
