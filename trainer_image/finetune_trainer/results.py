"""How a rank ended, how the run ended, and how that is said to the outside: always within bounds.

``worker`` writes one `End` per rank, ``launch`` makes one of them all and turns it into `Result` (for status and
RESULT.json) and into the termination message.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from finetune_api.contract import TERMINATION_MESSAGE_BYTES
from finetune_api.exit_codes import REASONS, ExitCode, strongest
from finetune_api.status import Artifact, OutOfMemory, Prepared, Reason, Result

from finetune_trainer import gpumemory
from finetune_trainer.errors import TrainerError
from finetune_trainer.hostmemory import HostMemory, describe
from finetune_trainer.workspace import NO_SPACE, NOT_WRITABLE, write_json

KILLED = 137
ABORTED = 134
MESSAGE_CHARACTERS = 1024
METRICS = 32
SHORT = 253
RAISE_MEMORY = "Raise resources.memory (/dev/shm counts against it), or lower training.microBatchSize"
SPARE_GPU = (
    "Lower training.microBatchSize or training.cutoffLength, switch training.gradientCheckpointing on, or use a larger"
    " GPU"
)
MAKE_ROOM = "Give the workspace's claim more room, or remove old jobs/ from it"


@dataclass(frozen=True)
class End:
    """The end of a rank or of a run. The message may have any length."""

    code: int
    reason: str
    message: str
    artifact: Artifact | None = None
    metrics: dict[str, str] | None = None
    prepared: Prepared | None = None
    out_of_memory: OutOfMemory | None = None
    forced: bool = False
    """Ended by ``launch``, so no evidence of what went wrong."""
    echo: bool = False
    """What came of another rank's end."""


def of_error(error: BaseException, *, rank: int, workspace: Path, micro_batch_size: int = 1) -> End:
    """What an exception means by the contract. Anything unknown is an internal error."""
    if isinstance(error, TrainerError):
        return End(error.exit_code, error.reason, str(error))
    for cause in _chain(error):
        name, text = type(cause).__name__, str(cause)
        first = text.strip().split("\n")[0]
        if gpumemory.is_out_of_memory(cause):
            memory = gpumemory.details(cause, rank, micro_batch_size)
            message = f"GPU memory is used up on rank {rank} {gpumemory.describe(memory)} ({first}). {SPARE_GPU}"
            return replace(_named(ExitCode.GPU_OUT_OF_MEMORY, message), out_of_memory=memory)
        if isinstance(cause, MemoryError) or "DefaultCPUAllocator" in text:
            message = f"The host's memory is used up on rank {rank} ({first or name}). {RAISE_MEMORY}"
            return End(KILLED, Reason.OUT_OF_MEMORY, message)
        number = cause.errno if isinstance(cause, OSError) else None
        if number in NO_SPACE or "No space left on device" in text:
            return _named(ExitCode.NO_SPACE, f"No space left ({first}). {MAKE_ROOM}")
        if number in NOT_WRITABLE and str(getattr(cause, "filename", "")).startswith(f"{workspace}/"):
            return _named(ExitCode.WORKSPACE_UNUSABLE, f"The workspace can't be written any more: {first}")
    message = f"{type(error).__name__} on rank {rank}: {error}. The stack trace is in the pod's log"
    return _named(ExitCode.INTERNAL_ERROR, message)


def _named(code: ExitCode, message: str) -> End:
    return End(code, REASONS[code], message)


def of_signal(signal_number: int, rank: int, memory: HostMemory, short: bool | None) -> End:
    """A rank that was killed by somebody else, or fell over. `memory` is the container's, `short` what `was_short` says
    of the time in which the rank ran."""
    code = 128 + signal_number
    if code == KILLED and short is False:
        message = f"Rank {rank} was killed from outside; the kernel says that it was not for lack of memory"
        return End(code, Reason.KILLED, f"{message}. See what ends processes on its node")
    if code == KILLED:
        known = "because the pod's" if short else "most likely because the host's"
        facts = describe(memory)
        message = f"Rank {rank} was killed, {known} memory was used up{f' ({facts})' if facts else ''}. {RAISE_MEMORY}"
        return End(code, Reason.OUT_OF_MEMORY, message)
    message = f"Rank {rank} was ended by signal {signal_number}. What it logged last is in the pod's log"
    return End(code, Reason.KILLED, message)


