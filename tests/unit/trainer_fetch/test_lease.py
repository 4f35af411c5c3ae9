"""Leases: one holder, and a dead one holds nobody up."""

import json
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
    monkeypatch.setattr(leases, "LOOKS_EVERY", 0.01)


def test_one_at_a_time(tmp_path: Path) -> None:
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


def test_a_living_owners_is_not_and_waiting_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "lock.7").write_text(json.dumps({"owner": "alive", "expires": time.time() + 1000}))
    looks = iter([None, None, KeyboardInterrupt()])

    def stop() -> None:
        if error := next(looks):
            raise error

    with pytest.raises(KeyboardInterrupt), lease(tmp_path / "lock", "run-2", stop):
        raise AssertionError("two hold it")


def test_a_holder_that_stood_still_too_long_finds_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(tmp_path / "lock", "run-1", never) as held:
        held.check()
        monkeypatch.setattr(leases, "LASTS", -1.0)
        with pytest.raises(leases.LeaseLost):
            held.check()
