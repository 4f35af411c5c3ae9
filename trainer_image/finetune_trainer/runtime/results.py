"""The forms in which the end of a run leaves the pod: `Result` for status and RESULT.json, and the termination message.

Both have bounds, so long messages and metrics are truncated.
"""

import json
from typing import Literal

from finetune_api.contract import TERMINATION_MESSAGE_BYTES
from finetune_api.status import Restart, Result, RunUses

from finetune_trainer.runtime.exit_report import ExitReport, as_utf8

MESSAGE_CHARACTERS = 1024
METRICS = 32
SHORT = 253
"""Characters of a metric's name or value, and of a pointer that stands alone."""


def to_result(
    report: ExitReport,
    attempt: int,
    pointer: str = "",
    kind: Literal["prepare", "train"] = "train",
    restart: Restart | None = None,
    uses: RunUses | None = None,
) -> Result:
    """The report within the bounds of status. ``pointer`` says where the whole message is, ``restart`` is the newest
    restart of the attempt, ``uses`` what the run spent its time on."""
    metrics = {
        truncate(name, SHORT): truncate(str(value), SHORT)
        for name, value in list((report.metrics or {}).items())[:METRICS]
    }
    return Result(
        kind=kind,
        attempt=attempt,
        exit_code=report.code,
        reason=report.reason,
        message=truncate(report.message, MESSAGE_CHARACTERS, pointer),
        artifact=report.artifact,
        metrics=metrics or None,
        prepared=report.prepared,
        out_of_memory=report.out_of_memory,
        faulty_node=report.faulty_node,
        restart=restart,
        uses=uses,
    )


def is_truncated(report: ExitReport, result: Result) -> bool:
    """Whether a part of the report reaches neither status nor the termination message."""
    if len(_json(result)) > TERMINATION_MESSAGE_BYTES:
        return True
    return result.message != report.message or (result.metrics or {}) != (report.metrics or {})


def truncate(text: str, length: int, pointer: str = "") -> str:
    """At most ``length`` characters, all of which UTF-8 can encode. A truncated text ends with ``pointer``."""
    text = as_utf8(text)
    if len(text) <= length:
        return text
    tail = f"… {pointer}".rstrip()
    return text[: max(0, length - len(tail))] + tail


def termination_message(result: Result, pointer: str) -> bytes:
    """The result as JSON of at most TERMINATION_MESSAGE_BYTES. What does not fit is dropped: first the metrics, then
    the end of the message, then the artifact. ``pointer`` says where the whole is."""
    text = _json(result)
    if len(text) > TERMINATION_MESSAGE_BYTES:
        result = result.model_copy(update={"metrics": None})
        text = _json(result)
    length = MESSAGE_CHARACTERS
    while len(text) > TERMINATION_MESSAGE_BYTES and length:
        length //= 2
        message = truncate(result.message, max(length, len(pointer) + 2), pointer)
        text = _json(result.model_copy(update={"message": message}))
    if len(text) > TERMINATION_MESSAGE_BYTES:
        text = _json(result.model_copy(update={"message": truncate(pointer, SHORT), "artifact": None}))
    return text


def _json(result: Result) -> bytes:
    return json.dumps(result.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()
