"""The operator crashed at the changing calls it makes, and calls refused, cut or slow.

Lifecycles are first lived without faults, which gives the calls to break and the end to reach; then once per call and
fault. Whatever breaks, the job ends in the same state, as many things are created and deleted of each kind (Events
excepted), and never do two Jobs of it live at once. How many cases were run is printed.

Of cases that leave the same behind one is run: see `TELLING`, `crashes` and `breaks`. `make sweep` (pytest --sweep)
runs the whole product of lives, calls and faults, life by life (`fault_sweep`), and writes docs/fault-sweep.md.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import pytest
import yaml

from tests import chart
from tests.controlplane.fault_proxy import Call, Fault, Kind
from tests.controlplane.fault_report import Outcomes
from tests.controlplane.lane import Lane, lane
from tests.controlplane.scene import Scene, claim, stage
from tests.controlplane.sweep import LIVES, Ending, ending, live, tidy
from tests.kube import Kube, until

T = TypeVar("T")
LANES = 4
"""Operators that are crashed at the same time."""
AT_ONCE = 12
"""Jobs that one operator has at the same time while its calls are refused, cut or slow."""
MOMENTS: tuple[Kind, ...] = ("crash before", "crash after")
BROKEN: tuple[tuple[tuple[Kind, float], ...], ...] = (
    (("drop after", 0), ("silence after", 0)),
    (("drop before", 0), ("delay", 3), ("silence before", 0)),
    (("refuse", 409), ("refuse", 422)),
    (("refuse", 429), ("refuse", 500), ("refuse", 503)),
)
"""Faults that are alike to the operator share a line."""
TRIES = 4
"""Lives until a fault hits one. A life may have a status write more or less, because the operator writes once what it
sees at once. So the last call of the reference is not in every life."""
RARELY, OFTEN = 600, 0.5
"""Seconds between looks at everything: rarely, so that nothing is fixed by luck; often, to see that an end stays."""


class Missed(AssertionError):
    """A life ended before its fault was due."""


def everything(calls: list[Call]) -> Sequence[int]:
    """The numbers of all calls."""
    return range(1, len(calls) + 1)


def at_the_end(count: int) -> Callable[[list[Call]], Sequence[int]]:
    """The last calls of a life."""
    return lambda calls: everything(calls)[-count:]


def around(method: str, before: int, after: int) -> Callable[[list[Call]], Sequence[int]]:
    """The last call of a method, and some before and after it."""

    def numbers(calls: list[Call]) -> Sequence[int]:
        last = max(at for at, call in enumerate(calls, 1) if call.method == method)
        return [at for at in everything(calls) if last - before <= at <= last + after]

    return numbers


def missed_deadline(calls: list[Call]) -> Sequence[int]:
    """The DELETE, the writes around it, and the first objects of each kind that several nodes and a claim need."""
    kinds = [call.resource for call in calls]
    objects = [kinds.index(kind) + 1 for kind in ("persistentvolumeclaims", "services")]
    return [*objects, *around("DELETE", 1, 1)(calls)]


def acceptance_of_the_second(calls: list[Call]) -> Sequence[int]:
    """The calls around the write that accepts the second job of a chain."""
    fixed = [call.resource == "finetunejobs/status" and b'"references"' in call.body for call in calls]
    accepts = fixed.index(True)
    return everything(calls)[accepts - 1 : accepts + 3]


def in_the_queue(calls: list[Call]) -> Sequence[int]:
    """The writes that say that a child job is queued, and the calls after them."""
    writes = [at for at, call in enumerate(calls, 1) if b'"Queued"' in call.body]
    return sorted({number for at in writes for number in (at, at + 1)})


TELLING: dict[str, Callable[[list[Call]], Sequence[int]]] = {
    "retry": everything,
    "bad data": at_the_end(1),
    "chain": acceptance_of_the_second,
    "deadline": missed_deadline,
    "preemption": around("POST", 1, 0),
    "two nodes": at_the_end(1),
    "deletion": at_the_end(1),
    "queue": in_the_queue,
    "restart in place": at_the_end(2),
    "suspension": around("DELETE", 0, 3),
    "stop": at_the_end(5),
}
"""Lives that are broken without --sweep, and at which calls: the life with retries makes most kinds of calls, and the
others add what it lacks."""


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
    return (everything if sweep else TELLING[life])(reference.calls)


def crashes(life: str, reference: Reference, sweep: bool) -> list[Fault]:
    """A crash before a call leaves what one after the call before it leaves."""
    numbers = breakable(life, reference, sweep)
    return [Fault(kind, at) for at in numbers for kind in (MOMENTS if sweep or at == 1 else MOMENTS[1:])]


def breaks(life: str, reference: Reference, sweep: bool) -> list[Fault]:
    """Each call has one of the kinds of faults, by turns; in the life with most calls, every second call has. Of faults
    that are alike it has one. A 422 to a POST is no fault to live through: it fails the job."""

    def value_at(at: int, value: float) -> float:
        return 403 if value == 422 and reference.calls[at - 1].method == "POST" else value

    return [
        Fault(kind, at, value_at(at, value))
        for at in breakable(life, reference, sweep)[:: 1 if sweep or life != "retry" else 2]
        for alike in (BROKEN if sweep else [BROKEN[at // 2 % len(BROKEN)]])
        for kind, value in (alike if sweep else [alike[at // 8 % len(alike)]])
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
            # Not the namespaces: to delete a hundred at once keeps the API server busy for a minute.
            stack.callback(kube.call, "DELETE", f"apis/finetune-operator.io/v1alpha1/namespaces/{name}/finetunejobs")
            kube.create(claim(), name)
            return stack.enter_context(stage(kube, name, manifest))

        yield make


def rights_of(helm: Path) -> set[tuple[str, str]]:
    """Every verb and resource that the chart grants the operator, except those that no call of its own shows."""
    rules = chart.only(chart.render(helm), "ClusterRole", chart.RELEASE)["rules"]
    granted = {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    # Without Kueue, nothing has a place in a queue.
    placed = ("get", "localqueues/pendingworkloads")
    return granted - {("operate", "finetunejobs"), ("update", "finetunejobs/finalizers"), placed}


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
def used() -> set[tuple[str, str]]:
    """Filled by the tests of this module with the rights that their operators used."""
    return set()


@pytest.fixture(scope="module")
def references(
    lanes: SimpleQueue[tuple[Scene, Lane]], sweep: bool, request: pytest.FixtureRequest
) -> dict[str, Reference]:
    """Each life without faults."""
    chosen = [life for life in str(request.config.getoption("--lives")).split(",") if life] or list(LIVES)
    lives = chosen if sweep else list(TELLING)
    made: dict[str, Reference] = {}

    def play(life: str) -> None:
        scene, own = lanes.get()
        try:
            made[life] = Reference(*in_lane(scene, own, life, None))
        finally:
            lanes.put((scene, own))

    wrong = each(lives, play, LANES)
    assert not wrong, "\n\n".join(wrong.values())
    return {life: made[life] for life in lives}


@pytest.fixture(scope="module")
def outcomes(sweep: bool, references: dict[str, Reference]) -> Iterator[Outcomes]:
    """What the tests of this module broke. A sweep writes it into the files of its lives."""
    made = Outcomes()
    yield made
    if sweep:
        made.write({life: reference.calls for life, reference in references.items()})


def in_lane(scene: Scene, own: Lane, life: str, fault: Fault | None) -> tuple[list[Call], Ending]:
    """One life of a lane, up to an end that stays: its changing calls, and how it ended. The fault crashes the operator
    that the case before has left. A reference has an operator to itself, which no resync helps."""
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
        if fault is None:
            operator.kill()
        elif not own.proxy.happened:
            raise Missed
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


def hit(play: Callable[[], T]) -> T:
    """Play a life again until its fault hits it."""
    for _ in range(TRIES):
        with suppress(Missed):
            return play()
    raise Missed(f"in {TRIES} lives there was no such call")


def each(cases: Sequence[T], run: Callable[[T], None], at_once: int) -> dict[int, str]:
    """Run all cases, some at once; what went wrong, by the case's place."""

    def tried(case: T) -> str:
        try:
            run(case)
        except Exception as error:
            return f"{case}: {type(error).__name__}: {error}"
        return ""

    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        wrong = {place: words for place, words in enumerate(pool.map(tried, cases)) if words}
    print(f"{len(cases)} cases in {time.monotonic() - began:.0f} s, {len(wrong)} went wrong")
    return wrong


