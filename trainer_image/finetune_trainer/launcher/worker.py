"""A rank: ``python -m finetune_trainer.launcher.worker DIRECTORY RANK``, a process that the launcher starts.

Performs the task of the handover: train (build the `Run` and call the workflow of the job's stage), prepare or publish.
Ends with the exit code of the contract and an exit report in a file. SIGTERM only sets a flag: training reads it
between steps, and saves.
"""

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn, ParamSpec

from finetune_api.exit_codes import ExitCode
from finetune_api.status import Progress, finished

from finetune_trainer import director
from finetune_trainer.errors import Preempted, Superseded, TrainerError, WorkspaceUnusable
from finetune_trainer.launcher import rendezvous
from finetune_trainer.launcher.handover import Handover, exit_file, read_deadline
from finetune_trainer.launcher.peers import Peers
from finetune_trainer.reporting import library_logs, live_metrics
from finetune_trainer.reporting.api import call_with_timeout
from finetune_trainer.reporting.status import Reporter, loading, now
from finetune_trainer.run import Run, ignore
from finetune_trainer.runtime import exit_report, heartbeat
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.workspace import fencing, prepared

SAVE_MARGIN = 3.0
"""Seconds between the planned end of a save and SIGKILL."""
ANNOUNCE_SECONDS = 6.0
"""Seconds that it may take to report the end to the other ranks."""
PR_SET_PDEATHSIG = 1

P = ParamSpec("P")
Join = Callable[[Handover, int, Peers, Callable[[], None]], str]
Task = Callable[[Handover, Callable[[Progress], None], Callable[[], None]], ExitReport]


def main(
    folder: Path,
    rank: int,
    stop: Stop,
    find_workflow: Callable[[str], director.Workflow] = director.find_workflow,
    tasks: Mapping[str, Task] | None = None,
    join: Join = rendezvous.join,
) -> NoReturn:
    """Run one rank to its end. Does not return: no exit handler of a library may change or delay the exit."""
    _die_with_launcher()
    # The launcher sends SIGUSR1 to a rank that hangs. The handler also runs in a collective and in a blocked system
    # call.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Rank 0 logs for all ranks. The others log only warnings.
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, format=f"%(asctime)s rank {rank} %(message)s")
    library_logs.filter_log_lines()
    handover = Handover.read(folder)
    heartbeat.open_file(folder, rank, handover.account)

    def leave(report: ExitReport) -> NoReturn:
        _leave(folder, rank, peers, report)

    peers = Peers(rank, handover.world_size, handover.ranks_on_node, handover.stop_seconds, leave)
    reporter = _reporter(handover, rank, leave) if rank == 0 else None
    if reporter is not None and handover.task == "train":
        reporter.progress(loading(handover.attempt.attempt))
    try:
        _check_stop(stop)
        task = (TASKS if tasks is None else tasks).get(handover.task)
        if task is None:
            report = _train(handover, folder, rank, stop, reporter, peers, find_workflow, join)
        else:
            progress = reporter.progress if reporter else ignore
            report = task(handover, _with_heartbeat(progress), _with_heartbeat(lambda: _check_stop(stop)))
    except BaseException as error:
        report = peers.explain(error) or exit_report.from_error(
            error, rank=rank, workspace=handover.workspace, micro_batch=handover.micro_batch
        )
        report = exit_report.at_node(report, handover.node)
        if report.code == ExitCode.INTERNAL_ERROR and not isinstance(error, TrainerError):
            traceback.print_exc()
    if report.code in (ExitCode.DONE, ExitCode.DISRUPTED):
        heartbeat.refresh()  # what this rank did last counts; what a failed rank did last is lost
    if reporter is not None:
        reporter.close()
    leave(report)


