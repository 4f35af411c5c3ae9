"""PID 1 of the trainer's container: the flow of ``train`` and ``prepare``, from a job's file to the contract's exit
code.

every node      read the job (`node_run`) -> end if the job is done, or if its directory is another job's
    prepare         prepare -> report the end
    train, node 0   take the fence -> prepare if needed -> train -> save the result -> publish -> report the end
    train, others   wait until node 0 has prepared -> train -> report the end

Where training crashes, hangs or runs out of GPU memory, `restarts` may start the ranks again before the end is
reported.

Each of prepare, train and publish runs in processes of its own (`supervise`, `worker`). What they import and hold in
memory is gone before the next one starts, and they can be killed at any time. PID 1 never imports torch, so a job that
is done or invalid ends within a second.

``prepare`` takes no fence: of the files that a training beside it reads, it writes only PREPARED.json, atomically.

Why not torchrun or its agent: docs/decisions/0020-launcher.md.
"""

import logging
import socket
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from finetune_api.contract import WORKSPACE, AttemptFacts, keeps_on_cpu
from finetune_api.exit_codes import ExitCode
from finetune_api.output import lacks_copy
from finetune_api.status import Reason, Result, Use

from finetune_trainer.errors import Preempted, RendezvousFailed, Superseded, TrainerError
from finetune_trainer.fetch import reference_digests
from finetune_trainer.launcher import devices, fence_watch, mounts, node_run
from finetune_trainer.launcher.exit_reporter import ExitReporter
from finetune_trainer.launcher.fence_watch import HeldFence
from finetune_trainer.launcher.handover import Handover
from finetune_trainer.launcher.ledger import Ledger
from finetune_trainer.launcher.node_run import NodeRun
from finetune_trainer.launcher.options import LaunchOptions
from finetune_trainer.launcher.restarts import Restarts
from finetune_trainer.launcher.supervise import check_stop, run_ranks
from finetune_trainer.reporting import status
from finetune_trainer.runtime import exit_report, results
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.workspace import fencing, prepared
from finetune_trainer.workspace.fencing import Fence
from finetune_trainer.workspace.storage import storage_errors

PORT = 29500
"""Port of rank 0 on the pod of node 0."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """What every step of the flow needs."""

    options: LaunchOptions
    stop: Stop
    reporter: ExitReporter
    run: NodeRun
    config_maps: Path
    """Directory with <name>/<key>."""

    def train(
        self, handover: Handover, lost_fence: Event, environment: dict[str, str], fence: HeldFence | None
    ) -> ExitReport:
        """Run the ranks that train, again after an end that a restart may cure. Node 0 has the ``fence``."""

        def begin(restarted: Handover) -> None:
            assert restarted.restart is not None
            self.reporter.restart = restarted.restart
            if fence is None:
                return
            account = self.ledger.spend("stalled")
            status.report_restart(
                restarted.api, restarted.attempt, restarted.folders.reports, restarted.restart, account
            )
            with storage_errors(restarted.workspace):
                fence.renew(restarted.folders, restarted.run_id)

        def start(ranks: Handover) -> ExitReport:
            # Between two runs of the ranks nothing is done.
            use: Use = "stalled" if ranks.restart else "load"
            return self.start(ranks, lost_fence, environment, use)

        restarts = Restarts(start, self.stop, lost_fence, begin, self.options.restart_pauses)
        return restarts.run(handover, self.run.nodes)

    @property
    def ledger(self) -> Ledger:
        return self.reporter.ledger

    def start(
        self,
        handover: Handover,
        lost_fence: Event,
        environment: dict[str, str] | None = None,
        use: Use = "idle",
    ) -> ExitReport:
        """Run the ranks of one task to their end. ``use``: what the time before them counts for, and if they do not
        train, theirs as well."""
        limits, worker, trains = self.options.hang_limits, self.options.worker, handover.task == "train"
        handover, report = replace(handover, account=self.ledger.spend(use)), None

        def ended(folder: Path) -> None:
            if trains:
                self.ledger.take(folder, handover.ranks[0])

        try:
            report = run_ranks(worker, handover, self.stop, lost_fence, limits, environment or {}, ended)
            return report
        finally:
            if trains:
                self.ledger.close_ranks(report)
            else:
                self.ledger.spend(use)


def main(options: LaunchOptions, stop: Stop) -> int:
    """Run the job. Returns the contract's exit code, never raises."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s launch %(message)s")
    reporter = ExitReporter(options.command, options.termination_message)
    try:
        report = _run(options, stop, reporter)
    except Exception as error:
        report = exit_report.from_error(error, rank=0, workspace=options.workspace or Path(WORKSPACE))
        if report.code == ExitCode.INTERNAL_ERROR and not isinstance(error, TrainerError):
            traceback.print_exc()
    reporter.send(report)
    return report.code


