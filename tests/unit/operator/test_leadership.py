"""Who takes the Lease, and when: by what an operator has seen of it, and by its own clock."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from finetune_operator.cluster import ApiError, Leases
from finetune_operator.gate import LEASE_SECONDS, RENEW_SECONDS, Gate, NotLeading
from finetune_operator.leadership import BLANK_SECONDS, LONGEST_SECONDS, Elector
from finetune_operator.predecessors import Installation
from finetune_operator.views.metadata import Raw

RELEASED = {"holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 3}
STEP = 0.5


def held(name: str = "other", seconds: Any = LEASE_SECONDS, at: str = "2026-01-31T12:00:00.000000Z") -> Raw:
    return {"holderIdentity": name, "leaseDurationSeconds": seconds, "leaseTransitions": 3, "renewTime": at}


class Server(Leases):
    """A Lease in memory, with the optimistic lock of the API server."""

    def __init__(self, spec: Raw | None) -> None:
        self.namespace, self.name = "system", "lease"
        self.version = 1
        self.spec = spec
        self.replicas: list[Raw] = []
        self.old_pods: list[Raw] = []
        self.error: ApiError | None = None
        self.writes = 0

    def put(self, spec: Raw | None) -> None:
        """Somebody else writes or deletes it."""
        self.spec, self.version = spec, self.version + 1

    async def get(self, *_: Any) -> Raw | None:
        self._fail()
        if self.spec is None:
            return None
        return {"metadata": {"name": "lease", "resourceVersion": str(self.version)}, "spec": copy.deepcopy(self.spec)}

    async def create(self, spec: Raw, *_: Any) -> Raw:
        self._fail()
        if self.spec is not None:
            raise ApiError(409, "it exists")
        return await self._store(spec)

    async def replace(self, lease: Raw, spec: Raw, *_: Any) -> Raw:
        self._fail()
        if self.spec is None or lease["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "it has changed")
        return await self._store(spec)

    async def replica_sets(self, *_: Any) -> list[Raw]:
        return self.replicas

    async def pods(self, *_: Any) -> list[Raw]:
        return self.old_pods

    async def _store(self, spec: Raw) -> Raw:
        self.put(spec)
        self.writes += 1
        return await self.get() or {}

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class Time:
    """A clock that a test moves; sleeping moves it, too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        real = asyncio.sleep

        async def sleep(seconds: float) -> None:
            end = self.now + seconds
            while self.now < end - 1e-9:
                await real(0)

        monkeypatch.setattr("finetune_operator.leadership.asyncio.sleep", sleep)
        self._real = real

    async def passes(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += min(STEP, end - self.now)
            for _ in range(8):
                await self._real(0)


class Candidate:
    """An elector, its gate, and the tasks of a test."""

    def __init__(self, server: Server, time: Time, name: str = "me", selector: str = "app=x") -> None:
        self.gate = Gate(lambda: time.now)
        self.elector = Elector(server, self.gate, name, Installation(selector), lambda: time.now)
        self.terms = 0
        self.task = asyncio.create_task(self.elector.run(self._work))

    async def _work(self) -> None:
        self.terms += 1
        await asyncio.Event().wait()

    @property
    def may_write(self) -> bool:
        try:
            self.gate.check()
        except NotLeading:
            return False
        return True

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        (RELEASED, 0),
        (held("me"), 0),
        (None, BLANK_SECONDS),
        ({}, BLANK_SECONDS),
        ({"holderIdentity": 7, "leaseDurationSeconds": "long", "leaseTransitions": None}, BLANK_SECONDS),
        (held(), LEASE_SECONDS),
        (held(seconds=1), LEASE_SECONDS),
        (held(seconds=None), LEASE_SECONDS),
        (held(seconds=30), 30),
        (held(seconds=1_000_000), LONGEST_SECONDS),
        (held(at="2999-01-01T00:00:00.000000Z"), LEASE_SECONDS),
        (held(at="1970-01-01T00:00:00.000000Z"), LEASE_SECONDS),
    ],
    ids=str,
)
async def test_a_lease_is_taken_after_it_was_seen_unchanged_for_its_duration(
    time: Time, spec: Raw | None, seconds: float
) -> None:
    """A time in it is another machine's, and decides nothing."""
    server = Server(spec)
    own = Candidate(server, time)
    await time.passes(max(STEP, seconds - 1))
    assert own.may_write == (seconds == 0)
    await time.passes(2)
    assert own.may_write
    assert own.terms == 1
    assert server.spec is not None
    assert server.spec["holderIdentity"] == "me"
    await own.stop()


async def test_a_holder_that_renews_keeps_the_lease(time: Time) -> None:
    server = Server(held())
    own = Candidate(server, time)
    for second in range(60):
        server.put(held(at=f"2026-01-31T12:00:{second:02}.000000Z"))
        await time.passes(2)
        assert not own.may_write
    assert server.writes == 0
    await own.stop()


@pytest.mark.parametrize("spec", [None, {}], ids=["deleted", "emptied"])
async def test_a_lease_that_somebody_removed_is_not_free_for_who_knew_its_holder(time: Time, spec: Raw | None) -> None:
    server = Server(held())
    own = Candidate(server, time)
    await time.passes(3)
    server.put(spec)
    await time.passes(LEASE_SECONDS - 4)
    assert not own.may_write
    await time.passes(2)
    assert own.may_write
    await own.stop()


