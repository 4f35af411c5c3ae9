"""The bounds of status and of the termination message."""

import json
from pathlib import Path

from finetune_api.contract import TERMINATION_MESSAGE_BYTES
from finetune_api.status import Artifact, Result
from finetune_trainer.runtime import exit_report, results
from finetune_trainer.runtime.exit_report import ExitReport
from hypothesis import given
from hypothesis import strategies as st

POINTER = "(the whole message is in jobs/a/reports/end-1-x.json of the workspace)"
ARTIFACT = Artifact(uri="pvc://w/jobs/a/artifact", kind="adapter", digest="sha256:0", size_bytes=1)


@given(
    st.text(max_size=6000),
    st.dictionaries(st.text(max_size=400), st.text(max_size=400), max_size=50),
    st.sampled_from(["", "é" * 900, "🦙" * 900]),
)
def test_the_termination_message_is_a_result_and_fits(message: str, metrics: dict[str, str], path: str) -> None:
    artifact = ARTIFACT.model_copy(update={"uri": f"pvc://w/{path}"})
    result = results.to_result(ExitReport(65, "InvalidData", message, artifact, metrics), 3, POINTER)
    text = results.termination_message(result, POINTER)
    assert len(text) <= TERMINATION_MESSAGE_BYTES
    read = Result.model_validate_json(text)
    assert (read.exit_code, read.attempt, read.reason) == (65, 3, "InvalidData")


def test_a_report_that_fits_is_unchanged() -> None:
    report = ExitReport(0, "Completed", "Training completed", ARTIFACT, {"loss": "0.5"})
    result = results.to_result(report, 1)
    assert not results.is_truncated(report, result)
    assert Result.model_validate_json(results.termination_message(result, POINTER)) == result


def test_a_truncated_message_has_the_pointer() -> None:
    for message in ("a" * 5000, "\0" * 1024, "🦙" * 1024):
        report = ExitReport(65, "InvalidData", message)
        result = results.to_result(report, 1, POINTER)
        assert results.is_truncated(report, result)
        assert POINTER in Result.model_validate_json(results.termination_message(result, POINTER)).message


def test_characters_that_utf8_cannot_encode_are_replaced(tmp_path: Path) -> None:
    """Names of files that are not UTF-8 reach messages as lone surrogates."""
    report = ExitReport(66, "NotFound", "no such file: \udcff")
    exit_report.write(tmp_path / "report", report)
    assert exit_report.read(tmp_path / "report") is not None
    json.loads(results.termination_message(results.to_result(report, 1), ""))
