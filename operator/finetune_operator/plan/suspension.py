"""Suspension by the user: spec.suspend ends the attempt at hand, and no other begins until it is taken back.

    an attempt is under way -> it is Ending, its child job is deleted -> judged -> Suspended -> resumed

An attempt that is ended for it is not counted, unless it had succeeded or failed for good by itself. The condition
Suspended remembers, from the first write until the next attempt begins, that the terms of the job have to be renewed:
resources and prepare may change meanwhile (`plan.renewal`).
"""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.status import Attempt, Condition, ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.names import Kind
from finetune_operator.plan import ending
from finetune_operator.plan.attempts import current, current_kind, newest_checkpoint, set_attempt, was_prepared
from finetune_operator.plan.completion import ENDED, terminal
from finetune_operator.plan.conditions import sentence, set_condition, set_phase
from finetune_operator.plan.decision import Delete, Need, Plan, missing
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Read, Snapshot

ENDING = {
    Reason.SUSPENDED_BY_USER: "The job is being suspended (spec.suspend): its pods are asked to save and end.",
    Reason.STOPPED_BY_USER: "The job is being stopped (spec.stop): its pods are asked to save and end.",
}
"""One text until the pods are gone, so that not every step writes the status."""
ENDED_FOR = {
    Reason.SUSPENDED_BY_USER: "The job was suspended (spec.suspend).",
    Reason.STOPPED_BY_USER: "The job was stopped (spec.stop).",
}
RESUMED = "The job was resumed."


def _condition(status: FineTuneJobStatus) -> Condition | None:
    return next((c for c in status.conditions or [] if c.type == ConditionType.SUSPENDED), None)


def is_resuming(status: FineTuneJobStatus) -> bool:
    """Whether the job was suspended, or an attempt was ended for it, and no attempt has begun since."""
    condition = _condition(status)
    return condition is not None and (condition.status == "True" or condition.reason == Reason.ENDING)


def is_refused_again(status: FineTuneJobStatus, kind: Kind, reason: Reason) -> bool:
    """Whether the trainer refuses the resources with which a job was resumed: it has prepared the same job before."""
    condition = _condition(status)
    resumed = condition is not None and condition.reason == Reason.RESUMED
    return resumed and kind == "prepare" and reason is Reason.INVALID_SPEC and was_prepared(status)


def under_way(status: FineTuneJobStatus, snapshot: Snapshot) -> tuple[Kind, Attempt] | None:
    """The attempt that has not ended, and its kind."""
    kind = current_kind(status, snapshot.child_jobs)
    attempt = current(status, kind)
    return None if attempt is None or attempt.state == "Ended" else (kind, attempt)