async def test_a_lease_that_its_holder_gave_back_is_taken_at_the_next_look(time: Time) -> None:
    server = Server(held())
    own = Candidate(server, time)
    await time.passes(5)
    server.put(RELEASED)
    await time.passes(2.5)
    assert own.may_write
    assert server.spec is not None
    assert server.spec["leaseTransitions"] == 4
    await own.stop()


async def test_of_two_candidates_one_leads(time: Time) -> None:
    server = Server(held())
    both = [Candidate(server, time, name) for name in ("a", "b")]
    await time.passes(60)
    assert [own.may_write for own in both].count(True) == 1
    assert sum(own.terms for own in both) == 1
    for own in both:
        await own.stop()


@pytest.mark.parametrize("lost", [False, True], ids=["", "the answer to the last renewal was lost"])
async def test_an_operator_that_ends_gives_the_lease_back(time: Time, lost: bool) -> None:
    server = Server(RELEASED)
    own = Candidate(server, time)
    await time.passes(5)
    if lost:
        server.put(server.spec)
    await own.stop()
    assert not own.may_write
    assert server.spec is not None
    assert (server.spec["holderIdentity"], server.spec["leaseDurationSeconds"]) == ("", 1)


async def test_a_lease_is_not_given_back_while_a_write_is_under_way(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.leadership.SETTLE_SECONDS", 0.05)
    server = Server(RELEASED)
    own = Candidate(server, time)
    await time.passes(5)
    with own.gate.writing():
        await own.stop()
    assert server.spec is not None
    assert server.spec["holderIdentity"] == "me"


@pytest.mark.parametrize("error", [ApiError(0, "no answer"), ApiError(503, "busy"), ApiError(403, "forbidden")])
async def test_a_lease_that_cannot_be_renewed_is_lost_before_others_may_take_it(time: Time, error: ApiError) -> None:
    """Afterwards it is taken again in the same process."""
    server = Server(RELEASED)
    own = Candidate(server, time)
    await time.passes(1)
    assert own.may_write
    server.error = error
    await time.passes(RENEW_SECONDS + 0.5)
    assert not own.may_write
    await time.passes(LEASE_SECONDS)
    assert not own.elector.leading
    assert ("Install the Role" in own.elector.obstacle) == (error.status == 403)
    server.error = None
    await time.passes(3)
    assert own.may_write
    assert own.terms == 2
    assert own.elector.obstacle == ""
    await own.stop()


async def test_a_paused_operator_may_not_write_when_it_wakes(time: Time) -> None:
    """It does not even try to renew the Lease."""
    server = Server(RELEASED)
    own = Candidate(server, time)
    await time.passes(3)
    writes = server.writes
    time.now += RENEW_SECONDS
    assert not own.may_write
    server.put(held())
    await time.passes(5)
    assert server.writes == writes
    assert not own.elector.leading
    await own.stop()


@pytest.mark.parametrize("change", ["deleted", "edited", "answer lost"])
async def test_a_holder_keeps_a_lease_that_is_still_its_own(time: Time, change: str) -> None:
    server = Server(RELEASED)
    own = Candidate(server, time)
    await time.passes(1)
    server.put(None if change == "deleted" else server.spec)
    await time.passes(60)
    assert own.may_write
    assert own.terms == 1
    await own.stop()


async def test_a_holder_stops_at_once_if_another_name_is_in_the_lease(time: Time) -> None:
    server = Server(RELEASED)
    own = Candidate(server, time)
    await time.passes(1)
    server.put(held("somebody"))
    await time.passes(2.5)
    assert not own.may_write
    assert server.spec is not None
    assert server.spec["holderIdentity"] == "somebody"
    await own.stop()


def replica_set(count: int, **labels: str) -> Raw:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "operator", "uid": "7", "controller": True}
    meta = {"name": f"rs-{count}", "ownerReferences": [owner]}
    return {"metadata": meta, "spec": {"replicas": count, "template": {"metadata": {"labels": labels}}}}


OLD, DRAINED = replica_set(1), replica_set(0)
NEW = replica_set(2, **{"finetune-operator.io/leader-election": "true"})


@pytest.mark.parametrize(
    ("replicas", "phases", "waits"),
    [
        ([NEW], [], False),
        ([NEW, DRAINED], [], False),
        ([NEW, DRAINED], ["Succeeded", "Failed"], False),
        ([NEW, OLD], [], True),
        ([NEW, DRAINED], ["Running"], True),
        ([NEW, DRAINED], ["Pending"], True),
    ],
)
async def test_nobody_leads_while_an_operator_without_election_may_work(
    time: Time, replicas: list[Raw], phases: list[str], waits: bool
) -> None:
    server = Server(None)
    server.replicas = replicas
    server.old_pods = [{"metadata": {"name": "old"}, "status": {"phase": phase}} for phase in phases]
    own = Candidate(server, time)
    await time.passes(60)
    assert own.may_write != waits
    assert own.elector.obstacle == "", "it is ready: the upgrade continues"
    server.replicas, server.old_pods = [NEW, DRAINED], []
    await time.passes(3)
    assert own.may_write
    await own.stop()


async def test_an_error_of_the_work_ends_the_operator_and_frees_the_lease(time: Time) -> None:
    server = Server(RELEASED)

    async def fail() -> None:
        raise RuntimeError("a bug")

    gate = Gate(lambda: time.now)
    elector = Elector(server, gate, "me", Installation(""), lambda: time.now)
    with pytest.raises(RuntimeError, match="a bug"):
        await elector.run(fail)
    assert server.spec is not None
    assert server.spec["holderIdentity"] == ""
