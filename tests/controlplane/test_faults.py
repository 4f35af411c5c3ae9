"""The operator crashed at the changing calls it makes, and calls refused, cut or slow.

Lifecycles are first lived without faults, which gives the calls to break and the end to reach; then once per call and
fault. Whatever breaks, the job ends in the same state, as many things are created and deleted of each kind (Events
excepted), and never do two Jobs of it live at once. How many cases were run is printed.

Of cases that leave the same behind one is run: see `telling`, `crashes` and `breaks`. `make sweep` (pytest --sweep)
runs the whole product of lives, calls and faults.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
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
from tests.controlplane.scene import Scene, claim, stage
from tests.controlplane.sweep import LIVES, Ending, ending, live, tidy
from tests.kube import Kube, until

T = TypeVar("T")
LANES = 4
"""Operators that are crashed at the same time."""
AT_ONCE = 12
"""Jobs that one operator has at the same time while its calls are refused, cut or slow."""
TELLING = ("retry", "bad data", "chain")
"""Lives that are broken without --sweep, at the calls that `telling` picks."""
MOMENTS: tuple[Kind, ...] = ("crash before", "crash after")
BROKEN: tuple[tuple[tuple[Kind, float], ...], ...] = (
    (("drop after", 0),),
    (("drop before", 0), ("delay", 3)),
    (("refuse", 409), ("refuse", 422)),
    (("refuse", 429), ("refuse", 500), ("refuse", 503)),
)
"""Faults that are alike to the operator share a line."""
RARELY, OFTEN = 600, 0.5
"""Seconds between looks at everything: rarely, so that nothing is mended by luck; often, to see that an end stays."""


@dataclass(frozen=True)
class Reference:
    """A life without faults."""

    calls: list[Call]
    ending: Ending


@pytest.fixture(scope="module")
def sweep(request: pytest.FixtureRequest) -> bool:
    """Whether everything is to be tried."""
    return bool(request.config.getoption("--sweep"))


def breakable(life: str, reference: Reference, sweep: bool) -> Sequence[int]:
    """Numbers of the calls to break."""
    return range(1, len(reference.calls) + 1) if sweep else telling(life, reference.calls)


def telling(life: str, calls: list[Call]) -> Sequence[int]:
    """The life with retries makes all the calls that there are, but for the one that says Failed. Of a chain those
    around the write that accepts the second job."""
    numbers = range(1, len(calls) + 1)
    if life == "retry":
        return numbers
    if life == "bad data":
        return numbers[-1:]
    fixed = [call.resource == "finetunejobs/status" and b'"references"' in call.body for call in calls]
    accepts = fixed.index(True)
    return numbers[accepts - 1 : accepts + 3]


def crashes(life: str, reference: Reference, sweep: bool) -> list[Fault]:
    """A crash before a call leaves what one after the call before it leaves."""
    numbers = breakable(life, reference, sweep)
    return [Fault(kind, at) for at in numbers for kind in (MOMENTS if sweep or at == 1 else MOMENTS[1:])]


def breaks(life: str, reference: Reference, sweep: bool) -> list[Fault]:
    """Of faults that are alike each call has one, and the next call the next."""
    return [
        Fault(kind, at, value)
        for at in breakable(life, reference, sweep)
        for alike in BROKEN
        for kind, value in (alike if sweep else [alike[at % len(alike)]])
    ]


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
            kube.create(claim(), name)
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
def references(lanes: SimpleQueue[tuple[Scene, Lane]], sweep: bool) -> dict[str, Reference]:
    """Each life without faults."""
    scene, own = lanes.get()
    made = {life: Reference(*in_lane(scene, own, life, None)) for life in LIVES if sweep or life in TELLING}
    lanes.put((scene, own))
    return made


def in_lane(scene: Scene, own: Lane, life: str, fault: Fault | None) -> tuple[list[Call], Ending]:
    """One life of a lane, up to an end that stays: its changing calls, and how it ended. The operator that the case
    before has left is the one that is crashed; a reference has one to itself, whom no resync helps."""
    operator = own.operator
    if fault is None:
        operator.kill()
        operator.start(resync_seconds=RARELY)
    own.proxy.arm(scene.namespace, fault)

    def keep_up() -> None:
        if not operator.alive:
            operator.start(resync_seconds=OFTEN)

    keep_up()
    starts = operator.starts
    try:
        live(scene, life, keep_up)
        assert fault is None or own.proxy.happened, "there was no such call"
        if fault is None:
            operator.kill()
        # The last call's effect is seen a moment before the operator is killed for it.
        until("the operator was crashed", lambda: operator.starts > starts or not operator.alive)
        keep_up()
        own.proxy.wait_for_listings(2)
        return own.proxy.counted(scene.namespace), ending(scene, own.proxy, life)
    except BaseException:
        operator.kill()
        raise
    finally:
        tidy(scene, life)


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


def test_crashed(
    lanes: SimpleQueue[tuple[Scene, Lane]],
    references: dict[str, Reference],
    sweep: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = [(life, fault) for life, made in references.items() for fault in crashes(life, made, sweep)]

    def run(case: tuple[str, Fault]) -> None:
        life, fault = case
        scene, own = lanes.get()
        try:
            _, reached = in_lane(scene, own, life, fault)
            reached.compare(references[life].ending)
        finally:
            lanes.put((scene, own))

    with capsys.disabled():
        for life, reference in references.items():
            print(f"\n{life}: {', '.join(map(str, reference.calls))}", end="")
        print("\ncrashed: ", end="")
        wrong = each(cases, run, LANES)
    assert not wrong, "\n\n".join(wrong)


def test_refused_cut_or_slow(
    kube: Kube,
    deployed: dict[str, str],
    scenes: Callable[[], Scene],
    references: dict[str, Reference],
    sweep: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One operator lives through all of it at once."""
    cases = [(scenes(), life, fault) for life, made in references.items() for fault in breaks(life, made, sweep)]
    with lane(kube, deployed, tmp_path, resync_seconds=RARELY) as own:
        own.operator.start()

        def play(case: tuple[Scene, str, Fault]) -> None:
            scene, life, fault = case
            own.proxy.arm(scene.namespace, fault)
            live(scene, life)
            assert scene.namespace in own.proxy.happened, "there was no such call"

        def compare(case: tuple[Scene, str, Fault]) -> None:
            scene, life, _ = case
            ending(scene, own.proxy, life).compare(references[life].ending)

        with capsys.disabled():
            print("\nrefused, cut or slow: ", end="")
            wrong = each(cases, play, AT_ONCE)
        assert not wrong, "\n\n".join(wrong)
        assert own.operator.stop() == 0
        own.operator.start(resync_seconds=OFTEN)
        own.proxy.wait_for_listings(3)
        wrong = each(cases, compare, 1)
    assert not wrong, "\n\n".join(wrong)
