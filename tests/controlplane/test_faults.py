"""The operator crashed at every changing call it makes, before and after, and every call refused, cut or slow.

Three lifecycles. Each is first lived without faults, which gives the calls to break and the end to reach; then once per
call and fault. Whatever breaks, the job ends in the same state, as many things are created and deleted of each kind
(Events excepted), and never do two Jobs of it live at once. How many cases were run is printed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import pytest
import yaml

from tests.controlplane.fault_proxy import Call, Fault, Kind
from tests.controlplane.lane import Lane, lane
from tests.controlplane.scene import Scene, stage
from tests.controlplane.sweep import LIVES, Ending, ending, live, tidy
from tests.kube import Kube, until

T = TypeVar("T")
LANES = 4
"""Operators that are crashed at the same time."""
AT_ONCE = 12
"""Jobs that one operator has at the same time while its calls are refused, cut or slow."""
BROKEN: tuple[tuple[Kind, float], ...] = (
    ("drop before", 0),
    ("drop after", 0),
    ("refuse", 409),
    ("refuse", 422),
    ("refuse", 429),
    ("refuse", 500),
    ("refuse", 503),
    ("delay", 3),
)
FINISHED = 200
RARELY, OFTEN = 600, 0.5
"""Seconds between looks at everything: rarely, so that nothing is mended by luck; often, to see that an end stays."""


@dataclass(frozen=True)
class Reference:
    """A life without faults."""

    calls: list[Call]
    ending: Ending


@pytest.fixture(scope="module")
def scenes(kube: Kube, example: Path) -> Iterator[Callable[[], Scene]]:
    """As many namespaces as are asked for."""
    manifest, numbers = yaml.safe_load(example.read_text()), itertools.count(1)
    with ExitStack() as stack:

        def make() -> Scene:
            made = kube.create(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": f"faults-{next(numbers)}-"}}
            )
            name = made["metadata"]["name"]
            stack.callback(kube.delete, "Namespace", name)
            return stack.enter_context(stage(kube, name, manifest))

        yield make


@pytest.fixture(scope="module")
def lanes(
    kube: Kube, deployed: dict[str, str], scenes: Callable[[], Scene], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleQueue[tuple[Scene, Lane]]]:
    """Namespaces with an operator each."""
    free: SimpleQueue[tuple[Scene, Lane]] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(LANES):
            scene, home = scenes(), tmp_path_factory.mktemp("lane")
            free.put((scene, stack.enter_context(lane(kube, deployed, home, scene.namespace))))
        yield free


@pytest.fixture(scope="module")
def references(lanes: SimpleQueue[tuple[Scene, Lane]]) -> dict[str, Reference]:
    """Each life without faults."""
    scene, own = lanes.get()
    made = {life: Reference(*in_lane(scene, own, life, None)) for life in LIVES}
    lanes.put((scene, own))
    return made


def in_lane(scene: Scene, own: Lane, life: str, fault: Fault | None) -> tuple[list[Call], Ending]:
    """One life of a lane, from a fresh operator to an end that stays: its changing calls, and how it ended."""
    name = "job"
    own.operator.start(resync_seconds=RARELY)
    own.proxy.arm(scene.namespace, fault)

    def back() -> bool:
        return bool(own.operator.settings["resync_seconds"] == OFTEN)

    def keep_up() -> None:
        if not own.operator.alive:
            own.operator.start(resync_seconds=OFTEN)

    try:
        live(scene, life, name, keep_up)
        assert fault is None or own.proxy.happened, "there was no such call"
        if fault is None:
            own.operator.kill()
        # The last call's effect is seen a moment before the operator is killed for it.
        until("the operator was crashed", lambda: back() or not own.operator.alive)
        keep_up()
        own.proxy.wait_for_listings(2)
        return own.proxy.counted(scene.namespace), ending(scene, own.proxy, name)
    finally:
        own.operator.kill()
        tidy(scene, name)


def each(cases: list[T], run: Callable[[T], None], at_once: int) -> list[str]:
    """Run all cases, some at once; all that went wrong."""

    def tried(case: T) -> str:
        try:
            run(case)
        except Exception as error:
            return f"{case}: {type(error).__name__}: {error}"
        return ""

    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        wrong = list(filter(None, pool.map(tried, cases)))
    print(f"{len(cases)} cases in {time.monotonic() - began:.0f} s, {len(wrong)} went wrong")
    return wrong


@pytest.mark.parametrize("life", LIVES)
def test_crashed_at_each_call(
    lanes: SimpleQueue[tuple[Scene, Lane]],
    references: dict[str, Reference],
    life: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reference = references[life]
    moments: tuple[Kind, ...] = ("crash before", "crash after")
    cases = [Fault(kind, at) for at in range(1, len(reference.calls) + 1) for kind in moments]

    def run(fault: Fault) -> None:
        scene, own = lanes.get()
        try:
            _, reached = in_lane(scene, own, life, fault)
            reached.compare(reference.ending)
        finally:
            lanes.put((scene, own))

    with capsys.disabled():
        print(f"\n{life}: crashed before and after each of {', '.join(map(str, reference.calls))}: ", end="")
        wrong = each(cases, run, LANES)
    assert not wrong, "\n\n".join(wrong)


def test_each_call_refused_cut_or_slow(
    kube: Kube,
    deployed: dict[str, str],
    scenes: Callable[[], Scene],
    references: dict[str, Reference],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One operator lives through all of it at once."""
    cases = [
        (scenes(), life, Fault(kind, at, value))
        for life, reference in references.items()
        for at in range(1, len(reference.calls) + 1)
        for kind, value in BROKEN
    ]
    with lane(kube, deployed, tmp_path, resync_seconds=RARELY) as own:
        own.operator.start()

        def play(case: tuple[Scene, str, Fault]) -> None:
            scene, life, fault = case
            own.proxy.arm(scene.namespace, fault)
            live(scene, life, "job")
            assert scene.namespace in own.proxy.happened, "there was no such call"

        def compare(case: tuple[Scene, str, Fault]) -> None:
            scene, life, _ = case
            ending(scene, own.proxy, "job").compare(references[life].ending)

        with capsys.disabled():
            print("\nrefused, cut or slow: ", end="")
            wrong = each(cases, play, AT_ONCE)
        assert not wrong, "\n\n".join(wrong)
        assert own.operator.stop() == 0
        own.operator.start(resync_seconds=OFTEN)
        own.proxy.wait_for_listings(3)
        wrong = each(cases, compare, 1)
    assert not wrong, "\n\n".join(wrong)