@dataclass(frozen=True)
class Suspension:
    """What the plan for a job that is to be suspended, or to be resumed, is made from."""

    view: JobView
    snapshot: Snapshot
    now: datetime

    @property
    def is_requested(self) -> bool:
        """Whether the user wants the job to be suspended. A job that is to be stopped comes to its end instead."""
        return self.view.spec.get("suspend") is True and not self.stops

    @property
    def stops(self) -> bool:
        """Whether the user wants training to end now, with the artifact of what was trained."""
        return self.view.spec.get("stop") == "keep"

    def _set(
        self, status: FineTuneJobStatus, kind: ConditionType, value: bool | None, reason: Reason, message: str
    ) -> FineTuneJobStatus:
        return set_condition(status, kind, value, reason, message, self.view.generation, self.now)

    def end_attempt(self, status: FineTuneJobStatus, cause: Reason = Reason.SUSPENDED_BY_USER) -> Plan | Need | None:
        """End the attempt at hand. None: it has ended, and is to be judged; or no attempt is under way. It needs no
        terms: an attempt whose terms cannot be read gives its GPUs back as well."""
        found = under_way(status, self.snapshot)
        if found is None:
            return None
        kind, attempt = found
        child = self.snapshot.child_job(kind, attempt.number)
        if child is None:
            # It may exist although no watch has shown it: the operator ended after it had created it.
            for read in (Read.JOB, Read.CHILD_JOB, Read.PODS):
                if need := missing(self.snapshot, read, kind, attempt):
                    return need
        if not ending.is_ended_by_operator(attempt):
            if child is not None and child.finished:
                return None
            attempt = ending.set_ending(attempt, cause, ENDED_FOR[cause])
            return Plan(self._stopping(set_attempt(status, kind, attempt), cause))
        pods = self.snapshot.pods_of(kind, attempt.number)
        if child is None or child.deleting or child.finished or ending.have_ended(pods):
            return None
        return Plan(status, Delete(child))

    def rest(self, status: FineTuneJobStatus, misfit: str = "") -> Plan:
        """No attempt is under way, and none begins. `misfit`: why the job could not be resumed as it is."""
        left = next((child for child in self.snapshot.child_jobs if not child.finished), None)
        if left is not None:
            status = self._stopping(status, Reason.SUSPENDED_BY_USER)
            return Plan(status, None if left.deleting else Delete(left))
        if misfit:
            why = f"As it is, the job cannot be resumed: {sentence(misfit)} Correct spec.resources, or delete the job."
            status = self._set(status, ConditionType.ACCEPTED, False, Reason.INVALID_SPEC, why)
            return Plan(self._at_rest(status, Reason.SUSPENDED_BY_USER, f"The job is suspended. {why}"))
        if status.resolved is None:
            checked = "The spec is checked as a whole when the job is resumed. Until now, nothing is wrong with it."
            status = self._set(status, ConditionType.ACCEPTED, None, Reason.SUSPENDED_BY_USER, checked)
        else:
            status = self._set(status, ConditionType.ACCEPTED, True, Reason.ACCEPTED, "The spec is valid.")
        return Plan(self._at_rest(status, Reason.SUSPENDED_BY_USER, self._message(status)))

    def hold(self, status: FineTuneJobStatus, why: str) -> Plan:
        """The job is to be resumed, but its resources do not fit it. That is no failure: they can be changed."""
        message = (
            f"The job cannot be resumed: {sentence(why)} Set spec.suspend to true, correct spec.resources, prepare or"
            " queue, then set suspend to false. Or delete the job."
        )
        status = self._set(status, ConditionType.ACCEPTED, False, Reason.INVALID_SPEC, message)
        return Plan(self._at_rest(status, Reason.INVALID_SPEC, message))

    def wait(self, status: FineTuneJobStatus, reason: Reason, why: str) -> Plan:
        """The job is to be resumed, and waits for what its user need not change."""
        message = f"The job cannot be resumed yet: {why}"
        status = self._set(status, ConditionType.ACCEPTED, None, reason, message)
        return Plan(self._at_rest(status, reason, message))

    def settle(self, status: FineTuneJobStatus) -> FineTuneJobStatus:
        """The status with the condition as it is once the job runs again, or has ended."""
        resumes = is_resuming(status) and not self.is_requested
        if _condition(status) is None or not (resumes or terminal(status)):
            return status
        if terminal(status):
            reason = next((known for known in Reason if known == status.reason), Reason.COMPLETED)
            return self._set(status, ConditionType.SUSPENDED, False, reason, ENDED)
        found = under_way(status, self.snapshot)
        waits_for_others = status.resolved is None and status.reason == Reason.WAITING_FOR_JOB
        if waits_for_others or (found is not None and not ending.is_ended_by_operator(found[1])):
            return self._set(status, ConditionType.SUSPENDED, False, Reason.RESUMED, RESUMED)
        return status

    def _stopping(self, status: FineTuneJobStatus, cause: Reason) -> FineTuneJobStatus:
        if cause is Reason.SUSPENDED_BY_USER:
            status = self._set(status, ConditionType.SUSPENDED, False, Reason.ENDING, ENDING[cause])
        return set_phase(status, status.phase or Phase.PENDING, Reason.ENDING, ENDING[cause])

    def _at_rest(self, status: FineTuneJobStatus, reason: Reason, message: str) -> FineTuneJobStatus:
        preparing = any(c.type == ConditionType.PREPARED and c.status == "Unknown" for c in status.conditions or [])
        if preparing:
            status = self._set(status, ConditionType.PREPARED, None, reason, "It continues when the job is resumed.")
        status = self._set(status, ConditionType.RUNNING, False, reason, "The job is suspended.")
        status = self._set(status, ConditionType.SUSPENDED, True, reason, message)
        return set_phase(status, Phase.SUSPENDED, reason, message)

    def _message(self, status: FineTuneJobStatus) -> str:
        step = newest_checkpoint(status)
        if status.start_time is None:
            begin = "To start it"
        elif step:
            begin = f"To resume it from the newest checkpoint (last reported: step {step})"
        else:
            begin = "To start it again (no checkpoint was reported yet)"
        return (
            f"The job is suspended: no pod runs, and no GPU is held. {begin}, set spec.suspend to false: kubectl patch"
            f' ftj {self.view.name} -n {self.view.namespace} --type merge -p \'{{"spec":{{"suspend":false}}}}\''
        )
