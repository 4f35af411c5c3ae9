"""Entry of each rank: ``python -m finetune_trainer.worker FOLDER RANK``, started by ``launch``.

Does what the handover says: train (makes the `Run` and finds the workflow of the job's stage), prepare or publish. Says
in a file and by its exit code how that ended. SIGTERM only sets a flag: the work looks at it between steps, and saves.
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

from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import Progress

from finetune_trainer import director, heartbeat, prepared, rendezvous, results, workspace
from finetune_trainer.errors import Preempted, Superseded, TrainerError, WorkspaceUnusable
from finetune_trainer.handover import Handover, end_file, read_deadline
from finetune_trainer.peers import Peers
from finetune_trainer.reporting import quiet
from finetune_trainer.reporting.api import within
from finetune_trainer.reporting.status import Reporter
from finetune_trainer.results import End
from finetune_trainer.run import Run, nothing
from finetune_trainer.stopping import Stop

SAVE_MARGIN = 3.0
"""Seconds between the end of a save, as planned, and being ended by force."""
FAREWELL = 6.0
"""Seconds that telling the other ranks may take."""
PR_SET_PDEATHSIG = 1

P = ParamSpec("P")
Meet = Callable[[Handover, int, Peers, Callable[[], None]], str]


def main(
    folder: Path,
    rank: int,
    stop: Stop,
    find_workflow: Callable[[str], director.Workflow] = director.find_workflow,
    tasks: "Mapping[str, Task] | None" = None,
    meet: Meet = rendezvous.join,
) -> NoReturn:
    """Run one rank to its end. Doesn't return: what libraries do at exit must not change or delay the outcome."""
    _die_with_launcher()
    # The launcher asks for it when this rank stands still. Works in a collective and in a system call that hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Rank 0 speaks for all; the others only when something is wrong.
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, format=f"%(asctime)s rank {rank} %(message)s")
    quiet.log_lines()
    heartbeat.open_file(folder, rank)
    handover = Handover.read(folder)

    def leave(end: End) -> NoReturn:
        _leave(folder, rank, peers, end)

    peers = Peers(rank, handover.world_size, handover.ranks_on_node, handover.saving_seconds, leave)
    reporter = _reporter(handover, rank, leave) if rank == 0 else None
    try:
        _check_stop(stop)
        task = (TASKS if tasks is None else tasks).get(handover.task)
        if task is None:
            end = _train(handover, folder, rank, stop, reporter, peers, find_workflow, meet)
        else:
            end = task(handover, _alive(reporter.progress if reporter else nothing), _alive(lambda: _check_stop(stop)))
    except BaseException as error:
        end = peers.why_lost(error) or results.of_error(
            error, rank=rank, workspace=handover.workspace, micro_batch_size=handover.micro_batch_size
        )
        if end.code == ExitCode.INTERNAL_ERROR and not isinstance(error, TrainerError):
            traceback.print_exc()
    if reporter is not None:
        reporter.close()
    leave(end)


def _train(
    handover: Handover,
    folder: Path,
    rank: int,
    stop: Stop,
    reporter: Reporter | None,
    peers: Peers,
    find_workflow: Callable[[str], director.Workflow],
    meet: Meet,
) -> End:
    ready = prepared.read(handover.folders, handover.job)
    if ready is None:
        raise WorkspaceUnusable(
            f"What was prepared for jobs/{handover.job.name} is gone from the workspace: let another attempt prepare it"
            " again, and see who removes cache/ while jobs run"
        )
    # All ranks take rank 0's: the folders follow from it.
    handover = replace(handover, run_id=meet(handover, rank, peers, lambda: _check_stop(stop)))
    workflow = find_workflow(handover.job.stage)
    _check_stop(stop)
    run = Run(
        job=handover.job,
        attempt=handover.facts,
        run_id=handover.run_id,
        folders=handover.folders,
        rank=rank,
        local_rank=rank % handover.ranks_on_node,
        world_size=handover.world_size,
        micro_batch_size=handover.micro_batch_size,
        prepared=ready,
        stop_requested=lambda: stop.requested,
        seconds_left=partial(_seconds_left, folder, stop, handover.facts.grace_period_seconds),
        report_progress=reporter.progress if reporter else nothing,
        report_checkpoint=reporter.checkpoint if reporter else nothing,
    )
    outcome = workflow(run)
    done = ExitCode.DONE
    return End(done, REASONS[done], outcome.message, outcome.artifact, outcome.metrics)


def _prepare(handover: Handover, report: Callable[[Progress], None], check_stop: Callable[[], None]) -> End:
    """Fetch, check and tokenize; nothing is trained."""
    from finetune_trainer import prepare  # needs seconds to import

    facts, folders = handover.facts, handover.folders
    ready = prepare.run(handover.job, folders, handover.run_id, handover.places, report, check_stop, facts.attempt)
    message = prepare.describe(ready.summary, handover.job.stage)
    return End(ExitCode.DONE, REASONS[ExitCode.DONE], message, prepared=ready.summary)


def _publish(handover: Handover, _report: Callable[[Progress], None], check_stop: Callable[[], None]) -> End:
    """Copy the artifact of RESULT.json to where the job wants it."""
    from finetune_trainer.publish import publish

    result = workspace.earlier_result(handover.folders, handover.job)
    uri = handover.job.output.uri
    assert result is not None
    assert result.artifact is not None
    assert uri is not None
    published = publish(uri, handover.folders.artifact, result.artifact.digest, check_stop)
    artifact = result.artifact.model_copy(update={"published": published})
    return End(ExitCode.DONE, REASONS[ExitCode.DONE], f"Published as {published}", artifact, result.metrics)


Task = Callable[[Handover, Callable[[Progress], None], Callable[[], None]], End]
TASKS: Mapping[str, Task] = {"prepare": _prepare, "publish": _publish}
"""What ranks do besides training."""


def _alive(call: Callable[P, None]) -> Callable[P, None]:
    """The same, as a sign of life: preparing has no other."""

    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        heartbeat.beat("load")
        call(*args, **kwargs)

    return called


def _check_stop(stop: Stop) -> None:
    if stop.requested:
        raise Preempted("Told to stop; there was nothing to save")


def _seconds_left(folder: Path, stop: Stop, grace: float) -> float:
    if not stop.requested:
        return float("inf")
    deadline = read_deadline(folder) or stop.at + grace / 2
    return deadline - SAVE_MARGIN - time.monotonic()


def _reporter(handover: Handover, rank: int, leave: Callable[[End], NoReturn]) -> Reporter:
    def superseded(why: str) -> None:
        # From the reporter's thread, while the main thread may sit in a collective: leave at once, whatever it does.
        error = Superseded(f"Nobody wants this run's result any more: {why}")
        leave(results.of_error(error, rank=rank, workspace=handover.workspace))

    interval = handover.job.runtime.progress_interval_seconds
    return Reporter(handover.api, handover.facts, handover.folders.reports, interval, superseded)


def _leave(folder: Path, rank: int, peers: Peers, end: End) -> NoReturn:
    try:
        results.write_end(end_file(folder, rank), end)
    except OSError:
        traceback.print_exc()
    within(FAREWELL, lambda: peers.farewell(end), None)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code)


def _die_with_launcher() -> None:
    """A rank without its launcher would train on, unseen, beside the next attempt."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Stop().listen(signal.SIGTERM))
