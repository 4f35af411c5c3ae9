"""The subnet of a cluster: nothing else on this machine uses it, and it is the same each time."""

from __future__ import annotations

import ipaddress

import pytest

from tests.cluster.network import PREFIX, RANGE, choose_subnet
from tests.cluster.state import ClusterError


def test_the_same_cluster_gets_the_same_subnet_of_the_range() -> None:
    chosen = choose_subnet("b5f24e", [])
    assert chosen == choose_subnet("b5f24e", ["10.0.0.0/8", "192.168.1.0/24"])
    assert ipaddress.ip_network(chosen).subnet_of(RANGE)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [32, PREFIX, 20])
def test_a_route_that_overlaps_is_avoided(length: int) -> None:
    address = ipaddress.ip_network(choose_subnet("b5f24e", []))[3]
    taken = ipaddress.ip_network(f"{address}/{length}", strict=False)
    assert not ipaddress.ip_network(choose_subnet("b5f24e", [str(taken)])).overlaps(taken)


def test_clusters_never_share_a_subnet() -> None:
    taken: list[str] = []
    for _ in range(50):
        taken.append(choose_subnet("b5f24e", taken))
    assert len(set(taken)) == 50


def test_a_default_route_uses_no_subnet() -> None:
    assert choose_subnet("b5f24e", ["0.0.0.0/0"]) == choose_subnet("b5f24e", [])


def test_a_full_range_is_reported() -> None:
    with pytest.raises(ClusterError, match="no free /28 left"):
        choose_subnet("b5f24e", [str(RANGE)])
