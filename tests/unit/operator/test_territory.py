"""Which namespaces an operator serves, by what the roles of the training pods say."""

from __future__ import annotations

import pytest
from finetune_operator import territory
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.settings import Settings
from finetune_operator.territory import Territory

from tests.unit.operator import make

OURS, THEIRS = "sys/ours", "team/theirs"
FORBIDDEN = ApiError(403, "GET roles: forbidden")


class Roles(Cluster):
    """Namespace ('': the cluster) -> the installation that its role names."""

    def __init__(self, **named: str) -> None:
        self.named = {name.replace("cluster", ""): installation for name, installation in named.items()}
        self.reads = 0
        self.error: ApiError | None = None

    async def installation_of(self, role: str, namespace: str = "") -> str:
        assert role == "finetune-trainer"
        self.reads += 1
        if self.error:
            raise self.error
        return self.named.get(namespace, "")

    async def installations(self, _role: str) -> dict[str, str]:
        return {namespace: name for namespace, name in self.named.items() if namespace}


def settings(*watched: str, installation: str = OURS) -> Settings:
    return make.SETTINGS.model_copy(update={"watch_namespaces": list(watched), "installation": installation})


@pytest.mark.parametrize(
    ("roles", "served"),
    [
        ({"cluster": OURS}, True),
        ({}, True),
        ({"cluster": THEIRS}, False),
        ({"cluster": OURS, "a": THEIRS}, False),
        ({"cluster": OURS, "b": THEIRS}, True),
        ({"cluster": THEIRS, "a": OURS}, True),
    ],
)
async def test_the_role_of_the_namespace_decides_before_that_of_the_cluster(
    roles: dict[str, str], served: bool
) -> None:
    assert await Territory(Roles(**roles), settings()).serves("a") == served


async def test_an_operator_of_some_namespaces_looks_at_the_roles_in_these() -> None:
    mine = Territory(Roles(cluster=THEIRS, a=OURS, b=THEIRS), settings("a", "b"))
    assert [await mine.serves(name) for name in ("a", "b")] == [True, False]
    [words] = await mine.obstacles()
    assert f"Namespace b is left to installation {THEIRS}" in words


async def test_an_installation_for_the_cluster_is_ready_whatever_namespaces_it_leaves_to_others() -> None:
    assert await Territory(Roles(cluster=OURS, a=THEIRS), settings()).obstacles() == []
    [words] = await Territory(Roles(cluster=THEIRS), settings()).obstacles()
    assert f"Installation {THEIRS} serves the cluster" in words


async def test_a_claim_is_read_again_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    roles = Roles(cluster=OURS)
    mine = Territory(roles, settings())
    assert [await mine.serves("a") for _ in range(3)] == [True] * 3
    assert roles.reads == 1
    roles.named["a"] = THEIRS
    monkeypatch.setattr(territory, "FRESH_SECONDS", 0)
    assert not await mine.serves("a")


async def test_a_namespace_that_cannot_be_listed_is_not_served_and_stops_no_other() -> None:
    mine = Territory(Roles(a=OURS, b=OURS), settings("a", "b"))
    mine.close("b", FORBIDDEN)
    assert [await mine.serves(name) for name in ("a", "b")] == [True, False]
    assert await mine.obstacles() == []
    mine.close("a", FORBIDDEN)
    assert len(await mine.obstacles()) == 2
    mine.open("b")
    assert await mine.serves("b")


async def test_what_cannot_be_read_serves_nothing() -> None:
    """In a namespace, a missing right is a missing Role: nobody claims it."""
    roles = Roles()
    roles.error = FORBIDDEN
    with pytest.raises(ApiError):
        await Territory(roles, settings()).serves("a")
    assert await Territory(roles, settings("a")).serves("a")
    roles.error = ApiError(503, "busy")
    with pytest.raises(ApiError):
        await Territory(roles, settings("a")).serves("a")


async def test_an_operator_without_a_name_reads_no_claims() -> None:
    roles = Roles(cluster=THEIRS)
    assert await Territory(roles, settings(installation="")).serves("a")
    assert roles.reads == 0
