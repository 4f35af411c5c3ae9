"""spec.rm, spec.dpo, spec.kto and spec.ppo: what only one stage has. Defaults are those of the papers named, or of
LLaMA-Factory."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from finetune_api.base import ApiModel, DnsName, cel, validated
from finetune_api.job_name import JobName
from finetune_api.output import Address
from finetune_api.source import ModelSource

ONE_REFERENCE = "set exactly one of source and fromJob"
ONE_REWARD = "set exactly one of fromJob, source and http"
SMOOTHED = "labelSmoothing goes with loss sigmoid only"
LENGTHS = "ldAlpha goes with losses sigmoid and hinge only: the others weigh answers by their length themselves"
GAMMA = "simpoGamma goes with loss simpo only"
SIMPO_GAMMA = 0.5
FREE = "klControl adaptive multiplies klCoefficient, so 0 would stay 0: set it above 0, or use klControl fixed"
NO_REFERENCE = "losses orpo and simpo compare with no reference model: leave reference and precomputeReference out"


class ReferenceSpec(ApiModel):
    """The model that a stage compares with. Set exactly one of source and fromJob."""

    model_config = ConfigDict(
        json_schema_extra=validated([cel("has(self.source) != has(self.fromJob)", ONE_REFERENCE)])
    )

    source: ModelSource | None = None
    """A model in Hugging Face layout, or an adapter that a job made."""
    from_job: JobName | None = None
    """The artifact of another FineTuneJob of this namespace; this one waits until it is there."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.source is None) == (self.from_job is None):
            raise ValueError(ONE_REFERENCE)
        return self


class RmSpec(ApiModel):
    """Stage rm: a reward model, trained on pairs (Bradley-Terry; Ouyang et al., 2022)."""

    center_rewards: float | None = Field(default=None, gt=0, le=10)
    """Weight of a term that keeps rewards around zero (Eisenstein et al., 2023); 0.01 is usual. Unset: none."""


class DpoSpec(ApiModel):
    """Stage dpo: preference optimization on pairs (Rafailov et al., 2023)."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            [
                cel("self.labelSmoothing == 0.0 || self.loss == 'sigmoid'", SMOOTHED),
                cel("!has(self.ldAlpha) || self.loss in ['sigmoid', 'hinge']", LENGTHS),
                cel(f"self.simpoGamma == {SIMPO_GAMMA} || self.loss == 'simpo'", GAMMA),
                cel(
                    "!(self.loss in ['orpo', 'simpo']) || (!has(self.reference) && !self.precomputeReference)",
                    NO_REFERENCE,
                ),
            ]
        )
    )

    loss: Literal["sigmoid", "hinge", "ipo", "orpo", "simpo"] = "sigmoid"
    """sigmoid: DPO. hinge: SLiC (Zhao et al., 2023). ipo: IPO (Azar et al., 2023). orpo: ORPO (Hong et al., 2024).
    simpo: SimPO (Meng et al., 2024). The last two need no reference model."""
    beta: float = Field(default=0.1, gt=0, le=100)
    """How strongly the model is held to the reference; of ipo the regularization tau, of orpo the weight of the odds
    ratio, of simpo the scale of rewards."""
    # Not lt=0.5: API servers compare a default that is a whole number with bounds cut to whole numbers.
    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """Share of pairs whose labels are wrong (conservative DPO)."""
    simpo_gamma: float = Field(default=SIMPO_GAMMA, ge=0, le=100)
    """Loss simpo: the margin that it aims for, in rewards."""
    sft_weight: float = Field(default=0.0, ge=0, le=100)
    """Weight of an added supervised loss on the chosen answers. orpo has one of weight 1 by itself."""
    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    """Losses sigmoid and hinge: weight of what an answer has beyond the length of the shorter one (LD-DPO, Liu et al.,
    2024). Unset: 1."""
    reference: ReferenceSpec | None = None
    """The model compared with. Unset: the model as this job received it."""
    precompute_reference: bool = False
    """Let the reference see all pairs before training begins, and then give its memory back."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(SMOOTHED)
        if self.ld_alpha is not None and self.loss not in ("sigmoid", "hinge"):
            raise ValueError(LENGTHS)
        if self.simpo_gamma != SIMPO_GAMMA and self.loss != "simpo":
            raise ValueError(GAMMA)
        if self.loss in ("orpo", "simpo") and (self.reference is not None or self.precompute_reference):
            raise ValueError(NO_REFERENCE)
        return self


