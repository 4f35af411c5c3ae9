"""How a rank or a whole run ended: from exceptions, signals and the reports of other ranks to one `ExitReport`.

`launcher.worker` writes one report per rank. `launcher.supervise` combines them into the report of the run, and
`results` turns that into the forms that leave the pod.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import REASONS, ExitCode, strongest
from finetune_api.micro_batch import MicroBatch
from finetune_api.status import Artifact, OutOfMemory, Prepared, Reason

from finetune_trainer.errors import TrainerError
from finetune_trainer.runtime import gpumemory, hardware, heartbeat, silence
from finetune_trainer.runtime.hostmemory import HostMemory, describe
from finetune_trainer.runtime.silence import Silence
from finetune_trainer.workspace.files import write_json
from finetune_trainer.workspace.storage import NO_SPACE, NOT_WRITABLE

KILLED = 137
ONE_ROW = MicroBatch(1)
ABORTED = 134
RAISE_MEMORY = (
    "Raise resources.memory (/dev/shm counts against it), or lower training.microBatchSize or training.microBatchTokens"
)
SAVE_GPU_MEMORY = (
    "Lower training.microBatchSize, training.microBatchTokens or training.cutoffLength, set training.recompute to all,"
    " or use a larger GPU"
)
MAKE_ROOM = "Give the workspace's claim more room, or remove old directories in jobs/"


@dataclass(frozen=True)
class ExitReport:
    """The end of a rank or of a run. The message may have any length."""

    code: int
    reason: str
    message: str
    artifact: Artifact | None = None
    metrics: dict[str, str] | None = None
    prepared: Prepared | None = None
    out_of_memory: OutOfMemory | None = None
    forced: bool = False
    """The launcher ended this rank, so its exit code says nothing about the cause."""
    secondhand: bool = False
    """This rank ended because another rank did. The other rank's report has the cause."""
    faulty_node: int | None = None
    """Index of the node whose hardware reported an error."""
    silences: tuple[Silence, ...] = ()
    """What the ranks of a run that hangs did last."""
    needs_new_pods: bool = False
    """A restart of the ranks in the same pods would end the same way, or is not possible."""


def success(message: str, **details: Any) -> ExitReport:
    """The report of completed work. ``details`` are further fields of `ExitReport`."""
    return ExitReport(ExitCode.DONE, REASONS[ExitCode.DONE], message, **details)


def from_error(error: BaseException, *, rank: int, workspace: Path, micro_batch: MicroBatch = ONE_ROW) -> ExitReport:
    """What an exception means by the contract. An unknown exception is an internal error."""
    if isinstance(error, TrainerError):
        return ExitReport(error.exit_code, error.reason, str(error), needs_new_pods=error.needs_new_pods)
    for cause in _causes(error):
        name, text = type(cause).__name__, str(cause)
        first = text.strip().split("\n")[0]
        if gpumemory.is_out_of_memory(cause):
            return _gpu_out_of_memory(gpumemory.details(cause, rank, micro_batch), first)
        if isinstance(cause, MemoryError) or "DefaultCPUAllocator" in text:
            message = f"The host's memory is used up on rank {rank} ({first or name}). {RAISE_MEMORY}"
            return ExitReport(KILLED, Reason.OUT_OF_MEMORY, message, needs_new_pods=True)
        if hardware.tells_of_it(text):
            return hardware_error(text, rank)
        number = cause.errno if isinstance(cause, OSError) else None
        if number in NO_SPACE or "No space left on device" in text:
            return _report(ExitCode.NO_SPACE, f"The workspace has no space left ({first}). {MAKE_ROOM}")
        if number in NOT_WRITABLE and str(getattr(cause, "filename", "")).startswith(f"{workspace}/"):
            message = f"The workspace is no longer writable ({first}). Mount it writable for uid and gid of the trainer"
            return _report(ExitCode.WORKSPACE_UNUSABLE, message)
    words = f"{type(error).__name__} on rank {rank}: {error}".rstrip(". ")
    return internal_error(f"{words}. The stack trace is in the pod's log")


def gpu_out_of_memory(words: str, rank: int, phase: heartbeat.Phase, micro_batch: MicroBatch) -> ExitReport:
    """A rank that a library in C ended for want of GPU memory; ``words`` are what it wrote last."""
    told = gpumemory.sentence(words)
    return _gpu_out_of_memory(gpumemory.details_in(phase, rank, micro_batch), told)


def hardware_error(words: str, rank: int) -> ExitReport:
    """A rank that ended for an error of its GPU, or of the link to others; ``words`` say so. A restart would meet the
    same hardware. `at_node` adds the node."""
    message = f"The hardware of rank {rank} reported an error ({hardware.sentence(words)})"
    advice = "Check the GPU of its node. The next attempt avoids this node"
    return ExitReport(ExitCode.INTERNAL_ERROR, Reason.HARDWARE_ERROR, f"{message}. {advice}", needs_new_pods=True)


