"""spec.tuning: which weights are trained."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated
from finetune_api.source import ModelSource

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", max_length=128)]

ALL_LINEAR = "targets has all-linear, which includes every linear layer: remove all-linear, or the other modules"
LM_HEAD = "lm_head cannot be a LoRA target: name it in lora.modulesToSave, which trains it whole"
CONTINUED = "adapter.mode continue needs method lora or qlora: change method, or use adapter.mode merge"
OWN_LORA = "adapter.mode continue keeps the adapter's own settings: remove lora, or use adapter.mode merge"
NEEDS_LORA = "section lora needs method lora or qlora: change method, or remove lora"
NEEDS_QLORA = "section quantization needs method qlora: change method, or remove quantization"
NEEDS_FREEZE = "section freeze needs method freeze: change method, or remove freeze"
NO_LAYERS = "layers must not be 0, which leaves nothing to train: set the number of layers to train"
DORA_BITS = "lora.dora does not work on a base of 8 bits: set quantization.bits to 4, or remove dora"
PISSA_BASE = "lora.init pissa changes the base, which qlora has quantized: use method lora, or lora.init default"
_LORA_RULES: list[JsonDict] = [
    cel("self.targets.size() == 1 || !('all-linear' in self.targets)", ALL_LINEAR),
    cel("!('lm_head' in self.targets)", LM_HEAD),
]


class LoraSpec(ApiModel):
    """A low-rank adapter (Hu et al., 2021): the base model stays frozen, and the artifact is small."""

    model_config = ConfigDict(json_schema_extra=validated(_LORA_RULES))

    rank: int = Field(default=8, ge=1, le=1024)
    """Rank r of the update. Raise it for more capacity, at the cost of memory."""
    alpha: int | None = Field(default=None, ge=1, le=4096)
    """Scale: the update is multiplied by alpha / rank. Raise it for a stronger effect of the adapter. Unset: twice the
    rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability at the adapter's input. Raise it if the model overfits."""
    targets: list[ModuleName] = Field(default=["all-linear"], min_length=1, max_length=64)
    """Modules that get an adapter, by the last part of their name (q_proj, v_proj), or all-linear: all linear layers
    except the output head."""
    rs_lora: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA, Kalajdzievski, 2023). Turn it on for high ranks, which then learn as fast as
    low ranks."""
    dora: bool = False
    """Train magnitude and direction separately (DoRA, Liu et al., 2024). Turn it on for results closer to full tuning,
    at lower speed."""
    init: Literal["default", "pissa"] = "default"
    """pissa: start from the principal singular vectors of the base (Meng et al., 2024). The artifact still fits the
    original base."""
    lora_plus_ratio: float | None = Field(default=None, ge=1, le=1000)
    """Learning rate of the B matrices divided by that of the A matrices (LoRA+, Hayou et al., 2024). Raise it for
    faster learning. Unset: 1."""
    modules_to_save: list[ModuleName] | None = Field(default=None, max_length=16)
    """Modules that are trained whole and saved with the adapter, such as embed_tokens or lm_head."""

    @model_validator(mode="after")
    def _targets_fit(self) -> Self:
        if "all-linear" in self.targets and len(self.targets) > 1:
            raise ValueError(ALL_LINEAR)
        if "lm_head" in self.targets:
            raise ValueError(LM_HEAD)
        return self


class QuantizationSpec(ApiModel):
    """How method qlora stores the frozen base in memory (bitsandbytes)."""

    bits: Literal[4, 8] = 4
    """Bits per weight. 4: NF4 (Dettmers et al., 2023). 8: LLM.int8(). Use 8 for a base closer to the original, at the
    cost of memory."""
    double_quantization: bool = True
    """4 bits only: quantize the scales too, which saves 0.4 bits per weight. Turn it off if memory is not scarce."""


class FreezeSpec(ApiModel):
    """Method freeze: some layers are trained whole, the others stay frozen."""

    model_config = ConfigDict(json_schema_extra=validated([cel("self.layers != 0", NO_LAYERS)]))

    layers: int = Field(default=2, ge=-1000, le=1000)
    """Number of last layers to train; a negative number counts first layers. Raise it for more capacity, at the cost of
    memory."""
    modules: list[ModuleName] | None = Field(default=None, min_length=1, max_length=64)
    """Parts of these layers to train, such as self_attn or mlp. Unset: all parts."""
    extra_modules: list[ModuleName] | None = Field(default=None, max_length=16)
    """Modules outside of the layers to train too, such as lm_head, norm or embed_tokens."""

    @model_validator(mode="after")
    def _some_layers(self) -> Self:
        if self.layers == 0:
            raise ValueError(NO_LAYERS)
        return self


class AdapterSpec(ApiModel):
    """Earlier LoRA adapter that training starts from."""

    source: ModelSource | None = None
    """Directory with adapter_config.json and adapter_model.safetensors that fit spec.model. Unset: the adapter of the
    job in model.fromJob."""
    mode: Literal["continue", "merge"] = "continue"
    """continue: train this adapter further. merge: merge it into the base first, then tune by method. Use merge to
    change rank or method."""


_RULES: list[JsonDict] = [
    cel("self.method in ['lora', 'qlora'] || !has(self.lora)", NEEDS_LORA),
    cel("self.method == 'qlora' || !has(self.quantization)", NEEDS_QLORA),
    cel("self.method == 'freeze' || !has(self.freeze)", NEEDS_FREEZE),
    cel(
        "!has(self.adapter) || self.adapter.mode == 'merge' || self.method in ['lora', 'qlora']",
        CONTINUED,
    ),
    cel(
        "!has(self.adapter) || self.adapter.mode == 'merge' || !has(self.lora)",
        OWN_LORA,
    ),
    cel(
        "!has(self.lora) || !self.lora.dora || !has(self.quantization) || self.quantization.bits == 4",
        DORA_BITS,
    ),
    cel(
        "self.method != 'qlora' || !has(self.lora) || self.lora.init == 'default'",
        PISSA_BASE,
    ),
]


class TuningSpec(ApiModel):
    """Which weights are trained."""

    model_config = ConfigDict(json_schema_extra=validated(_RULES))

    method: Literal["lora", "qlora", "full", "freeze"] = "lora"
    """lora: small adapter on a frozen base. qlora: the same on a quantized base, to save memory. full: all weights.
    freeze: some layers."""
    lora: LoraSpec | None = None
    """Settings of methods lora and qlora. Unset: the defaults."""
    quantization: QuantizationSpec | None = None
    """Settings of method qlora. Unset: the defaults."""
    freeze: FreezeSpec | None = None
    """Settings of method freeze. Unset: the defaults."""
    adapter: AdapterSpec | None = None
    """Earlier LoRA adapter that training starts from. Unset: none, or the adapter of model.fromJob."""

    @model_validator(mode="after")
    def _settings_fit_method(self) -> Self:
        with_adapter = self.method in ("lora", "qlora")
        continued = self.adapter is not None and self.adapter.mode == "continue"
        checks = [
            (self.lora is not None and not with_adapter, NEEDS_LORA),
            (self.quantization is not None and self.method != "qlora", NEEDS_QLORA),
            (self.freeze is not None and self.method != "freeze", NEEDS_FREEZE),
            (continued and not with_adapter, CONTINUED),
            (continued and self.lora is not None, OWN_LORA),
            (
                self.lora is not None and self.lora.dora and (self.quantization or QuantizationSpec()).bits == 8,
                DORA_BITS,
            ),
            (
                self.method == "qlora" and self.lora is not None and self.lora.init == "pissa",
                PISSA_BASE,
            ),
        ]
        for wrong, message in checks:
            if wrong:
                raise ValueError(message)
        return self