def _train(
    handover: Handover,
    folder: Path,
    rank: int,
    stop: Stop,
    reporter: Reporter | None,
    peers: Peers,
    find_workflow: Callable[[str], director.Workflow],
    join: Join,
) -> ExitReport:
    ready = prepared.read(handover.folders, handover.job)
    if ready is None:
        raise WorkspaceUnusable(
            f"The prepared model or data of jobs/{handover.job.name} was removed from the workspace. This attempt"
            " cannot train without it. Start the job again, which prepares it again, and keep cache/ while jobs run"
        )
    # All ranks take rank 0's run id: the directories follow from it.
    handover = replace(handover, run_id=join(handover, rank, peers, lambda: _check_stop(stop)))
    heartbeat.beat("load")  # joined: it waits no more
    workflow = find_workflow(handover.job.stage)
    _check_stop(stop)
    run = Run(
        job=handover.job,
        attempt=handover.attempt,
        run_id=handover.run_id,
        folders=handover.folders,
        rank=rank,
        local_rank=rank % handover.ranks_on_node,
        world_size=handover.world_size,
        micro_batch=handover.micro_batch,
        prepared=ready,
        stop_requested=lambda: stop.requested,
        keep_requested=lambda: reporter is not None and reporter.keep_requested,
        ranks_on_node=handover.ranks_on_node,
        keeps=handover.keeps,
        seconds_left=partial(_seconds_left, folder, stop, handover.attempt.grace_period_seconds),
        report_progress=reporter.progress if reporter else ignore,
        report_checkpoint=reporter.checkpoint if reporter else ignore,
    )
    result = workflow(run)
    report = exit_report.success(result.message, artifact=result.artifact, metrics=result.metrics)
    return replace(report, reason=result.reason)


def _prepare(handover: Handover, report: Callable[[Progress], None], check_stop: Callable[[], None]) -> ExitReport:
    """Fetch, validate and tokenize the data of the job."""
    from finetune_trainer.prepare import pipeline  # needs seconds to import

    attempt, folders = handover.attempt, handover.folders
    ready = pipeline.prepare(
        handover.job, folders, handover.run_id, handover.places, report, check_stop, attempt.attempt
    )
    return exit_report.success(pipeline.describe(ready.summary, handover.job.stage), prepared=ready.summary)


def _publish(handover: Handover, report: Callable[[Progress], None], check_stop: Callable[[], None]) -> ExitReport:
    """Copy the artifact of RESULT.json to output.uri."""
    from finetune_trainer.artifact.publish import publish

    result = fencing.earlier_result(handover.folders, handover.job)
    uri = handover.job.output.uri
    assert result is not None
    assert result.artifact is not None
    assert uri is not None
    if progress := finished(handover.attempt.attempt, result.metrics, now()):
        report(progress)
    published = publish(uri, handover.folders.artifact, result.artifact.digest, check_stop)
    artifact = result.artifact.model_copy(update={"published": published})
    return exit_report.success(f"Published as {published}", artifact=artifact, metrics=result.metrics)


TASKS: Mapping[str, Task] = {"prepare": _prepare, "publish": _publish}
"""The tasks besides training."""


def _with_heartbeat(call: Callable[P, None]) -> Callable[P, None]:
    """The same function, with a heartbeat before each call: preparation sends no others."""

    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        heartbeat.beat("load")
        call(*args, **kwargs)

    return called


def _check_stop(stop: Stop) -> None:
    if stop.requested:
        raise Preempted("Stopped by SIGTERM. There was nothing to save")


def _seconds_left(folder: Path, stop: Stop, grace: float) -> float:
    if not stop.requested:
        return float("inf")
    deadline = read_deadline(folder) or stop.at + grace / 2
    return deadline - SAVE_MARGIN - time.monotonic()


def _reporter(handover: Handover, rank: int, leave: Callable[[ExitReport], NoReturn]) -> Reporter:
    def on_superseded(detail: str) -> None:
        # Called from the reporter's thread. The main thread may be blocked in a collective, so leave without it.
        error = Superseded(f"Nobody wants the result of this run any more ({detail}). It ends without a save")
        leave(exit_report.from_error(error, rank=rank, workspace=handover.workspace))

    interval = handover.job.runtime.progress_interval_seconds
    attempt = handover.attempt
    reporter = Reporter(handover.api, attempt, handover.folders.reports, interval, on_superseded, handover.restart)
    if port := os.environ.get(live_metrics.PORT):
        live_metrics.serve(int(port), attempt, handover.job.stage, reporter.newest_progress)
    return reporter


def _leave(folder: Path, rank: int, peers: Peers, report: ExitReport) -> NoReturn:
    try:
        exit_report.write(exit_file(folder, rank), report)
    except OSError:
        traceback.print_exc()
    call_with_timeout(ANNOUNCE_SECONDS, lambda: peers.announce(report), None)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(report.code)


def _die_with_launcher() -> None:
    """Without this, a rank that lost its launcher would continue to train beside the next attempt."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Stop().listen(signal.SIGTERM))
