"""Clusters of several checkouts and names at the same time, and valid names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import state as states
from tests.cluster.state import ClusterError, State


def test_checkouts_and_names_have_their_own_ids() -> None:
    assert len({states.cluster_id(checkout, name) for checkout in ("/a", "/b") for name in ("local", "e2e")}) == 4


@pytest.mark.parametrize("name", ["Local", "", "-a", "a-", "a.b", "../up", "x" * 21])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="at most 20 of a-z"):
        states.check_name(name)


def test_a_saved_cluster_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    assert states.load("local") is None
    own = State(
        "local", states.cluster_id(str(states.CHECKOUT), "local"), str(states.CHECKOUT), False, 2, "198.18.0.0/28"
    )
    other = State("local", states.cluster_id("/elsewhere", "local"), "/elsewhere", True, ports={"api": 6443})
    states.save(own)
    states.save(other)
    assert states.load("local") == own
    assert sorted(states.all_clusters(), key=lambda state: state.checkout) == sorted(
        [own, other], key=lambda state: state.checkout
    )


def test_a_broken_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    folder = states.clusters_root() / states.cluster_id(str(states.CHECKOUT), "local")
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{")
    with pytest.raises(ClusterError, match=f"remove {folder} and start again"):
        states.load("local")
