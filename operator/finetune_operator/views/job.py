"""A FineTuneJob, and what jobs that depend on it need to know of it."""

from dataclasses import dataclass

from finetune_api.status import NOT_OBSERVED, TRAINER_FIELDS, Reason

from finetune_operator.names import SERVICE_ACCOUNT
from finetune_operator.views.metadata import Key, Raw, metadata, section


@dataclass(frozen=True)
class DependencySummary:
    """Everything that the message of a waiting job says about this job. Other changes do not concern that job."""

    uid: str
    deleting: bool
    phase: str
    reason: str
    tenths: int
    """Tenths of the training that are done. Each percent would be a write for each job that waits."""


@dataclass(frozen=True)
class JobView:
    """A FineTuneJob on the server."""

    namespace: str
    name: str
    uid: str
    resource_version: int
    generation: int
    deleting: bool
    spec: Raw
    status: Raw
    """Without the curves: the operator does not need them, and they are as large as the rest."""
    has_curves: bool = False
    created: str = ""

    @property
    def key(self) -> Key:
        return self.namespace, self.name

    @property
    def claim(self) -> str:
        """The claim of its workspace: `finetune_api.contract.claim_name` for a spec that is not parsed."""
        return str(section(self.spec, "workspace").get("claimName") or f"{self.name}-workspace")

    @property
    def account(self) -> str:
        """The ServiceAccount of its pods."""
        return str(section(self.spec, "resources").get("serviceAccountName") or SERVICE_ACCOUNT)

    @property
    def dependencies(self) -> set[str]:
        """Names of the jobs whose artifacts it uses, until status.references fixes them:
        `finetune_api.chaining.from_jobs` for a spec that is not parsed."""
        if self.status.get("references"):
            return set()
        stage = section(self.spec, str(self.spec.get("stage")))
        places = (section(self.spec, "model"), section(stage, "reference"), section(stage, "rewardModel"))
        return {str(place["fromJob"]) for place in places if "fromJob" in place}

    @property
    def retry(self) -> int:
        """spec.retry."""
        retry = self.spec.get("retry")
        return retry if isinstance(retry, int) else 0

    @property
    def summary(self) -> DependencySummary:
        phase, percent = str(self.status.get("phase") or ""), section(self.status, "progress").get("percent")
        tenths = percent // 10 if phase == "Running" and isinstance(percent, int) else 0
        return DependencySummary(self.uid, self.deleting, phase, str(self.status.get("reason") or ""), tenths)

    @property
    def is_new(self) -> bool:
        """Whether no operator has looked at it yet. The CRD gives every job a phase, and a generation that none has."""
        return self.status.get("observedGeneration") in (None, NOT_OBSERVED)

    def same_for_operator(self, other: "JobView | None") -> bool:
        """Whether only fields of the trainer differ that no condition repeats."""
        if other is None:
            return False
        return (
            self.uid == other.uid
            and self.generation == other.generation
            and self.deleting == other.deleting
            and operator_part(self.status) == operator_part(other.status)
            and _report(self.status) == _report(other.status)
        )


def operator_part(status: Raw) -> Raw:
    """The status without the trainer's fields."""
    return {name: value for name, value in status.items() if name not in TRAINER_FIELDS}


def _report(status: Raw) -> object:
    """What the operator repeats of the trainer's report, or acts on: whose it is, what the trainer does now, from
    where it started, and which rank straggles. Each report is news while reports are missed."""
    progress = section(status, "progress")
    slowest = section(progress, "slowestRank")
    straggler = slowest.get("rank") if slowest.get("sinceStep") is not None else None
    fields = ["attempt", "kind", "activity", "startStep"]
    if status.get("reason") == Reason.NOT_REPORTING:
        fields.append("lastUpdateTime")
    return [straggler, slowest.get("sinceStep"), *(progress.get(name) for name in fields)]


def job_view(raw: Raw) -> JobView:
    meta, status = metadata(raw), dict(raw.get("status") or {})
    progress = section(status, "progress")
    if has_curves := "curves" in progress:
        status["progress"] = {name: value for name, value in progress.items() if name != "curves"}
    return JobView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        resource_version=int(meta["resourceVersion"]),
        generation=int(meta.get("generation", 0)),
        deleting="deletionTimestamp" in meta,
        spec=dict(raw.get("spec") or {}),
        status=status,
        has_curves=has_curves,
        created=str(meta.get("creationTimestamp") or ""),
    )
