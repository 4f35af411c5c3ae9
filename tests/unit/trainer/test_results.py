"""How ends are judged, put together and kept within bounds."""

import errno
import json
from pathlib import Path

import pytest
from finetune_api.contract import TERMINATION_MESSAGE_BYTES
from finetune_api.status import Artifact, OutOfMemory, Result
from finetune_trainer import errors, heartbeat, results
from finetune_trainer.results import End
from hypothesis import given
from hypothesis import strategies as st

POINTER = "(the whole is in jobs/a/reports/end-1-x.json of the workspace)"
ARTIFACT = Artifact(uri="pvc://w/jobs/a/artifact", kind="adapter", digest="sha256:0", size_bytes=1)

# A class by torch's name, as no test here imports torch.
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
def test_what_an_exception_means(error: BaseException, code: int, reason: str) -> None:
    end = results.of_error(error, rank=1, workspace=Path("/ws"))
    assert (end.code, end.reason) == (code, reason)
    assert end.message


def test_the_cause_behind_an_exception_counts() -> None:
    error = RuntimeError("writer failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert results.of_error(error, rank=0, workspace=Path("/ws")).code == 73


def test_an_error_that_was_handled_does_not_count() -> None:
    """A fallback that fails is not the thing that it was a fallback for."""
    error = KeyError("a bug in the fallback")
    error.__context__ = errors.NotFound("no adapter")
    assert results.of_error(error, rank=0, workspace=Path("/ws")).code == 70


def ends(*codes: int, forced: tuple[int, ...] = ()) -> list[End]:
    own = [End(code, f"R{code}", f"m{code}", ARTIFACT if code == 0 else None) for code in codes]
    return own + [End(code, "Killed", "ended", forced=True) for code in forced]


@pytest.mark.parametrize(
    ("several", "code"),
    [
        (ends(0, 0), 0),
        (ends(0, 75), 75),
        (ends(70, 64), 64),
        (ends(75, 72), 75),
        (ends(72, 71), 72),
        (ends(76, 71), 71),
        (ends(70, 137), 137),
        (ends(70, 139), 70),
        (ends(137, 65), 65),
        (ends(71, forced=(137,)), 71),
        (ends(78, forced=(137,)), 78),
        (ends(0, forced=(137,)), 137),
        (ends(forced=(137, 137)), 137),
    ],
)
def test_one_end_of_many(several: list[End], code: int) -> None:
    assert results.combine(several).code == code
    assert results.combine(several[::-1]).code == code


def test_an_echo_does_not_hide_what_it_is_an_echo_of() -> None:
    """One node's ranks lost their connection to a rank here, which knows why it ended."""
    own, echo = End(137, "OutOfMemory", "killed"), End(70, "InternalError", "connection lost", echo=True)
    assert results.combine([echo, own]).message == "killed"
    assert results.combine([echo, echo]).echo


def test_what_did_not_fit_reaches_status() -> None:
    heartbeat.beat("evaluate", 7)
    error = OutOfMemoryError("CUDA out of memory. Tried to allocate")
    end = results.of_error(error, rank=3, workspace=Path("/ws"), micro_batch_size=4)
    told = results.to_result(results.combine([end, *ends(forced=(137,))]), 1).out_of_memory
    assert told == OutOfMemory(phase="evaluate", rank=3, micro_batch_size=4)
    assert "on rank 3 in phase evaluate with a micro-batch of 4" in end.message
    assert results.of_json(json.loads(json.dumps(results.to_json(end)))) == end


def test_success_carries_the_artifact_of_the_rank_that_wrote_it() -> None:
    assert results.combine([End(0, "Completed", ""), *ends(0)]).artifact == ARTIFACT


@given(
    st.text(max_size=6000),
    st.dictionaries(st.text(max_size=400), st.text(max_size=400), max_size=50),
    st.sampled_from(["", "é" * 900, "🦙" * 900]),
)
def test_the_termination_message_is_always_a_result_and_always_fits(
    message: str, metrics: dict[str, str], path: str
) -> None:
    artifact = ARTIFACT.model_copy(update={"uri": f"pvc://w/{path}"})
    result = results.to_result(End(65, "InvalidData", message, artifact, metrics), 3, POINTER)
    text = results.termination_message(result, POINTER)
    assert len(text) <= TERMINATION_MESSAGE_BYTES
    read = Result.model_validate_json(text)
    assert (read.exit_code, read.attempt, read.reason) == (65, 3, "InvalidData")


def test_what_fits_is_not_touched() -> None:
    end = End(0, "Completed", "Training completed", ARTIFACT, {"loss": "0.5"})
    result = results.to_result(end, 1)
    assert not results.is_cut(end, result)
    assert Result.model_validate_json(results.termination_message(result, POINTER)) == result


def test_a_cut_message_says_where_the_rest_is() -> None:
    for message in ("a" * 5000, "\0" * 1024, "🦙" * 1024):
        end = End(65, "InvalidData", message)
        result = results.to_result(end, 1, POINTER)
        assert results.is_cut(end, result)
        assert POINTER in Result.model_validate_json(results.termination_message(result, POINTER)).message


def test_what_utf8_cannot_write_does_no_harm(tmp_path: Path) -> None:
    """File names that aren't UTF-8 reach messages as lone surrogates."""
    end = End(66, "NotFound", "no such file: \udcff")
    results.write_end(tmp_path / "end", end)
    assert results.read_end(tmp_path / "end") is not None
    json.loads(results.termination_message(results.to_result(end, 1), ""))


def test_an_end_survives_its_file(tmp_path: Path) -> None:
    end = End(0, "Completed", "done", ARTIFACT, {"loss": "0.5"})
    results.write_end(tmp_path / "end", end)
    assert results.read_end(tmp_path / "end") == end
    assert results.read_end(tmp_path / "nothing") is None
