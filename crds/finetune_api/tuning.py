"""spec.tuning: which weights are trained."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated
from finetune_api.source import ModelSource

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", max_length=128)]

ALL_LINEAR = "all-linear means every linear layer already: name either it or the modules"
HEAD = "lm_head can't be a LoRA target: name it in lora.modulesToSave to train it whole"
CONTINUED = "an adapter can be continued by method lora or qlora only: use adapter.mode merge"
OWN_LORA = "an adapter that is continued brings its own lora settings: leave lora out, or use adapter.mode merge"
_LORA_RULES: list[JsonDict] = [
    cel("self.targets.size() == 1 || !('all-linear' in self.targets)", ALL_LINEAR),
    cel("!('lm_head' in self.targets)", HEAD),
]


class LoraSpec(ApiModel):
    """A low-rank adapter (Hu et al., 2021): the base model stays frozen, the artifact is small."""

    model_config = ConfigDict(json_schema_extra=validated(_LORA_RULES))

    rank: int = Field(default=8, ge=1, le=1024)
    """Rank r of the update. More rank, more capacity and memory."""
    alpha: int | None = Field(default=None, ge=1, le=4096)
    """Scale: the update is multiplied by alpha / rank. Unset: twice the rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    targets: list[ModuleName] = Field(default=["all-linear"], min_length=1, max_length=64)
    """Modules that get an adapter, by the last part of their name (q_proj, v_proj, ...), or all-linear for every linear
    layer but the output head."""
    rs_lora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski, 2023): high ranks learn as fast as low ones."""
    dora: bool = False
    """Train magnitude and direction apart (DoRA, Liu et al., 2024): closer to full tuning, slower."""
    init: Literal["default", "pissa"] = "default"
    """pissa: start from the principal singular vectors of the base (Meng et al., 2024). The artifact is an ordinary
    adapter of the untouched base all the same."""
    lora_plus_ratio: float | None = Field(default=None, ge=1, le=1000)
    """Learning rate of the adapter's B matrices over that of its A matrices (LoRA+, Hayou et al., 2024). Unset: 1."""
    modules_to_save: list[ModuleName] | None = Field(default=None, max_length=16)
    """Modules that are trained whole and saved with the adapter, as embed_tokens or lm_head."""

    @model_validator(mode="after")
    def _targets_fit(self) -> Self:
        if "all-linear" in self.targets and len(self.targets) > 1:
            raise ValueError(ALL_LINEAR)
        if "lm_head" in self.targets:
            raise ValueError(HEAD)
        return self


class QuantizationSpec(ApiModel):
    """How method qlora keeps the frozen base in memory (bitsandbytes)."""

    bits: Literal[4, 8] = 4
    """4: NF4 (Dettmers et al., 2023). 8: LLM.int8()."""
    double_quantization: bool = True
    """4 bit only: quantise the scales, too, which saves 0.4 bits a weight."""


class FreezeSpec(ApiModel):
    """Method freeze: some layers are trained whole, the others stay as they are."""

    model_config = ConfigDict(json_schema_extra=validated([cel("self.layers != 0", "0 layers leave nothing to train")]))

    layers: int = Field(default=2, ge=-1000, le=1000)
    """So many of the last layers are trained; a negative number: of the first layers."""
    modules: list[ModuleName] | None = Field(default=None, min_length=1, max_length=64)
    """Only these parts of the layers, as self_attn or mlp. Unset: all of them."""
    extra_modules: list[ModuleName] | None = Field(default=None, max_length=16)
    """Modules outside the layers that are trained, too, as lm_head, norm or embed_tokens."""

    @model_validator(mode="after")
    def _some_layers(self) -> Self:
        if self.layers == 0:
            raise ValueError("0 layers leave nothing to train")
        return self


class AdapterSpec(ApiModel):
    """An earlier LoRA adapter to start from."""

    source: ModelSource | None = None
    """Folder of the adapter (adapter_config.json, adapter_model.safetensors); it must fit spec.model. Unset: the
    adapter that the job of model.fromJob made."""
    mode: Literal["continue", "merge"] = "continue"
    """continue: train this adapter further. merge: merge it into the base first, then tune as the method says."""


_RULES: list[JsonDict] = [
    cel("self.method in ['lora', 'qlora'] || !has(self.lora)", "lora settings need method lora or qlora"),
    cel("self.method == 'qlora' || !has(self.quantization)", "quantization needs method qlora"),
    cel("self.method == 'freeze' || !has(self.freeze)", "freeze settings need method freeze"),
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
        "DoRA does not work on an 8 bit base: use quantization.bits 4",
    ),
    cel(
        "self.method != 'qlora' || !has(self.lora) || self.lora.init == 'default'",
        "pissa changes the base, which qlora has quantised: use method lora, or init default",
    ),
]


class TuningSpec(ApiModel):
    """Which weights are trained."""

    model_config = ConfigDict(json_schema_extra=validated(_RULES))

    method: Literal["lora", "qlora", "full", "freeze"] = "lora"
    """lora: a small adapter on a frozen base. qlora: the same on a base quantised to 4 or 8 bit. full: every weight.
    freeze: some layers."""
    lora: LoraSpec | None = None
    """Settings of methods lora and qlora. Unset: their defaults."""
    quantization: QuantizationSpec | None = None
    """Settings of method qlora. Unset: their defaults."""
    freeze: FreezeSpec | None = None
    """Settings of method freeze. Unset: their defaults."""
    adapter: AdapterSpec | None = None
    """An earlier LoRA adapter to start from."""

    @model_validator(mode="after")
    def _settings_fit_method(self) -> Self:
        with_adapter = self.method in ("lora", "qlora")
        continued = self.adapter is not None and self.adapter.mode == "continue"
        checks = [
            (self.lora is not None and not with_adapter, "lora settings need method lora or qlora"),
            (self.quantization is not None and self.method != "qlora", "quantization needs method qlora"),
            (self.freeze is not None and self.method != "freeze", "freeze settings need method freeze"),
            (continued and not with_adapter, CONTINUED),
            (continued and self.lora is not None, OWN_LORA),
            (
                self.lora is not None and self.lora.dora and (self.quantization or QuantizationSpec()).bits == 8,
                "DoRA does not work on an 8 bit base: use quantization.bits 4",
            ),
            (
                self.method == "qlora" and self.lora is not None and self.lora.init == "pissa",
                "pissa changes the base, which qlora has quantised: use method lora, or init default",
            ),
        ]
        for wrong, message in checks:
            if wrong:
                raise ValueError(message)
        return self
