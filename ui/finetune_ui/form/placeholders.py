"""The defaults that the API fills in, as the form shows them before anything is sent."""

from typing import Any

from finetune_api.defaults import apply_defaults
from finetune_api.spec import FineTuneJobSpec
from finetune_cli.starter import STAGES, filled

from finetune_ui.form.names import Values
from finetune_ui.form.reading import of_controls

DECIDING = (
    ("tuning", "method"),
    ("tuning", "lora", "rank"),
    ("training", "globalBatchSize"),
    ("training", "microBatchSize"),
    ("training", "microBatchTokens"),
    ("training", "cutoffLength"),
    ("resources", "nodes"),
    ("resources", "gpusPerNode"),
    ("ppo", "rolloutBatchSize"),
)
"""Fields that other defaults depend on."""


def defaults(values: Values) -> dict[str, Any]:
    """Path -> default of the fields whose default depends on the stage or on other fields of the form. Fields that the
    API refuses together count as unset. Empty without a stage."""
    spec = of_controls(values).get("spec")
    stage = spec.get("stage") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or stage not in STAGES:
        return {}
    for deciding in (DECIDING, ()):
        basis = filled(stage, "a")["spec"]
        for steps in deciding:
            _copy(spec, basis, steps)
        try:
            found = apply_defaults(FineTuneJobSpec.model_validate(basis, by_alias=True, by_name=False))
        except ValueError:
            continue
        return dict(
            _leaves({name: part.to_dict() for name, part in found._asdict().items() if part is not None}, "spec")
        )
    return {}


def _copy(spec: dict[str, Any], basis: dict[str, Any], steps: tuple[str, ...]) -> None:
    value: Any = spec
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    if value is None:
        return
    for step in steps[:-1]:
        basis = basis.setdefault(step, {})
    basis[steps[-1]] = value


def _leaves(value: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, each in value.items():
        here = f"{path}.{name}"
        found += _leaves(each, here) if isinstance(each, dict) else [(here, each)]
    return found