def test_crashed(
    lanes: SimpleQueue[tuple[Scene, Lane]],
    references: dict[str, Reference],
    outcomes: Outcomes,
    sweep: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = [(life, fault) for life, made in references.items() for fault in crashes(life, made, sweep)]

    def run(case: tuple[str, Fault]) -> None:
        life, fault = case
        scene, own = lanes.get()
        try:
            hit(lambda: in_lane(scene, own, life, fault)[1]).compare(references[life].ending)
        finally:
            lanes.put((scene, own))

    with capsys.disabled():
        for life, reference in references.items():
            print(f"\n{life}: {', '.join(map(str, reference.calls))}", end="")
        print("\ncrashed: ", end="")
        wrong = each(cases, run, LANES)
    outcomes.add(cases, wrong)
    assert not wrong, "\n\n".join(wrong.values())


def test_refused_cut_or_slow(
    kube: Kube,
    deployed: dict[str, str],
    scenes: Callable[[], Scene],
    references: dict[str, Reference],
    outcomes: Outcomes,
    sweep: bool,
    used: set[tuple[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One operator lives through all of it at once."""
    cases = [(scenes(), life, fault) for life, made in references.items() for fault in breaks(life, made, sweep)]
    with lane(kube, deployed, tmp_path, resync_seconds=RARELY) as own:
        own.operator.start()

        def play(case: tuple[Scene, str, Fault]) -> None:
            scene, life, fault = case

            def once() -> None:
                own.proxy.arm(scene.namespace, fault)
                live(scene, life)
                if scene.namespace not in own.proxy.happened:
                    tidy(scene, life)
                    raise Missed

            hit(once)

        def compare(case: tuple[Scene, str, Fault]) -> None:
            scene, life, _ = case
            ending(scene, own.proxy, life).compare(references[life].ending)

        with capsys.disabled():
            print("\nrefused, cut or slow: ", end="")
            wrong = each(cases, play, AT_ONCE)
        assert own.operator.stop() == 0
        own.operator.start(resync_seconds=OFTEN)
        own.proxy.wait_for_listings(3)
        wrong = each(cases, compare, 1) | wrong
        used |= own.proxy.rights
    outcomes.add([(life, fault) for _, life, fault in cases], wrong)
    assert not wrong, "\n\n".join(wrong.values())


def test_every_right_of_the_operator_is_used(helm: Path, used: set[tuple[str, str]]) -> None:
    """By the lives that were refused, cut and slow. No job waits in them, so nothing lists Events: see
    test_request_budget. No resync finds an attempt that runs, so nothing lists ServiceAccounts: see test_access. No
    job is kept until its children are deleted, so nothing lists and deletes Services: see test_after_the_end. All tests
    of this tier show that no right is missing."""
    elsewhere = {("list", "events"), ("list", "serviceaccounts"), ("list", "services"), ("delete", "services")}
    assert rights_of(helm) - used <= elsewhere
