"""spec.rm, spec.dpo, spec.kto and spec.ppo: settings of a single stage. Defaults are those of the papers named, or of
LLaMA-Factory."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from finetune_api.base import ApiModel, cel, validated
from finetune_api.job_name import JobName
from finetune_api.kubernetes import DnsName
from finetune_api.output import Address
from finetune_api.source import ModelSource

Stage = Literal["pt", "sft", "rm", "dpo", "ppo", "kto"]

ONE_REFERENCE = "set exactly one of source and fromJob"
ONE_REWARD = "set exactly one of fromJob, source and http"
LABEL_SMOOTHING = "labelSmoothing needs loss sigmoid: change loss, or remove labelSmoothing"
LD_ALPHA = "ldAlpha needs loss sigmoid or hinge: change loss, or remove ldAlpha"
SIMPO_MARGIN = "simpoGamma needs loss simpo: change loss, or remove simpoGamma"
SIMPO_GAMMA = 0.5
ADAPTIVE_KL = "klControl adaptive multiplies klCoefficient, which must be above 0: raise it, or use klControl fixed"
NO_REFERENCE = "losses orpo and simpo use no reference model: remove reference and precomputeReference"
BASE_OF_SOURCE = "base is the base model of an adapter in source: set source, or remove base"


class ReferenceSpec(ApiModel):
    """Reference model. Set exactly one of source and fromJob."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            [
                cel("has(self.source) != has(self.fromJob)", ONE_REFERENCE),
                cel("!has(self.base) || has(self.source)", BASE_OF_SOURCE),
            ]
        )
    )

    source: ModelSource | None = None
    """Model in Hugging Face layout, or an adapter that a job made."""
    base: ModelSource | None = None
    """Base model of the adapter in source. Unset: the job's own model."""
    from_job: JobName | None = None
    """FineTuneJob in this namespace whose artifact is the reference model; this job waits for it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.source is None) == (self.from_job is None):
            raise ValueError(ONE_REFERENCE)
        if self.base is not None and self.source is None:
            raise ValueError(BASE_OF_SOURCE)
        return self


class RmSpec(ApiModel):
    """Stage rm: a reward model, trained on pairs (Bradley-Terry; Ouyang et al., 2022)."""

    center_rewards: float | None = Field(default=None, gt=0, le=10)
    """Weight of a loss term that centers rewards at zero (Eisenstein et al., 2023); 0.01 is usual. Set it if rewards
    drift. Unset: none."""


class DpoSpec(ApiModel):
    """Stage dpo: preference optimization on pairs (Rafailov et al., 2023)."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            [
                cel("self.labelSmoothing == 0.0 || self.loss == 'sigmoid'", LABEL_SMOOTHING),
                cel("!has(self.ldAlpha) || self.loss in ['sigmoid', 'hinge']", LD_ALPHA),
                cel(f"self.simpoGamma == {SIMPO_GAMMA} || self.loss == 'simpo'", SIMPO_MARGIN),
                cel(
                    "!(self.loss in ['orpo', 'simpo']) || (!has(self.reference) && !self.precomputeReference)",
                    NO_REFERENCE,
                ),
            ]
        )
    )

    loss: Literal["sigmoid", "hinge", "ipo", "orpo", "simpo"] = "sigmoid"
    """sigmoid: DPO. hinge: SLiC. ipo: IPO. orpo: ORPO. simpo: SimPO. Use orpo or simpo to train without a reference
    model, which saves memory."""
    beta: float = Field(default=0.1, gt=0, le=100)
    """Strength of the pull to the reference; ipo: tau; orpo: weight of the odds ratio; simpo: scale of rewards. Raise
    it if answers degrade."""
    # Not lt=0.5: an API server cuts bounds to whole numbers before it compares a whole number as default with them.
    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """Assumed share of pairs with wrong labels (loss sigmoid: conservative DPO). Raise it for noisy preferences."""
    simpo_gamma: float = Field(default=SIMPO_GAMMA, ge=0, le=100)
    """Target margin in units of reward (loss simpo). Raise it to separate chosen and rejected answers more."""
    sft_weight: float = Field(default=0.0, ge=0, le=100)
    """Weight of an added supervised loss on chosen answers. Raise it if they become unlikely. Loss orpo includes such a
    term of weight 1."""
    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of an answer's tokens beyond the shorter answer's length (LD-DPO; sigmoid, hinge). Lower it if answers
    grow too long. Unset: 1."""
    reference: ReferenceSpec | None = None
    """Reference model. Unset: the model as this job received it."""
    precompute_reference: bool = False
    """Score all pairs by the reference model before training, then free its memory. Turn it on if two models do not fit
    into memory."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(LABEL_SMOOTHING)
        if self.ld_alpha is not None and self.loss not in ("sigmoid", "hinge"):
            raise ValueError(LD_ALPHA)
        if self.simpo_gamma != SIMPO_GAMMA and self.loss != "simpo":
            raise ValueError(SIMPO_MARGIN)
        if self.loss in ("orpo", "simpo") and (self.reference is not None or self.precompute_reference):
            raise ValueError(NO_REFERENCE)
        return self


class KtoSpec(ApiModel):
    """Stage kto: preference optimization on single answers, wanted or unwanted (Ethayarajh et al., 2024)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Strength of the pull to the reference model. Raise it if answers degrade."""
    desirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of wanted answers. Choose it so that weight x number of wanted answers is 1 to 1.33 times that of unwanted
    answers."""
    undesirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of unwanted answers. Raise it if they are far fewer than wanted answers."""
    sft_weight: float = Field(default=0.0, ge=0, le=100)
    """Weight of an added supervised loss on wanted answers. Raise it if they become unlikely."""
    reference: ReferenceSpec | None = None
    """Reference model. Unset: the model as this job received it."""