def at_node(report: ExitReport, node: int) -> ExitReport:
    """The report of a rank of this node. Other nodes repeat it with this node."""
    own = report.reason == Reason.HARDWARE_ERROR and not report.secondhand and report.faulty_node is None
    return replace(report, faulty_node=node) if own else report


def internal_error(message: str) -> ExitReport:
    """The report of a failure that no other class describes."""
    return _report(ExitCode.INTERNAL_ERROR, message)


def hung(silences: Sequence[Silence]) -> ExitReport:
    """The report of a run whose ranks hang, on one node or on several."""
    return replace(_report(ExitCode.HUNG, silence.describe(silences)), silences=tuple(silences))


def from_signal(signal_number: int, rank: int, memory: HostMemory, oom_killed: bool | None) -> ExitReport:
    """A rank that crashed, or that something outside of the trainer killed. ``memory`` is the container's;
    ``oom_killed`` is what `hostmemory.was_oom_killed` found for the time in which the rank ran."""
    code = 128 + signal_number
    if code == KILLED and oom_killed is False:
        message = f"Rank {rank} was killed from outside. By the kernel's count memory was not the cause"
        return ExitReport(code, Reason.KILLED, f"{message}. See what kills processes on its node")
    if code == KILLED:
        cause = "because the pod's" if oom_killed else "most likely because the host's"
        facts = describe(memory)
        message = f"Rank {rank} was killed, {cause} memory was used up{f' ({facts})' if facts else ''}. {RAISE_MEMORY}"
        return ExitReport(code, Reason.OUT_OF_MEMORY, message, needs_new_pods=True)
    message = f"Rank {rank} ended by signal {signal_number}. See the last lines of the pod's log"
    return ExitReport(code, Reason.KILLED, message)


def combine(reports: Sequence[ExitReport]) -> ExitReport:
    """The report of several ranks: the strongest code, with the message of the first rank that has it, or of the rank
    whose hardware failed. Other codes are appended to the message. A hang names the ranks of all nodes.

    Ranks that the launcher ended do not count beside a rank that ended by itself, nor secondhand reports beside
    first-hand ones. An internal error or an abort (NCCL's way to fail) does not count beside a killed rank (137): the
    broken connection to the killed rank caused it.
    """
    own = [report for report in reports if not report.forced] or list(reports)
    own = [report for report in own if not report.secondhand] or own
    failed = [report for report in own if report.code != 0]
    if not failed:
        if len(own) < len(reports):
            return next(report for report in reports if report.forced)
        return next((report for report in reports if report.artifact is not None), reports[0])
    if any(report.code == KILLED for report in failed):
        failed = [report for report in failed if report.code not in (ExitCode.INTERNAL_ERROR, ABORTED)]
    code = strongest([report.code for report in failed])
    strongest_first = [report for report in failed if report.code == code]
    faulty = (report for report in strongest_first if report.reason == Reason.HARDWARE_ERROR)
    decisive = next(faulty, strongest_first[0])  # the others failed because of it
    if silences := [silence for report in strongest_first for silence in report.silences]:
        decisive = hung(silences)
    further = sorted({f"{report.code} ({report.reason})" for report in own if report.code not in (code, 0)})
    suffix = f". Other ranks ended with {', '.join(further)}" if further else ""
    return replace(decisive, message=(decisive.message.rstrip(". ") if suffix else decisive.message) + suffix)


def write(file: Path, report: ExitReport) -> None:
    """Write a report atomically, for the launcher or for people."""
    write_json(file, to_json(report))


def read(file: Path) -> ExitReport | None:
    """The report in ``file``; None when the rank ended before it wrote one."""
    try:
        return from_json(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None


SECTIONS: dict[str, type[Artifact | Prepared | OutOfMemory]] = {
    "artifact": Artifact,
    "prepared": Prepared,
    "out_of_memory": OutOfMemory,
}


def to_json(report: ExitReport) -> dict[str, Any]:
    """For files, and for other ranks."""
    content = asdict(report)
    content["message"] = as_utf8(report.message)
    for name in SECTIONS:
        section = getattr(report, name)
        content[name] = section.to_dict() if section else None
    return content


def from_json(content: dict[str, Any]) -> ExitReport:
    """The inverse of `to_json`."""
    sections = {name: kind.model_validate(content[name]) for name, kind in SECTIONS.items() if content[name]}
    silences = tuple(Silence(**told) for told in content["silences"])
    return ExitReport(**{**content, **sections, "silences": silences})


def as_utf8(text: str) -> str:
    """Replace what UTF-8 cannot encode: names of files may have lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _gpu_out_of_memory(memory: OutOfMemory, told: str) -> ExitReport:
    message = f"GPU memory is used up on rank {memory.rank} {gpumemory.describe(memory)} ({told}). {SAVE_GPU_MEMORY}"
    return replace(_report(ExitCode.GPU_OUT_OF_MEMORY, message), out_of_memory=memory)


def _report(code: ExitCode, message: str) -> ExitReport:
    return ExitReport(code, REASONS[code], message)


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and the chain of its causes, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain
