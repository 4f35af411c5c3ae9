"""Two operators of one installation, and who of them wrote when. Used by test_leadership."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.controlplane.lane import LEASES, Lane, lane, new_lease
from tests.controlplane.scene import Scene, claim, stage
from tests.controlplane.sweep import SUCCESS, go_on
from tests.kube import Kube, Object, until

TAKE_OVER_SECONDS = 30.0
"""Patience. A Lease lasts 15 s."""


@dataclass(frozen=True)
class Pair:
    """Both see the same namespace alone, each through a proxy of its own."""

    scene: Scene
    lanes: tuple[Lane, Lane]
    lease: str

    def start(self) -> tuple[Lane, Lane]:
        """Start both; (the leader, the standby)."""
        first, second = self.lanes
        first.operator.start()
        until("the first operator leads", first.operator.leads)
        second.operator.start()
        until("the second operator is ready", lambda: second.operator.get("readyz") == (200, "ok\n"))
        until("it has seen who leads", lambda: f"is held by {first.operator.identity}" in second.operator.said())
        assert not second.operator.leads()
        return first, second

    def leader(self) -> Lane | None:
        """None if there is no leader that answers. Fails if there are two."""
        leaders = [own for own in self.lanes if own.operator.leads()]
        assert len(leaders) <= 1, "two leaders"
        return leaders[0] if leaders else None

    def leader_with_standby(self) -> Lane | None:
        """The leader, if the other operator is ready to take over from it."""
        leader = self.leader()
        if leader is None:
            return None
        [standby] = [own for own in self.lanes if own is not leader]
        # It counts the Lease's age from when it has first seen it.
        said = standby.operator.said()
        knows = said.rfind(f"is held by {leader.operator.identity}") > said.rfind("is the leader now")
        return leader if knows and standby.operator.get("readyz") == (200, "ok\n") else None

    def takes_over(self, own: Lane) -> float:
        """Wait until an operator leads. Returns the seconds."""
        began = time.monotonic()
        until("another operator leads", own.operator.leads, timeout=TAKE_OVER_SECONDS, every=0.05)
        return time.monotonic() - began

    def holder(self) -> str:
        return str(self.scene.kube.get("Lease", self.lease, LEASES)["spec"].get("holderIdentity", ""))

    def edit(self, spec: Object) -> None:
        """Change the Lease by hand."""
        self.scene.kube.patch("Lease", self.lease, {"spec": spec}, LEASES)

    def check_writers(self) -> int:
        """Every write was made by the holder of the Lease. Returns how often the holder changed."""
        elections = sorted(
            (call.at, json.loads(call.body)["spec"]["holderIdentity"])
            for own in self.lanes
            for call in own.proxy.elections
            if call.status < 300
        )
        for own in self.lanes:
            for call in own.proxy.calls:
                holder = [name for at, name in elections if at <= call.at][-1:]
                assert holder == [own.operator.identity], f"{call} by {own.operator.identity}, while {holder} leads"
        names = [name for _, name in elections if name]
        return sum(before != after for before, after in itertools.pairwise(names))

    def submit(self, count: int, after: int = 0) -> list[str]:
        names = [f"job-{number}" for number in range(after, after + count)]
        for name in names:
            self.scene.submit(name)
        return names

    def play(self, names: list[str], keep_up: Callable[[], None] = lambda: None, *, patience: float = 180) -> None:
        """Play the kubelet until all jobs have Succeeded at the first attempt, with one Job of each kind."""
        end = time.monotonic() + patience
        left = set(names)
        while left:
            assert time.monotonic() < end, f"not at their end: {left}"
            keep_up()
            for name in sorted(left):
                status = self.scene.status(name)
                alive = [batch["metadata"]["name"] for batch in self.scene.unfinished(name)]
                assert len(alive) <= 1, f"two live Jobs: {alive}"
                go_on(self.scene, name, SUCCESS, status)
                if status.get("phase") == "Succeeded":
                    left.discard(name)
        for name in names:
            status = self.scene.status(name)
            assert (status["attempt"], status["prepareAttempt"]) == (1, 1)
            assert len(self.scene.batches(name)) == len(self.scene.batches(name, "prepare")) == 1


@contextlib.contextmanager
def pair(kube: Kube, deployed: dict[str, str], home: Path, example: Path, **settings: Any) -> Iterator[Pair]:
    """Two operators that are not started yet, and a namespace for them."""
    manifest: Object = yaml.safe_load(example.read_text())
    made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "pair-"}})
    namespace, lease = made["metadata"]["name"], new_lease(kube)
    with contextlib.ExitStack() as stack:
        stack.callback(kube.delete, "Namespace", namespace)
        kube.create(claim(), namespace)
        scene = stack.enter_context(stage(kube, namespace, manifest))
        own = {"lease_name": lease, "resync_seconds": 600, **settings}
        first, second = (
            stack.enter_context(lane(kube, deployed, home / name, namespace, **own)) for name in ("first", "second")
        )
        yield Pair(scene, (first, second), lease)
