"""The launchers of all nodes agree on what follows when their ranks have ended: a restart, or the end of the pods.

`restarts` asks once after each end. The launcher of node 0 decides (`Leader`), from the reports of all nodes: it waits
for them, and for no longer than they may need to end their ranks. The others send their reports and wait for the
answer (`Follower`), one connection and one line of JSON each way for each end. A node that ends without a question says
so, and a node that is gone does not answer: in both cases nothing is restarted, all pods end, and the operator decides.
A node that leaves between the answer and the restart is missed when the ranks meet.

Nodes compare uid, attempt and the number of restarts so far, so no message of another run counts.
"""

import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Protocol

from finetune_api.contract import AttemptFacts
from finetune_api.exit_codes import EndClass, end_class
from finetune_api.status import Restart

from finetune_trainer.checkpoints import paths
from finetune_trainer.launcher.restart_policy import RestartPolicy
from finetune_trainer.runtime import exit_report
from finetune_trainer.runtime.exit_report import ExitReport

REPORTS_WITHIN = 60.0
"""Seconds that node 0 waits for the reports of the others. A node needs up to 25 s longer than another to end its
ranks (`supervise`, `processes`)."""
ANSWER_WITHIN = 90.0
"""Seconds that a node waits for the answer of node 0."""
CONNECT_SECONDS = 10.0
"""Seconds in which node 0 is reached, or counts as gone."""
LINE_SECONDS = 10.0
LEAVE_SECONDS = 2.0
"""Seconds for the message that a node ends. After SIGTERM little time is left."""
LONGEST_LINE = 1 << 20
POLL = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What all nodes do next: start their ranks again."""

    restart: Restart
    pause: float
    """Seconds before."""
    port: int
    """Port of rank 0, another one after each restart."""


class Agreement(Protocol):
    """What `restarts` asks."""

    def settle(self, report: ExitReport, wait: Callable[[float], None]) -> Decision | None:
        """What follows the end of this node's ranks; None: the end of the pods. ``wait`` waits for some seconds; what
        it raises (SIGTERM, a later run) ends this run."""

    def close(self) -> None:
        """This node ends. The others do not wait for it."""


def may_restart(report: ExitReport) -> bool:
    """Whether a node whose ranks ended like this asks for a restart. A node that was drained, or whose ranks are done,
    ends."""
    return end_class(report.code) in (EndClass.RETRY, EndClass.GPU_OUT_OF_MEMORY)


class Leader:
    """Node 0, also if it is the only one."""

    def __init__(self, policy: RestartPolicy, facts: AttemptFacts, nodes: int, port: int, checkpoints: Path) -> None:
        self._policy, self._facts, self._nodes, self._port = policy, facts, nodes, port
        self._checkpoints = checkpoints
        self._questions: dict[int, tuple[ExitReport, socket.socket]] = {}
        """Node -> its report on the end at hand, and the connection that waits for the answer."""
        self._leaving = False
        """Whether a node ends, or has ended."""
        self._changed = Condition()
        self._server = _listen(port - 1) if nodes > 1 else None
        if self._server is not None:
            Thread(target=self._serve, args=(self._server,), name="agreement", daemon=True).start()

    def settle(self, report: ExitReport, wait: Callable[[float], None]) -> Decision | None:
        decision = None
        if may_restart(report):
            reports = self._all_reports(report, wait)
            decision = self._decide(reports) if reports is not None else None
        self._answer(decision)
        return decision

    def close(self) -> None:
        if self._server is not None:
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._server.close()
        self._answer(None)

    def _all_reports(self, own: ExitReport, wait: Callable[[float], None]) -> list[ExitReport] | None:
        deadline = time.monotonic() + REPORTS_WITHIN
        while True:
            with self._changed:
                if self._leaving:
                    return None
                if len(self._questions) == self._nodes - 1 and all(map(_is_open, self._connections())):
                    return [own, *(report for report, _ in self._questions.values())]
            if time.monotonic() > deadline:
                log.warning("Not all nodes report the end of their ranks. Nothing is restarted here")
                return None
            wait(POLL)

    def _decide(self, reports: list[ExitReport]) -> Decision | None:
        if any(report.needs_new_pods for report in reports):
            return None
        following = self._policy.next(exit_report.combine(reports), newest_step(self._checkpoints))
        return None if following is None else Decision(*following, self._free_port())

    def _free_port(self) -> int:
        """Never the port of earlier ranks. With several nodes the next one if it is free, so that it is known which
        ports are used."""
        preferred = [self._port + self._policy.number] if self._nodes > 1 else []
        for candidate in preferred:
            with suppress(OSError), _listen(candidate):
                return candidate
        with _listen(0) as free:
            return int(free.getsockname()[1])

    def _connections(self) -> list[socket.socket]:
        return [connection for _, connection in self._questions.values()]

    def _answer(self, decision: Decision | None) -> None:
        with self._changed:
            connections = self._connections()
            self._questions.clear()
        content = {} if decision is None else {**vars(decision), "restart": decision.restart.to_dict()}
        for connection in connections:
            try:
                connection.sendall(_line(content))
            except OSError as error:
                log.warning("A node does not read the answer: %s", error)
            connection.close()

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return  # closed
            Thread(target=self._receive, args=(connection,), daemon=True).start()

    def _receive(self, connection: socket.socket) -> None:
        try:
            question = _read_line(connection, LINE_SECONDS)
            connection.setblocking(False)
            ours = _same_run(question, self._facts, self._policy.number)
            report = exit_report.from_json(question["report"]) if question["report"] else None
            node = int(question["node"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("A message that no launcher sends is ignored: %r", error)
            connection.close()
            return
        with self._changed:
            if ours and report is not None:
                self._questions[node] = (report, connection)
                return
            self._leaving |= ours
        connection.close()


class Follower:
    """Every other node."""

    def __init__(self, facts: AttemptFacts, node: int, host: str, port: int) -> None:
        self._facts, self._node, self._address = facts, node, (host, port - 1)
        self._number = 0

    def settle(self, report: ExitReport, wait: Callable[[float], None]) -> Decision | None:
        if not may_restart(report):
            return None
        try:
            with self._connect(wait) as connection:
                connection.sendall(self._message(report))
                answer = _wait_for_line(connection, wait)
            decision = Decision(Restart.model_validate(answer["restart"]), answer["pause"], answer["port"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("Node 0 restarts nothing (%r)", error)
            return None
        self._number = decision.restart.number
        return decision

    def close(self) -> None:
        with suppress(OSError), socket.create_connection(self._address, LEAVE_SECONDS) as connection:
            connection.sendall(self._message(None))

    def _message(self, report: ExitReport | None) -> bytes:
        """A question about the end of this node's ranks; without a report: this node ends."""
        content = {"uid": self._facts.uid, "attempt": self._facts.attempt, "number": self._number, "node": self._node}
        return _line({**content, "report": exit_report.to_json(report) if report else None})

    def _connect(self, wait: Callable[[float], None]) -> socket.socket:
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                return socket.create_connection(self._address, LINE_SECONDS)
            except OSError:
                if time.monotonic() > deadline:
                    raise
            wait(POLL)


