"""Jobs that wait for each other."""

from __future__ import annotations

import pytest
from finetune_operator.plan.cycles import find_cycle


@pytest.mark.parametrize(
    ("dependencies", "cycle"),
    [
        ({}, ()),
        ({"a": ["b"], "b": ["c"]}, ()),
        ({"a": ["a"]}, ("a", "a")),
        ({"a": ["b"], "b": ["a"]}, ("a", "b", "a")),
        ({"a": ["b", "d"], "b": ["c"], "c": ["a"], "d": ["e"]}, ("a", "b", "c", "a")),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, ()),  # a cycle of others
    ],
)
def test_cycles(dependencies: dict[str, list[str]], cycle: tuple[str, ...]) -> None:
    assert find_cycle("a", lambda name: dependencies.get(name, [])) == cycle
