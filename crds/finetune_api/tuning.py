"""spec.tuning: which weights are trained."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", max_length=128)]


class LoraSpec(ApiModel):
    """A low-rank adapter (Hu et al., 2021): the base model stays frozen, the artifact is small."""

    rank: int = Field(default=8, ge=1, le=1024)
    """Rank r of the update. More rank, more capacity and memory."""
    alpha: int | None = Field(default=None, ge=1, le=4096)
    """Scale: the update is multiplied by alpha / rank. Unset: twice the rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    targets: list[ModuleName] = Field(default=["all-linear"], min_length=1, max_length=64)
    """Modules that get an adapter, by the last part of their name (q_proj, v_proj, ...), or all-linear for every linear
    layer but the output head."""


_RULES: list[JsonDict] = [
    cel("self.method == 'lora' || !has(self.lora)", "lora settings need method: lora"),
    cel(
        "!has(self.lora) || self.lora.targets.size() == 1 || !('all-linear' in self.lora.targets)",
        "all-linear already means every linear layer: name either it or the modules",
    ),
]


class TuningSpec(ApiModel):
    """Which weights are trained."""

    model_config = ConfigDict(json_schema_extra=validated(_RULES))

    method: Literal["lora", "full"] = "lora"
    """lora: a small adapter on a frozen base. full: every weight."""
    lora: LoraSpec | None = None
    """Settings of method lora. Unset: its defaults."""

    @model_validator(mode="after")
    def _settings_fit_method(self) -> Self:
        if self.method != "lora" and self.lora is not None:
            raise ValueError("lora settings need method: lora")
        if self.lora is not None and "all-linear" in self.lora.targets and len(self.lora.targets) > 1:
            raise ValueError("all-linear already means every linear layer: name either it or the modules")
        return self