def _run(options: LaunchOptions, stop: Stop, reporter: ExitReporter) -> ExitReport:
    """The flow of every launcher. Raises the errors of `finetune_trainer.errors`."""
    run = node_run.read(options, reporter)
    with storage_errors(run.folders.workspace):
        earlier = fencing.earlier_result(run.folders, run.job)
        if earlier is None:
            fencing.check_vacant(run.folders, run.job)
    if earlier is not None:
        log.info("This job is done already; its artifact is complete")
        if not _is_unpublished(run, earlier) or options.command == "prepare" or run.node > 0:
            return _done_already(run, earlier)
        log.info("The artifact is not published yet")
    with mounts.config_maps(options.config_maps) as config_maps:
        launch = Launch(options, stop, reporter, run, config_maps)
        if options.command == "prepare":
            return _prepare(launch)
        if run.node > 0:
            return _train_on_other_node(launch)
        return _train_on_node_0(launch, earlier)


def _prepare(launch: Launch) -> ExitReport:
    """The whole command ``prepare``."""
    with storage_errors(launch.run.folders.workspace):
        launch.run.folders.reports.mkdir(parents=True, exist_ok=True)
    launch.reporter.may_write_reports = True
    return launch.start(_single_rank(launch), Event())


def _train_on_node_0(launch: Launch, earlier: Result | None) -> ExitReport:
    """Take the fence, prepare if needed, train, save the result, publish."""
    run = launch.run
    training, environment = _plan_training(launch)
    with storage_errors(run.folders.workspace):
        fence = fencing.claim(run.folders, run.job, run.attempt, run.run_id)
        launch.reporter.may_write_reports = True
        fencing.clear_leftovers(run.folders, fence)
    held = HeldFence(run.folders, fence)
    report = _train_and_publish(launch, training, environment, held, earlier)
    if report.code != ExitCode.DONE:
        # A later run clears away what these ranks are writing, so they fail before they know the reason.
        held.check()
    return report


def _train_and_publish(
    launch: Launch, training: Handover, environment: dict[str, str], held: HeldFence, earlier: Result | None
) -> ExitReport:
    """What node 0 does while it holds the fence. With a result of an ``earlier`` run, it only publishes."""
    run = launch.run
    if earlier is not None:
        report = _done_already(run, earlier)
    else:
        failure = _prepare_if_needed(launch, held.lost)
        if failure is not None:
            return failure
        report = launch.train(training, held.lost, environment, held)
        if report.code != ExitCode.DONE:
            return report
        _save_result(run, held.fence, report)
    if run.job.output.uri is not None:
        report = launch.start(replace(_single_rank(launch), task="publish"), held.lost, use="save")
        if report.code == ExitCode.DONE:
            _save_result(run, held.fence, report)
    return report


def _train_on_other_node(launch: Launch) -> ExitReport:
    """Wait until node 0 has prepared the job, then train with it."""
    run = launch.run
    training, environment = _plan_training(launch)
    lost_fence = fence_watch.watch_attempt(run.folders, run.attempt)
    _wait_until_prepared(training, lost_fence, launch.stop)
    launch.ledger.spend("stalled")
    report = launch.train(training, lost_fence, environment, None)
    # When node 0 is superseded, its connection breaks before this node has read the new fence.
    if report.code == ExitCode.INTERNAL_ERROR and lost_fence.wait(2 * fence_watch.INTERVAL):
        raise Superseded(f"A later run has taken over {run.folders.job}. Node 0 ended for it, and so does this node")
    return report


def _prepare_if_needed(launch: Launch, lost_fence: Event) -> ExitReport | None:
    """Prepare the job unless an earlier pod did. Returns a report only when preparation failed."""
    run, single = launch.run, _single_rank(launch)
    ready = prepared.read(run.folders, run.job)
    if ready is not None:
        reference_digests.recheck_mounted(
            run.job, ready.digests, single.places, lambda: check_stop(launch.stop, "train")
        )
        return None
    log.info("Nothing is prepared for this job yet. It is prepared now, on the CPU")
    report = launch.start(single, lost_fence, use="load")
    return None if report.code == ExitCode.DONE else report