def newest_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint of the job; 0 without one."""
    try:
        return max((paths.step_of(path) or 0 for path in paths.newest_first(checkpoints)), default=0)
    except OSError as error:
        log.warning("%s cannot be read: %s", checkpoints, error)
        return 0


def _listen(port: int) -> socket.socket:
    """On all addresses, of IPv6 as well."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _same_run(question: dict[str, Any], facts: AttemptFacts, number: int) -> bool:
    return (question["uid"], question["attempt"], question["number"]) == (facts.uid, facts.attempt, number)


def _is_open(connection: socket.socket) -> bool:
    """Whether the other side still waits for the answer. It sends nothing more, so what arrives is the end."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _read_line(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """The next line. A time-out of a socket bounds each read, and the line is short."""
    connection.settimeout(seconds)
    received = b""
    while not received.endswith(b"\n"):
        more = connection.recv(1 << 16)
        received += more
        if not more or len(received) > LONGEST_LINE:
            raise ValueError("the connection was closed before the end of the line")
    content = json.loads(received)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _wait_for_line(connection: socket.socket, wait: Callable[[float], None]) -> dict[str, Any]:
    deadline = time.monotonic() + ANSWER_WITHIN
    connection.setblocking(False)
    while time.monotonic() < deadline:
        try:
            connection.recv(1, socket.MSG_PEEK)
            return _read_line(connection, LINE_SECONDS)
        except BlockingIOError:
            wait(POLL)
    raise TimeoutError(f"node 0 did not answer within {ANSWER_WITHIN:.0f} s")