class HttpRewardSpec(ApiModel):
    """A service that scores texts: it answers POST {"model": ..., "messages": [text, ...]} with {"scores": [...]}."""

    url: Address
    """URL of the service. Only training pods call it."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "model"
    """Value of the field model in each request."""
    secret: DnsName | None = None
    """Secret with the key REWARD_TOKEN, sent as bearer token. Unset: no token."""
    timeout_seconds: int = Field(default=60, ge=1, le=3600)
    """Seconds until a request times out. Raise it if the service is slow."""


class RewardModelSpec(ApiModel):
    """What scores the answers. Set exactly one of fromJob, source and http."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            [
                cel("[has(self.fromJob), has(self.source), has(self.http)].filter(x, x).size() == 1", ONE_REWARD),
                cel("!has(self.base) || has(self.source)", BASE_OF_SOURCE),
            ]
        )
    )

    from_job: JobName | None = None
    """FineTuneJob of stage rm in this namespace whose artifact scores the answers; this job waits for it."""
    source: ModelSource | None = None
    """Sequence classification model with a single label in Hugging Face layout, or an adapter of stage rm. It must have
    the policy's tokenizer."""
    base: ModelSource | None = None
    """Base model of the adapter in source. Unset: the job's own model."""
    http: HttpRewardSpec | None = None
    """Service that scores the answers."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if [self.from_job, self.source, self.http].count(None) != 2:
            raise ValueError(ONE_REWARD)
        if self.base is not None and self.source is None:
            raise ValueError(BASE_OF_SOURCE)
        return self


class PpoSpec(ApiModel):
    """Stage ppo: the model answers prompts and learns from the scores of its answers (Schulman et al., 2017; Ouyang et
    al., 2022)."""

    model_config = ConfigDict(
        json_schema_extra=validated([cel("self.klControl == 'fixed' || self.klCoefficient > 0.0", ADAPTIVE_KL)])
    )

    reward_model: RewardModelSpec
    """What scores the answers."""
    reference: ReferenceSpec | None = None
    """Reference model that the policy stays close to. Unset: the model as this job received it."""
    rollout_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Prompts per rollout, a multiple of globalBatchSize. Raise it for steadier updates. Unset: globalBatchSize."""
    rollout_micro_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Prompts that each GPU answers at once. Lower it if generation runs out of memory. Unset: four micro-batches."""
    epochs: int = Field(default=4, ge=1, le=100)
    """Passes over each rollout. Lower it if training is unstable."""
    max_new_tokens: int = Field(default=256, ge=1, le=65_536)
    """Longest answer in tokens. Prompts get the rest of cutoffLength; longer prompts are left out. Raise it if answers
    are cut."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Sampling temperature of answers, and of the log-probabilities in the loss. Lower it for less varied answers."""
    top_k: int | None = Field(default=None, ge=1, le=1_000_000)
    """Sample from the k likeliest tokens. Set it to avoid unlikely tokens. Unset: all tokens."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability. Lower it to avoid unlikely tokens."""
    kl_control: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: the KL coefficient follows klTarget (Ziegler et al., 2019). fixed: the coefficient is always
    klCoefficient."""
    kl_coefficient: float = Field(default=0.2, ge=0, le=100)
    """Cost of a nat of divergence from the reference, in units of reward. adaptive: the initial value, not 0. Raise it
    if answers degrade."""
    kl_target: float = Field(default=6.0, gt=0, le=1000)
    """Divergence of an answer from the reference in nats that adaptive control aims at. Lower it to stay closer to the
    reference."""
    kl_horizon: int = Field(default=10_000, ge=1, le=1_000_000_000)
    """Answers over which adaptive control acts. Lower it for faster control."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of later rewards. The default fits most jobs."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Trade-off between bias and variance of advantages (Schulman et al., 2016). Lower it for less variance and more
    bias."""
    clip_range: float = Field(default=0.2, gt=0, le=10)
    """Largest distance from 1 of the ratio of new to old probability. Lower it if training is unstable."""
    value_clip_range: float = Field(default=0.2, gt=0, le=100)
    """Largest distance of values from the old values within a rollout. Lower it if the value loss is unstable."""
    value_coefficient: float = Field(default=0.1, ge=0, le=100)
    """Weight of the value loss. Raise it if values learn slowly."""
    whiten_rewards: bool = False
    """Scale the rewards of a rollout to unit variance. Turn it on if the scale of rewards changes over time."""
    reward_normalization: Literal["model", "running", "none"] = "model"
    """model: by mean and deviation that stage rm measured; without them, or with http, as running. running: by all
    scores so far. none: raw scores."""
    reward_clip: float = Field(default=5.0, gt=0, le=1000)
    """Largest absolute value of a normalized score. Lower it if outliers dominate."""
    missing_eos_penalty: float = Field(default=1.0, ge=0, le=1000)
    """Subtracted from the normalized score of an answer that reaches maxNewTokens without an end. Raise it if answers
    do not end."""

    @model_validator(mode="after")
    def _adaptive_control_works(self) -> Self:
        if self.kl_control == "adaptive" and not self.kl_coefficient:
            raise ValueError(ADAPTIVE_KL)
        return self
