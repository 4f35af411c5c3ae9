"""Jobs that use the artifacts of other jobs: which jobs a spec names, and what an artifact is to the job that uses it.

Called by the operator, which waits for the jobs that `from_jobs` returns, and by `finetune_api.contract.resolve`. A
spec is valid without the jobs that it names; only `apply_references` needs their artifacts. Raises ValueError with a
message for the user if an artifact does not fit. The operator also calls `check_stage` and `start_from` before the
other job has ended, with the artifact that `expected_artifact` returns.
"""

from collections.abc import Iterable
from typing import Literal

from finetune_api.model import PINNED, is_pinned
from finetune_api.spec import FineTuneJobSpec
from finetune_api.stages import ReferenceSpec
from finetune_api.status.artifact import Artifact, Reference
from finetune_api.tuning import AdapterSpec

Use = Literal["model", "reference", "rewardModel"]


def from_jobs(spec: FineTuneJobSpec) -> dict[Use, str]:
    """Use -> name of the job whose artifact is used."""
    reference, ppo = reference_model(spec), spec.ppo
    named: dict[Use, str | None] = {
        "model": spec.model.from_job,
        "reference": reference.from_job if reference else None,
        "rewardModel": ppo.reward_model.from_job if ppo else None,
    }
    return {use: job for use, job in named.items() if job is not None}


def reference_model(spec: FineTuneJobSpec) -> ReferenceSpec | None:
    """The reference model that a job of stage dpo, kto or ppo names, if any."""
    section = spec.dpo or spec.kto or spec.ppo
    return section.reference if section else None


def field_path(spec: FineTuneJobSpec, use: Use) -> str:
    """Path of the field that names the job of a use, without the leading spec."""
    if use == "model":
        return "model.fromJob"
    return "ppo.rewardModel.fromJob" if use == "rewardModel" else f"{spec.stage}.reference.fromJob"


def apply_references(spec: FineTuneJobSpec, references: Iterable[Reference]) -> tuple[FineTuneJobSpec, list[Reference]]:
    """The spec with model.fromJob replaced by that job's artifact, and the checked references that the spec uses."""
    by_job = {(reference.use, reference.job): reference for reference in references}
    used = []
    for use, name in from_jobs(spec).items():
        reference = by_job.get((use, name))
        if reference is None:
            raise ValueError(f"{field_path(spec, use)}: job {name} has no artifact yet: wait until it has succeeded")
        check_stage(spec, use, name, reference.stage)
        used.append(reference)
    model = next((reference for reference in used if reference.use == "model"), None)
    return (start_from(spec, model) if model else spec), used


def check_stage(spec: FineTuneJobSpec, use: Use, job: str, stage: str) -> None:
    """Raises ValueError if a reward model is used as a model that generates answers, or the reverse."""
    needs_reward_model = use == "rewardModel" or (use == "model" and spec.stage == "rm" and stage == "rm")
    if (stage == "rm") != needs_reward_model:
        kind = "a reward model (stage rm)" if needs_reward_model else "a model that generates answers (not stage rm)"
        raise ValueError(f"{field_path(spec, use)}: {job} is of stage {stage}: name the job of {kind}")


def expected_artifact(spec: FineTuneJobSpec, references: Iterable[Reference], uri: str) -> Artifact | None:
    """The artifact that a job will make, as far as its spec determines it: without sizes and digests.

    `references` are the artifacts fixed for the job. None if the job still waits for the model that it starts from.
    """
    if spec.model.from_job is not None:
        model = next((reference for reference in references if reference.use == "model"), None)
        if model is None:
            return None
        spec = start_from(spec, model)
    if spec.output.merge or spec.tuning.method in ("full", "freeze"):
        return Artifact(uri=uri, kind="model", digest="", size_bytes=0)
    earlier = spec.tuning.adapter
    stacked = earlier is not None and earlier.mode == "merge"
    return Artifact(uri=uri, kind="adapter", digest="", size_bytes=0, base=spec.model.source, base_adapter=stacked)


def start_from(spec: FineTuneJobSpec, reference: Reference) -> FineTuneJobSpec:
    """The spec with model.fromJob replaced by an artifact, which may be an expected artifact."""
    artifact, adapter, job = reference.artifact, spec.tuning.adapter, reference.job
    if artifact.kind == "model":
        if adapter is not None:
            raise ValueError(f"tuning.adapter: {job} makes a whole model, not an adapter: remove tuning.adapter")
        return _with(spec, artifact.uri, None)
    if artifact.base is None:
        raise ValueError(
            f"model.fromJob: the status of {job} does not name the base model of its adapter: use model.source and"
            f" tuning.adapter.source, {artifact.uri}"
        )
    if artifact.base_adapter:
        raise ValueError(
            f"model.fromJob: {job} makes an adapter that needs an earlier adapter, and a job can start from a single"
            f" adapter only: set output.merge in job {job}"
        )
    if spec.model.trust_remote_code and not is_pinned(artifact.base):
        raise ValueError(f"model.trustRemoteCode: {job} makes an adapter for {artifact.base}: {PINNED}")
    # The adapter of a reward model includes a head for scores, which other adapters do not have.
    same_kind = (spec.stage == "rm") == (reference.stage == "rm")
    can_continue = spec.tuning.method in ("lora", "qlora") and spec.tuning.lora is None and same_kind
    mode = adapter.mode if adapter is not None else "continue" if can_continue else "merge"
    if mode == "continue" and not same_kind:
        raise ValueError(
            f"tuning.adapter.mode: {job} makes no reward model, so its adapter cannot be continued as such: use merge"
        )
    return _with(spec, artifact.base, AdapterSpec(source=artifact.uri, mode=mode))


def _with(spec: FineTuneJobSpec, source: str, adapter: AdapterSpec | None) -> FineTuneJobSpec:
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"source": source, "from_job": None}),
            "tuning": spec.tuning.model_copy(update={"adapter": adapter}),
        }
    )
