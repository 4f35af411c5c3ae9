"""What the launchers of several nodes agree on when their ranks have ended."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import AttemptFacts
from finetune_api.micro_batch import MicroBatch
from finetune_trainer.errors import Preempted
from finetune_trainer.launcher import agreement
from finetune_trainer.launcher.agreement import Decision, Follower, Leader
from finetune_trainer.launcher.restart_policy import RestartPolicy
from finetune_trainer.runtime.exit_report import ExitReport

FACTS = AttemptFacts(namespace="team", name="tune", uid="u1", attempt=2, job_name="tune-11111-2", restarts=3)
LOST = ExitReport(70, "InternalError", "lost its connection", secondhand=True)
KILLED = ExitReport(137, "Killed", "Rank 1 was killed from outside")
DRAINED = ExitReport(75, "Disrupted", "saved")


def wait(_seconds: float) -> None:
    """No SIGTERM, no later run."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REPORTS_WITHIN", "ANSWER_WITHIN", "CONNECT_SECONDS", "LINE_SECONDS"):
        monkeypatch.setattr(agreement, name, 2.0)


@pytest.fixture
def port() -> int:
    """A port with a free one before it."""
    with socket.create_server(("", 0)) as free:
        return int(free.getsockname()[1]) + 1


@pytest.fixture
def lead(tmp_path: Path, port: int) -> Iterator[Callable[..., Leader]]:
    leaders: list[Leader] = []

    def make(nodes: int = 2, budget: int = 3) -> Leader:
        policy = RestartPolicy(budget, own=MicroBatch(4), micro_batch=MicroBatch(4), step=0)
        leaders.append(Leader(policy, FACTS, nodes, port, tmp_path))
        return leaders[-1]

    yield make
    for leader in leaders:
        leader.close()


def settle(asked: list[tuple[Any, ExitReport]]) -> list[Decision | None]:
    """What each node learns when all ask at once."""

    def ask(node: Any, report: ExitReport) -> Decision | None:
        decision: Decision | None = node.settle(report, wait)
        if decision is None:
            node.close()
        return decision

    with ThreadPoolExecutor(len(asked)) as pool:
        futures = [pool.submit(ask, node, report) for node, report in asked]
        return [future.result() for future in futures]


def test_all_nodes_learn_the_same_cause_number_and_port(lead: Callable[..., Leader], port: int) -> None:
    leader, second, third = lead(3), *(Follower(FACTS, node, "127.0.0.1", port) for node in (1, 2))
    ports = set()
    for number in (1, 2):
        decisions = settle([(leader, LOST), (second, KILLED), (third, LOST)])
        first = decisions[0]
        assert first is not None
        assert decisions == [first] * 3
        assert (first.restart.number, first.restart.reason, first.restart.message) == (number, "Killed", KILLED.message)
        ports.add(first.port)
    assert len(ports) == 2


def test_a_single_node_asks_nobody(lead: Callable[..., Leader]) -> None:
    decision = lead(1).settle(KILLED, wait)
    assert decision is not None
    assert decision.restart.number == 1


@pytest.mark.parametrize(
    "theirs",
    [DRAINED, ExitReport(65, "InvalidData", "row 7"), ExitReport(70, "InternalError", "stuck", needs_new_pods=True)],
    ids=["drained", "user error", "needs new pods"],
)
def test_a_node_whose_end_needs_more_than_a_restart_ends_all(
    lead: Callable[..., Leader], port: int, theirs: ExitReport
) -> None:
    follower = Follower(FACTS, 1, "127.0.0.1", port)
    assert settle([(lead(), LOST), (follower, theirs)]) == [None, None]


def test_nobody_waits_for_a_node_that_says_that_it_ends(
    lead: Callable[..., Leader], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "REPORTS_WITHIN", 1000.0)
    leader = lead()
    Follower(FACTS, 1, "127.0.0.1", port).close()
    assert leader.settle(LOST, wait_a_little) is None


def wait_a_little(seconds: float) -> None:
    time.sleep(seconds / 10)


def test_a_node_that_is_gone_ends_the_others(lead: Callable[..., Leader], port: int) -> None:
    assert lead().settle(LOST, wait) is None
    assert Follower(FACTS, 1, "127.0.0.1", port + 1).settle(LOST, wait) is None


def test_a_budget_that_is_spent_ends_all(lead: Callable[..., Leader], port: int) -> None:
    assert settle([(lead(budget=0), LOST), (Follower(FACTS, 1, "127.0.0.1", port), KILLED)]) == [None, None]


def test_a_node_that_is_drained_while_it_waits_does_not_restart_and_neither_do_the_others(
    lead: Callable[..., Leader], port: int
) -> None:
    def sigterm(_seconds: float) -> None:
        raise Preempted("drained")

    leader = lead()
    with pytest.raises(Preempted):
        Follower(FACTS, 1, "127.0.0.1", port).settle(KILLED, sigterm)
    assert leader.settle(LOST, wait) is None


def test_messages_of_another_run_do_not_count(lead: Callable[..., Leader], port: int) -> None:
    earlier = FACTS.model_copy(update={"attempt": 1})
    assert settle([(lead(), LOST), (Follower(earlier, 1, "127.0.0.1", port), KILLED)]) == [None, None]


def test_nobody_waits_for_a_leader_that_has_ended(lead: Callable[..., Leader], port: int) -> None:
    leader = lead()
    leader.close()
    assert Follower(FACTS, 1, "127.0.0.1", port).settle(LOST, wait) is None
