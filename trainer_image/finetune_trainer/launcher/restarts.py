"""Runs the ranks that train and, after an end that a restart may cure, runs them again in the same pods.

Called by `launch` on every node. `agreement` decides for all nodes, by `restart_policy` on node 0. Between two runs:

1. All ranks of this node have ended; what they left behind is killed (`supervise`).
2. The launchers agree on the number of the restart, the micro-batch, the pause and the port of rank 0.
3. Node 0 reports the restart, and takes the fence under the run id of the restart: the new ranks have directories of
   their own, and what is left of the ranks before can delete or replace nothing.
4. After the pause, the new ranks resume from the newest verified checkpoint.

SIGTERM, or a later run that takes over, ends the run at any moment between. The clock of the grace period does not run
before SIGTERM, so a pause takes nothing of it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event

from finetune_api.micro_batch import first_micro_batch
from finetune_api.status import Restart

from finetune_trainer.errors import Preempted, Superseded
from finetune_trainer.launcher.agreement import Agreement, Decision, Follower, Leader, newest_step
from finetune_trainer.launcher.handover import Handover
from finetune_trainer.launcher.restart_policy import RestartPolicy
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.workspace import prepared

RENDEZVOUS_SECONDS = 300.0
"""Seconds for which ranks wait for each other after a restart: their pods run."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restarts:
    """Of one run on one node."""

    start: Callable[[Handover], ExitReport]
    """Run the ranks to their end."""
    stop: Stop
    lost_fence: Event
    begin: Callable[[Handover], None]
    """What is done before ranks start again, besides starting them."""
    pauses: Sequence[float]

    def run(self, handover: Handover, nodes: int) -> ExitReport:
        """The end of the last ranks. Raises what ``start`` and ``begin`` raise, Preempted and Superseded."""
        agreement = self._agreement(handover, nodes)
        if agreement is None:
            return self.start(handover)
        first = handover
        try:
            while True:
                report = self.start(handover)
                decision = None if self.stop.requested else agreement.settle(report, self._wait)
                if decision is None:
                    return report
                handover = restarted(first, decision)
                _log(decision.restart, decision.pause)
                self.begin(handover)
                self._wait(decision.pause)
        finally:
            agreement.close()

    def _agreement(self, handover: Handover, nodes: int) -> Agreement | None:
        """None: nothing is restarted, because nobody allowed it or because nodes cannot agree."""
        facts, training = handover.attempt, handover.job.training
        if facts.restarts is None:
            return None
        if handover.node > 0:
            return Follower(facts, handover.node, handover.host, handover.port)
        checkpoints, ready = handover.folders.checkpoints, prepared.read(handover.folders, handover.job)
        policy = RestartPolicy(
            facts.restarts,
            own=first_micro_batch(training) or handover.micro_batch,
            micro_batch=handover.micro_batch,
            step=newest_step(checkpoints),
            longest=(ready.summary.longest_row if ready else None) or 1,
            mode=training.recomputed,
            recompute=facts.recompute,
            pauses=self.pauses,
        )
        try:
            return Leader(policy, facts, nodes, handover.port, checkpoints)
        except OSError as error:
            log.warning("Nothing is restarted in these pods, because node 0 cannot listen to the others: %s", error)
            return None

    def _wait(self, seconds: float) -> None:
        """Raises Preempted and Superseded."""
        deadline = time.monotonic() + seconds
        while True:
            if self.stop.requested:
                raise Preempted(
                    "Stopped by SIGTERM between the end of the ranks and their restart. There was nothing to save; the"
                    " next attempt resumes from the newest checkpoint"
                )
            left = deadline - time.monotonic()
            if self.lost_fence.wait(min(max(left, 0.0), 0.1)):
                raise Superseded("A later run has taken over the job's directory. This run ends without a restart")
            if left <= 0:
                return


def restarted(first: Handover, decision: Decision) -> Handover:
    """The handover of the ranks that start again. ``first`` is that of the first ranks of these pods."""
    restart = decision.restart
    fields = ("micro_batch_size", "micro_batch_tokens", "recompute")
    attempt = first.attempt.model_copy(update={name: getattr(restart, name) for name in fields})
    return replace(
        first,
        attempt=attempt,
        run_id=f"{first.run_id}-r{restart.number}",
        port=decision.port,
        rendezvous_seconds=min(first.rendezvous_seconds, RENDEZVOUS_SECONDS),
        restart=restart,
    )


def _log(restart: Restart, pause: float) -> None:
    smaller = first_micro_batch(restart)
    size = f" with a micro-batch of {smaller}" if smaller else ""
    size += " with all layers recomputed" if restart.recompute else ""
    log.warning(
        "Restart %d in these pods after %s (%d)%s, in %.0f s: %s",
        restart.number,
        restart.reason,
        restart.exit_code,
        size,
        pause,
        restart.message,
    )