class KtoSpec(ApiModel):
    """Stage kto: answers that are wanted or not, one by one (Ethayarajh et al., 2024)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """How strongly the model is held to the reference."""
    desirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of wanted answers. Best where it times their number is 1 to 1.33 times undesirableWeight times theirs."""
    undesirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of unwanted answers."""
    sft_weight: float = Field(default=0.0, ge=0, le=100)
    """Weight of an added supervised loss on the wanted answers."""
    reference: ReferenceSpec | None = None
    """The model compared with. Unset: the model as this job received it."""


class HttpRewardSpec(ApiModel):
    """A service that scores texts: POST {"model": ..., "messages": [text, ...]} is answered by {"scores": [...]}."""

    url: Address
    """Its address. Called by training pods only."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "model"
    """What is sent as model."""
    secret: DnsName | None = None
    """Secret with the key REWARD_TOKEN, sent as bearer token."""
    timeout_seconds: int = Field(default=60, ge=1, le=3600)
    """Time for one request."""


class RewardModelSpec(ApiModel):
    """What scores answers. Set exactly one of fromJob, source and http."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            [cel("[has(self.fromJob), has(self.source), has(self.http)].filter(x, x).size() == 1", ONE_REWARD)]
        )
    )

    from_job: JobName | None = None
    """The artifact of a FineTuneJob of stage rm of this namespace; this one waits until it is there."""
    source: ModelSource | None = None
    """A sequence classification model with one label in Hugging Face layout, or an adapter that stage rm made. Its
    tokenizer must be the policy's."""
    http: HttpRewardSpec | None = None
    """A reward service."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(one is not None for one in (self.from_job, self.source, self.http)) != 1:
            raise ValueError(ONE_REWARD)
        return self


class PpoSpec(ApiModel):
    """Stage ppo: the model answers, is scored, and learns from the scores (Schulman et al., 2017; Ouyang et al.,
    2022)."""

    model_config = ConfigDict(
        json_schema_extra=validated([cel("self.klControl == 'fixed' || self.klCoefficient > 0.0", FREE)])
    )

    reward_model: RewardModelSpec
    """What scores answers."""
    reference: ReferenceSpec | None = None
    """The model that the policy is held to. Unset: the model as this job received it."""
    rollout_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Prompts answered before anything is learned from them, a multiple of globalBatchSize. Unset: globalBatchSize."""
    rollout_micro_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Prompts answered at once by each GPU. Unset: four micro-batches."""
    epochs: int = Field(default=4, ge=1, le=100)
    """Passes over each rollout."""
    max_new_tokens: int = Field(default=256, ge=1, le=65_536)
    """Longest answer. Prompts have what is left of cutoffLength; longer ones are left out."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Of the answers. Also that of the log-probabilities that are learned from."""
    top_k: int | None = Field(default=None, ge=1, le=1_000_000)
    """Draw from the so many likeliest tokens. Unset: from all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability."""
    kl_control: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: the coefficient follows klTarget (Ziegler et al., 2019). fixed: it stays klCoefficient."""
    kl_coefficient: float = Field(default=0.2, ge=0, le=100)
    """What a nat of divergence from the reference costs, in rewards; with adaptive, at first, and not 0."""
    kl_target: float = Field(default=6.0, gt=0, le=1000)
    """Divergence of an answer from the reference, in nats, that adaptive control steers to."""
    kl_horizon: int = Field(default=10_000, ge=1, le=1_000_000_000)
    """Answers over which adaptive control acts."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of later rewards."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Bias against variance of advantages (Schulman et al., 2016)."""
    clip_range: float = Field(default=0.2, gt=0, le=10)
    """How far the ratio of new to old probability may leave 1."""
    value_clip_range: float = Field(default=0.2, gt=0, le=100)
    """How far values may leave the old ones in one rollout."""
    value_coefficient: float = Field(default=0.1, ge=0, le=100)
    """Weight of the value loss."""
    whiten_rewards: bool = False
    """Scale rewards of a rollout to unit variance."""
    reward_normalization: Literal["model", "running", "none"] = "model"
    """model: by mean and deviation that stage rm measured, on held-out pairs where it had any. running: by those of
    the scores so far. none: scores as they are. A model without a measurement, or a service: running."""
    reward_clip: float = Field(default=5.0, gt=0, le=1000)
    """Largest normalized score, either way."""
    missing_eos_penalty: float = Field(default=1.0, ge=0, le=1000)
    """Taken off the normalized score of an answer that reached maxNewTokens without an end."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.kl_control == "adaptive" and not self.kl_coefficient:
            raise ValueError(FREE)
        return self
