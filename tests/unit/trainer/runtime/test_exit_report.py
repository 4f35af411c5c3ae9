"""Exit reports: from exceptions and signals, combined, and in files."""

import errno
import json
from pathlib import Path

import pytest
from finetune_api.micro_batch import MicroBatch
from finetune_api.status import Artifact, OutOfMemory
from finetune_trainer import errors
from finetune_trainer.runtime import exit_report, heartbeat, results
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.silence import Silence

ARTIFACT = Artifact(uri="pvc://w/jobs/a/artifact", kind="adapter", digest="sha256:0", size_bytes=1)

# A class with the name of torch's, because no test here imports torch.
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.WorkspaceOccupied("x"), 74, "WorkspaceOccupied"),
        (errors.NoDevice("x"), 70, "InternalError"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), 71, "GPUOutOfMemory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), 71, "GPUOutOfMemory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 137, "OutOfMemory"),
        (MemoryError(), 137, "OutOfMemory"),
        (OSError(errno.ENOSPC, "No space left on device"), 73, "NoSpace"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 73, "NoSpace"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 73, "NoSpace"),
        (OSError(errno.EROFS, "Read-only file system", "/ws/jobs/a/x"), 74, "WorkspaceUnusable"),
        (OSError(errno.EACCES, "Permission denied", "/etc/shadow"), 70, "InternalError"),
        (OSError(errno.EIO, "Input/output error", "/ws/jobs/a/x"), 70, "InternalError"),
        (KeyError("chosen"), 70, "InternalError"),
        (SystemExit(3), 70, "InternalError"),
    ],
)
def test_exceptions_map_to_codes_and_reasons(error: BaseException, code: int, reason: str) -> None:
    report = exit_report.from_error(error, rank=1, workspace=Path("/ws"))
    assert (report.code, report.reason) == (code, reason)
    assert report.message


def test_the_cause_of_an_exception_decides() -> None:
    error = RuntimeError("writer failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert exit_report.from_error(error, rank=0, workspace=Path("/ws")).code == 73


def test_a_handled_error_does_not_decide() -> None:
    """A fallback that fails hides the error that it was a fallback for."""
    error = KeyError("a bug in the fallback")
    error.__context__ = errors.NotFound("no adapter")
    assert exit_report.from_error(error, rank=0, workspace=Path("/ws")).code == 70


def reports(*codes: int, forced: tuple[int, ...] = ()) -> list[ExitReport]:
    own = [ExitReport(code, f"R{code}", f"m{code}", ARTIFACT if code == 0 else None) for code in codes]
    return own + [ExitReport(code, "Killed", "ended", forced=True) for code in forced]


@pytest.mark.parametrize(
    ("several", "code"),
    [
        (reports(0, 0), 0),
        (reports(0, 75), 75),
        (reports(70, 64), 64),
        (reports(75, 72), 75),
        (reports(72, 71), 72),
        (reports(76, 71), 71),
        (reports(70, 137), 137),
        (reports(70, 139), 70),
        (reports(137, 65), 65),
        (reports(71, forced=(137,)), 71),
        (reports(78, forced=(137,)), 78),
        (reports(0, forced=(137,)), 137),
        (reports(forced=(137, 137)), 137),
    ],
)
def test_combined_exit_code(several: list[ExitReport], code: int) -> None:
    assert exit_report.combine(several).code == code
    assert exit_report.combine(several[::-1]).code == code


def test_a_secondhand_report_does_not_hide_the_cause() -> None:
    """The ranks of another node lost their connection to a rank of this node, which has the cause."""
    own = ExitReport(137, "OutOfMemory", "killed")
    secondhand = ExitReport(70, "InternalError", "connection lost", secondhand=True)
    assert exit_report.combine([secondhand, own]).message == "killed"
    assert exit_report.combine([secondhand, secondhand]).secondhand


def test_a_hang_is_told_of_the_ranks_of_all_nodes_the_fewest_first() -> None:
    """Each launcher knows its own ranks only, and those of node 0 may just wait."""
    first = exit_report.hung([Silence(0, 0, "train", 7, 601, 600), Silence(1, 0, "train", 7, 600)])
    second = exit_report.hung([Silence(2, 1, "evaluate", 6, 599, 500), Silence(3, 1, "train", 7, 602, 600)])
    sent = exit_report.from_json(json.loads(json.dumps(exit_report.to_json(second))))
    lost = ExitReport(70, "InternalError", "connection lost", secondhand=True)
    combined = exit_report.combine([first, lost, sent])
    assert (combined.code, combined.reason) == (76, "Hung")
    assert combined.message == (
        "The run hangs: rank 2 (node 1) in phase evaluate after step 6, for 599 s (limit 500 s); ranks 0, 1 and 3"
        " (nodes 0 and 1) in phase train after step 7, for 602 s (limit 600 s). See the stacks of all threads in the"
        " logs of the pods"
    )
    assert exit_report.combine([first, lost]).message == (
        "The run hangs: ranks 0 and 1 in phase train after step 7, for 601 s (limit 600 s). See the stacks of all"
        " threads in the pod's log"
    )


def test_out_of_memory_details_reach_status() -> None:
    heartbeat.beat("evaluate", 7)
    error = OutOfMemoryError("CUDA out of memory. Tried to allocate")
    report = exit_report.from_error(error, rank=3, workspace=Path("/ws"), micro_batch=MicroBatch(4))
    details = results.to_result(exit_report.combine([report, *reports(forced=(137,))]), 1).out_of_memory
    assert details == OutOfMemory(phase="evaluate", rank=3, micro_batch_size=4)
    assert "on rank 3 in phase evaluate with a micro-batch of 4" in report.message
    assert exit_report.from_json(json.loads(json.dumps(exit_report.to_json(report)))) == report


def test_a_success_has_the_artifact_of_the_rank_that_wrote_it() -> None:
    assert exit_report.combine([ExitReport(0, "Completed", ""), *reports(0)]).artifact == ARTIFACT


def test_a_report_is_read_back_from_its_file(tmp_path: Path) -> None:
    report = ExitReport(0, "Completed", "done", ARTIFACT, {"loss": "0.5"})
    exit_report.write(tmp_path / "report", report)
    assert exit_report.read(tmp_path / "report") == report
    assert exit_report.read(tmp_path / "nothing") is None