def _save_result(run: NodeRun, fence: Fence, report: ExitReport) -> None:
    with storage_errors(run.folders.workspace):
        fencing.save_result(run.folders, fence, results.to_result(report, run.attempt.attempt))


def _is_unpublished(run: NodeRun, result: Result) -> bool:
    """Whether a complete artifact is still to be copied to output.uri."""
    return result.artifact is not None and lacks_copy(run.job.output, result.artifact.published)


def _done_already(run: NodeRun, earlier: Result) -> ExitReport:
    name = run.job.name
    message = (
        f"Complete already: jobs/{name}/{fencing.RESULT} is the result of an earlier run with the same spec. To train"
        f" again (for instance on changed data under the same path) remove jobs/{name} from the workspace or use"
        " another name"
    )
    if earlier.reason == Reason.STOPPED_BY_USER:
        message = f"{earlier.message}. {message}"
    report = exit_report.success(message, artifact=earlier.artifact, metrics=earlier.metrics, prepared=earlier.prepared)
    return replace(report, reason=earlier.reason)


def _single_rank(launch: Launch) -> Handover:
    """The handover for work of a single process; its task is to prepare."""
    run = launch.run
    return Handover(
        job=run.job,
        attempt=run.attempt,
        run_id=run.run_id,
        workspace=run.folders.workspace,
        volumes=run.folders.volumes,
        config_maps=launch.config_maps,
        ranks_on_node=1,
        world_size=1,
        api=launch.reporter.api,
        task="prepare",
    )


def _plan_training(launch: Launch) -> tuple[Handover, dict[str, str]]:
    """The handover of the ranks that train, and what is added to their environment. Raises NoDevice, InvalidSpec."""
    run, options = launch.run, launch.options
    on_cpu = options.keep and keeps_on_cpu(run.job)
    visible = 0 if on_cpu else devices.visible_gpus()
    ranks = 1 if on_cpu else devices.ranks_on_node(run.job, visible, in_cluster=run.in_cluster)
    host, port = options.rank_0_address or _rank_0_address(run.attempt, run.nodes)
    training = replace(
        _single_rank(launch),
        ranks_on_node=ranks,
        world_size=run.nodes * ranks,
        task="train",
        node=run.node,
        host=host,
        port=port,
        rendezvous_seconds=options.rendezvous_seconds,
        keeps=options.keep,
    )
    devices.check_batch(run.job, training.micro_batch, training.world_size)
    if on_cpu:
        return training, {"CUDA_VISIBLE_DEVICES": ""}  # some container runtimes show all GPUs of the node
    return training, devices.environment(run.job, visible, in_cluster=run.in_cluster)


def _rank_0_address(attempt: AttemptFacts, nodes: int) -> tuple[str, int]:
    """Host and port of rank 0: node 0's pod by its name behind the headless Service, or a free port on this machine."""
    if nodes > 1:
        return f"{attempt.job_name}-0.{attempt.job_name}", PORT
    with socket.create_server(("127.0.0.1", 0)) as free:
        return "127.0.0.1", int(free.getsockname()[1])


def _wait_until_prepared(handover: Handover, lost_fence: Event, stop: Stop) -> None:
    """Wait for node 0 to prepare the job. Preparation may take long, so only the time since node 0's last report
    counts.

    Raises RendezvousFailed, Preempted, Superseded.
    """
    if prepared.read(handover.folders, handover.job) is not None:
        return
    log.info("Nothing is prepared for this job yet. Waiting for node 0 to prepare it")
    file = handover.folders.reports / status.FILE
    last_report, since = 0.0, time.monotonic()
    while prepared.read(handover.folders, handover.job) is None:
        modified = file.stat().st_mtime if file.exists() else 0.0
        if modified != last_report:
            last_report, since = modified, time.monotonic()
        if stop.requested:
            raise Preempted("Stopped by SIGTERM while node 0 prepared the job. There was nothing to save")
        if time.monotonic() - since > handover.rendezvous_seconds:
            raise RendezvousFailed(
                f"Nothing is prepared for this job, and node 0 has reported no progress for"
                f" {handover.rendezvous_seconds:.0f} s. See the log of its pod"
            )
        if lost_fence.wait(1.0):
            raise Superseded(f"A later run has taken over {handover.folders.job}. This run ends")
