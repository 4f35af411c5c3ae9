"""Jobs that name other jobs: which they name, and what the artifact of one is to another.

Called by the operator, which waits for the jobs of `from_jobs`, and by `finetune_api.contract.resolve`. A spec is whole
without the jobs that it names; only `followed` needs what they made. Raises ValueError with a message for the user
where that can't be used. The operator asks `check_stage` and `started_from` before the other job has ended, too, with
the artifact that is `foreseen`.
"""

from collections.abc import Iterable
from typing import Literal

from finetune_api.model import PINNED, is_pinned
from finetune_api.spec import FineTuneJobSpec
from finetune_api.stages import ReferenceSpec
from finetune_api.status import Artifact, Reference
from finetune_api.tuning import AdapterSpec

Use = Literal["model", "reference", "rewardModel"]


def from_jobs(spec: FineTuneJobSpec) -> dict[Use, str]:
    """Name of the job whose artifact is used, by use."""
    reference, ppo = reference_of(spec), spec.ppo
    named: dict[Use, str | None] = {
        "model": spec.model.from_job,
        "reference": reference.from_job if reference else None,
        "rewardModel": ppo.reward_model.from_job if ppo else None,
    }
    return {use: job for use, job in named.items() if job is not None}


def reference_of(spec: FineTuneJobSpec) -> ReferenceSpec | None:
    """The model that a job of stage dpo, kto or ppo compares with, where it names one."""
    section = spec.dpo or spec.kto or spec.ppo
    return section.reference if section else None


def field(spec: FineTuneJobSpec, use: Use) -> str:
    """Where in the spec the job of a use is named."""
    if use == "model":
        return "model.fromJob"
    return "ppo.rewardModel.fromJob" if use == "rewardModel" else f"{spec.stage}.reference.fromJob"


def followed(spec: FineTuneJobSpec, references: Iterable[Reference]) -> tuple[FineTuneJobSpec, list[Reference]]:
    """The spec with model.fromJob replaced by what that job made, and the references that it names, checked."""
    used = []
    for use, name in from_jobs(spec).items():
        found = next((one for one in references if one.use == use and one.job == name), None)
        if found is None:
            raise ValueError(f"{field(spec, use)}: there is no artifact of {name} yet")
        check_stage(spec, use, name, found.stage)
        used.append(found)
    model = next((one for one in used if one.use == "model"), None)
    return (started_from(spec, model) if model else spec), used


def check_stage(spec: FineTuneJobSpec, use: Use, job: str, stage: str) -> None:
    """A reward model says how good an answer is, and can't answer."""
    wanted = use == "rewardModel" or (use == "model" and spec.stage == "rm" and stage == "rm")
    if (stage == "rm") != wanted:
        kind = "a reward model, which is made by stage rm" if wanted else "a model that answers, not a reward model"
        raise ValueError(f"{field(spec, use)}: {job} is of stage {stage}: name the job of {kind}")


def foreseen(spec: FineTuneJobSpec, references: Iterable[Reference], uri: str) -> Artifact | None:
    """What a job will make, as far as its spec tells: all but sizes and digests. `references` are those that are fixed
    for it; None while it waits for the model that it starts from."""
    if spec.model.from_job is not None:
        model = next((one for one in references if one.use == "model"), None)
        if model is None:
            return None
        spec = started_from(spec, model)
    if spec.output.merge or spec.tuning.method in ("full", "freeze"):
        return Artifact(uri=uri, kind="model", digest="", size_bytes=0)
    earlier = spec.tuning.adapter
    stacked = earlier is not None and earlier.mode == "merge"
    return Artifact(uri=uri, kind="adapter", digest="", size_bytes=0, base=spec.model.source, base_adapter=stacked)


def started_from(spec: FineTuneJobSpec, found: Reference) -> FineTuneJobSpec:
    """The spec with model.fromJob replaced by what that job made, or will make."""
    artifact, adapter = found.artifact, spec.tuning.adapter
    if artifact.kind == "model":
        if adapter is not None:
            raise ValueError(f"tuning.adapter: {found.job} makes a whole model, not an adapter: leave it out")
        return _with(spec, artifact.uri, None)
    if artifact.base is None:
        raise ValueError(
            f"model.fromJob: {found.job} does not say which model its adapter goes on: use model.source and"
            f" tuning.adapter.source, {artifact.uri}"
        )
    if artifact.base_adapter:
        raise ValueError(
            f"model.fromJob: {found.job} makes an adapter that goes on another adapter, and a job starts from one at"
            " most: let that job set output.merge"
        )
    if spec.model.trust_remote_code and not is_pinned(artifact.base):
        raise ValueError(f"model.trustRemoteCode: {found.job} makes an adapter for {artifact.base}: {PINNED}")
    # A reward model's adapter has a head for scores, and one of a model that answers has none.
    same_kind = (spec.stage == "rm") == (found.stage == "rm")
    goes_on = spec.tuning.method in ("lora", "qlora") and spec.tuning.lora is None and same_kind
    mode = adapter.mode if adapter is not None else "continue" if goes_on else "merge"
    if mode == "continue" and not same_kind:
        raise ValueError(f"tuning.adapter.mode: {found.job} makes no reward model that could be continued: use merge")
    return _with(spec, artifact.base, AdapterSpec(source=artifact.uri, mode=mode))


def _with(spec: FineTuneJobSpec, source: str, adapter: AdapterSpec | None) -> FineTuneJobSpec:
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"source": source, "from_job": None}),
            "tuning": spec.tuning.model_copy(update={"adapter": adapter}),
        }
    )