def combine(ends: Sequence[End]) -> End:
    """One end of many: the strongest code, in the words of the first rank that has it; others are mentioned.

    Ranks that ``launch`` ended don't count beside one that ended by itself, nor echoes beside what they are echoes of.
    Nor does an internal error, or an abort (NCCL's way), beside a rank that was killed (137): it is the connection to
    that rank that broke.
    """
    own = [end for end in ends if not end.forced] or list(ends)
    own = [end for end in own if not end.echo] or own
    failed = [end for end in own if end.code != 0]
    if not failed:
        if len(own) < len(ends):
            return next(end for end in ends if end.forced)
        return next((end for end in ends if end.artifact is not None), ends[0])
    if any(end.code == KILLED for end in failed):
        failed = [end for end in failed if end.code not in (ExitCode.INTERNAL_ERROR, ABORTED)]
    code = strongest([end.code for end in failed])
    decisive = next(end for end in failed if end.code == code)
    others = sorted({f"{end.code} ({end.reason})" for end in own if end.code not in (code, 0)})
    beside = f". Other ranks ended with {', '.join(others)}" if others else ""
    return replace(decisive, message=decisive.message + beside)


def to_result(end: End, attempt: int, pointer: str = "", kind: Literal["prepare", "train"] = "train") -> Result:
    """Cut to what status allows. `pointer` says where the whole message is."""
    metrics = {cut(k, SHORT): cut(str(v), SHORT) for k, v in list((end.metrics or {}).items())[:METRICS]}
    return Result(
        kind=kind,
        attempt=attempt,
        exit_code=end.code,
        reason=end.reason,
        message=cut(end.message, MESSAGE_CHARACTERS, pointer),
        artifact=end.artifact,
        metrics=metrics or None,
        prepared=end.prepared,
        out_of_memory=end.out_of_memory,
    )


def is_cut(end: End, result: Result) -> bool:
    """Whether something of the end doesn't reach status or the termination message."""
    if len(_json(result)) > TERMINATION_MESSAGE_BYTES:
        return True
    return result.message != end.message or (result.metrics or {}) != (end.metrics or {})


def cut(text: str, length: int, pointer: str = "") -> str:
    """At most `length` characters, all of which UTF-8 can write."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= length:
        return text
    tail = f"… {pointer}".rstrip()
    return text[: max(0, length - len(tail))] + tail


def termination_message(result: Result, pointer: str) -> bytes:
    """The result as JSON of at most TERMINATION_MESSAGE_BYTES: whole, or without what `pointer` leads to."""
    text = _json(result)
    if len(text) > TERMINATION_MESSAGE_BYTES:
        result = result.model_copy(update={"metrics": None})
        text = _json(result)
    length = MESSAGE_CHARACTERS
    while len(text) > TERMINATION_MESSAGE_BYTES and length:
        length //= 2
        text = _json(result.model_copy(update={"message": cut(result.message, max(length, len(pointer) + 2), pointer)}))
    if len(text) > TERMINATION_MESSAGE_BYTES:
        text = _json(result.model_copy(update={"message": cut(pointer, SHORT), "artifact": None}))
    return text


def _json(result: Result) -> bytes:
    return json.dumps(result.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()


def write_end(file: Path, end: End) -> None:
    """From a rank to ``launch``."""
    write_json(file, to_json(end))


def read_end(file: Path) -> End | None:
    """What a rank wrote; None when it didn't get that far."""
    try:
        return of_json(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def to_json(end: End) -> dict[str, Any]:
    """For files, and for other ranks."""
    content = asdict(end)
    content["message"] = cut(end.message, len(end.message))
    for name in SECTIONS:
        section = getattr(end, name)
        content[name] = section.to_dict() if section else None
    return content


def of_json(content: dict[str, Any]) -> End:
    """What `to_json` made."""
    sections = {name: kind.model_validate(content[name]) for name, kind in SECTIONS.items() if content[name]}
    return End(**{**content, **sections})


SECTIONS: dict[str, type[Artifact | Prepared | OutOfMemory]] = {
    "artifact": Artifact,
    "prepared": Prepared,
    "out_of_memory": OutOfMemory,
}


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and what led to it."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain
