"""Fixtures of the tests of `fetch`, which publishing needs, too."""

from tests.unit.trainer.fetch.conftest import context, hub, no_pauses

__all__ = ["context", "hub", "no_pauses"]
