"""Building blocks of every API model: naming, strictness, bounded strings, CEL rules.

Attributes are snake_case in Python and camelCase in YAML; an unknown key is an error; the docstring under an attribute
is its description in ``kubectl explain`` and in the API reference.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict


class ApiModel(BaseModel):
    """A section of the API. Frozen: whoever wants a changed copy says ``model_copy(update=...)``."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def to_dict(self) -> dict[str, Any]:
        """The section as JSON-ready camelCase, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def cel(rule: str, message: str) -> JsonDict:
    """One CEL rule of the CRD. The message is what ``kubectl apply`` prints: say what is allowed."""
    return {"rule": rule, "message": message}


def validated(rules: list[JsonDict]) -> JsonDict:
    """What a model's ``json_schema_extra`` says to have the API server check these rules."""
    return {"x-kubernetes-validations": list(rules)}


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

Quantity = Annotated[
    str,
    BeforeValidator(_as_text),
    StringConstraints(pattern=QUANTITY, max_length=32),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY,
            "maxLength": 32,
        }
    ),
]
"""A Kubernetes quantity, as ``4``, ``500m`` or ``16Gi``."""

DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]
LabelKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$", max_length=317
    ),
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$", max_length=63)]
Text = Annotated[str, StringConstraints(max_length=1024)]
ShortText = Annotated[str, StringConstraints(max_length=253)]
Time = Annotated[str, StringConstraints(max_length=32), WithJsonSchema({"type": "string", "format": "date-time"})]
"""RFC 3339 in UTC, to the second: ``2026-01-31T12:00:00Z``."""

_UNITS = {"": 1.0, "m": 1e-3} | {
    unit: base**power
    for base, units in ((1000.0, ("k", "M", "G", "T", "P")), (1024.0, ("Ki", "Mi", "Gi", "Ti", "Pi")))
    for power, unit in enumerate(units, start=1)
}


def quantity(text: str) -> float:
    """The number behind a Kubernetes quantity: bytes for memory, CPUs for cpu."""
    number = text.rstrip("mkMGTPi")
    return float(number) * _UNITS[text[len(number) :]]
