"""Leases have one holder, and nobody waits for a dead holder."""

import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from finetune_trainer.fetch import lease as leases
from finetune_trainer.fetch.lease import lease


def never() -> None:
    pass


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "POLL_INTERVAL", 0.01)


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            with lease(tmp_path / "lock", f"run-{number}", never):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
    assert len(list(tmp_path.iterdir())) == 1


def test_a_dead_owners_lease_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock.7").write_text(json.dumps({"owner": "dead", "expires": time.time() - 1}))
    with lease(tmp_path / "lock", "run-2", never):
        assert json.loads((tmp_path / "lock.8").read_text())["owner"] == "run-2"
    assert not (tmp_path / "lock.7").exists()


def test_a_living_owners_lease_is_not_taken_over_and_waiting_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "lock.7").write_text(json.dumps({"owner": "alive", "expires": time.time() + 1000}))
    checks = iter([None, None, KeyboardInterrupt()])

    def stop() -> None:
        if error := next(checks):
            raise error

    with pytest.raises(KeyboardInterrupt), lease(tmp_path / "lock", "run-2", stop):
        raise AssertionError("two hold it")


def test_a_holder_that_did_not_renew_in_time_loses_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(tmp_path / "lock", "run-1", never) as held:
        held.check()
        monkeypatch.setattr(leases, "DURATION", -1.0)
        with pytest.raises(leases.LeaseLost):
            held.check()


def test_nobody_waits_for_a_killed_process_of_this_machine(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with lease(tmp_path / "lock", "killed", never):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert json.loads((tmp_path / "lock.1").read_text())["expires"] > time.time()
    checks = itertools.count()

    def check_stop() -> None:
        assert next(checks) < 3, "it waits"

    with lease(tmp_path / "lock", "run-2", check_stop):
        assert json.loads((tmp_path / "lock.2").read_text())["owner"] == "run-2"


def held_elsewhere(lock: Path, attempt: tuple[str, int] | None) -> None:
    content = {
        "owner": "other",
        "expires": time.time() + 1000,
        "attempt": attempt,
        "process": ["boot", "space", 1, "2"],
    }
    lock.with_name(f"{lock.name}.7").write_text(json.dumps(content))


def test_nobody_waits_for_an_earlier_attempt_of_the_same_job(tmp_path: Path) -> None:
    held_elsewhere(tmp_path / "lock", ("prepare uid-1", 2))
    with lease(tmp_path / "lock", "run-3", never, ("prepare uid-1", 3)) as held:
        held.check()
        assert (tmp_path / "lock.8").exists()


@pytest.mark.parametrize("attempt", [None, ("prepare uid-1", 3), ("prepare uid-1", 4), ("train uid-1", 2)])
def test_all_other_holders_are_waited_for(tmp_path: Path, attempt: tuple[str, int] | None) -> None:
    held_elsewhere(tmp_path / "lock", attempt)
    checks = iter([None, None, KeyboardInterrupt()])

    def stop() -> None:
        if error := next(checks):
            raise error

    with pytest.raises(KeyboardInterrupt), lease(tmp_path / "lock", "run-3", stop, ("prepare uid-1", 3)):
        raise AssertionError("two hold it")


def test_a_holder_that_returns_after_a_takeover_loses_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_INTERVAL", 0.01)
    with (
        lease(tmp_path / "lock", "run-1", never, ("uid", 1)) as first,
        lease(tmp_path / "lock", "run-2", never, ("uid", 2)) as second,
    ):
        first._thread.join(30)
        with pytest.raises(leases.LeaseLost, match="taken over"):
            first.check()
        second.check()
