"""Which ends are followed by a restart in the same pods: class, budget, pauses, micro-batch."""

from typing import Any

import pytest
from finetune_api.exit_codes import REASONS
from finetune_api.micro_batch import MicroBatch
from finetune_api.status import OutOfMemory, Restart
from finetune_trainer.launcher.restart_policy import PAUSES, RestartPolicy
from finetune_trainer.runtime import exit_report
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.hostmemory import HostMemory

NO_COUNTS = HostMemory(None, None, None)


def policy(budget: int = 3, size: int = 4) -> RestartPolicy:
    return RestartPolicy(budget, own=MicroBatch(4), micro_batch=MicroBatch(size), step=0)


def ended(code: int, **fields: Any) -> ExitReport:
    reasons = {int(known): reason for known, reason in REASONS.items()}
    return ExitReport(code, reasons.get(code, "Killed"), "why", **fields)


def out_of_memory(phase: Any = "train", size: int = 4) -> ExitReport:
    return ended(71, out_of_memory=OutOfMemory(phase=phase, rank=0, micro_batch_size=size))


@pytest.mark.parametrize("code", [70, 76, 1, 134, 139, 143])
def test_crashes_and_hangs_are_followed_by_a_restart_at_once(code: int) -> None:
    following = policy().next(ended(code), 0)
    assert following is not None
    restart, pause = following
    assert (restart.number, restart.failures, restart.exit_code, pause) == (1, 1, code, 0)


@pytest.mark.parametrize("code", [0, 64, 65, 66, 69, 72, 73, 74, 75, 77, 78])
def test_other_ends_are_not(code: int) -> None:
    assert policy().next(ended(code), 0) is None


def test_a_rank_that_was_killed_for_memory_is_not_restarted_and_another_killed_rank_is() -> None:
    """The same ranks would outgrow the same memory."""
    assert policy().next(exit_report.from_signal(9, 0, NO_COUNTS, True), 0) is None
    assert policy().next(exit_report.from_signal(9, 0, NO_COUNTS, None), 0) is None
    assert policy().next(exit_report.from_signal(9, 0, NO_COUNTS, False), 0) is not None


def test_failures_without_a_newer_checkpoint_wait_and_then_need_new_pods() -> None:
    tried = policy(budget=9)
    pauses = [following[1] for _ in PAUSES if (following := tried.next(ended(70), 0))]
    assert pauses == [0, 10]
    assert tried.next(ended(70), 0) is None


def test_a_newer_checkpoint_starts_the_row_again_and_the_budget_bounds_all() -> None:
    tried = policy(budget=4)
    following = [tried.next(ended(70), step) for step in (0, 0, 5, 10, 15)]
    assert [found and (found[0].number, found[0].failures, found[1]) for found in following] == [
        (1, 1, 0),
        (2, 2, 10),
        (3, 3, 0),
        (4, 4, 0),
        None,
    ]


def test_gpu_memory_halves_the_micro_batch_and_costs_no_failure() -> None:
    tried = policy(budget=0)
    sizes = [following[0] for _ in range(2) if (following := tried.next(out_of_memory(), 0))]
    assert [(restart.micro_batch_size, restart.failures) for restart in sizes] == [(2, 0), (1, 0)]


def test_at_the_smallest_micro_batch_all_layers_are_recomputed_once() -> None:
    """Later restarts in these pods keep it."""
    tried = policy(size=1)
    restart = first(tried, out_of_memory())
    assert (restart.recompute, restart.micro_batch_size, restart.failures) == ("all", 1, 0)
    assert first(tried, ended(70)).recompute == "all"
    assert tried.next(out_of_memory(), 0) is None


@pytest.mark.parametrize("mode", ["none", "layers", "all"])
def test_only_auto_recomputes_more(mode: Any) -> None:
    one = MicroBatch(1)
    assert RestartPolicy(3, own=one, micro_batch=one, step=0, mode=mode).next(out_of_memory(), 0) is None


def test_ranks_that_recomputed_all_layers_are_not_started_again_for_it() -> None:
    full = ended(71, out_of_memory=OutOfMemory(phase="train", rank=0, micro_batch_size=1, recompute="all"))
    assert policy(size=1).next(full, 0) is None
    one = MicroBatch(1)
    assert RestartPolicy(3, own=one, micro_batch=one, step=0, recompute="all").next(out_of_memory(), 0) is None


def test_gpu_memory_outside_of_a_step_counts_as_any_failure() -> None:
    restart = first(policy(), out_of_memory("evaluate"))
    assert (restart.micro_batch_size, restart.failures) == (None, 1)


def test_an_attempt_that_began_with_a_smaller_micro_batch_halves_that() -> None:
    assert first(policy(size=2), out_of_memory()).micro_batch_size == 1
    assert first(policy(size=2), ended(70)).micro_batch_size == 2


def test_a_long_message_is_cut() -> None:
    report = ExitReport(70, "InternalError", "🦙" * 5000)
    assert len(first(policy(), report).message) <= 256


def first(tried: RestartPolicy, report: ExitReport) -> Restart:
    following = tried.next(report, 0)
    assert following is not None
    return following[0]


def test_a_micro_batch_in_tokens_is_halved_down_to_the_longest_row() -> None:
    tokens = MicroBatch(8192, "tokens")
    in_tokens = RestartPolicy(3, own=tokens, micro_batch=tokens, step=0, longest=3000)
    sizes = [first(in_tokens, out_of_memory()) for _ in range(3)]
    assert [(restart.micro_batch_tokens, restart.recompute) for restart in sizes] == [
        (4096, None),
        (3000, None),
        (3000, "all"),
    ]
    assert {restart.micro_batch_size for restart in sizes} == {None}
    assert in_tokens.next(out_of_memory(), 0) is None
