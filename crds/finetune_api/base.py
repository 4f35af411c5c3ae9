"""Base of every API model: naming, strictness, bounded strings, CEL rules.

Attributes are snake_case in Python and camelCase in YAML. An unknown key is an error. The docstring after an attribute
is its description in ``kubectl explain`` and in the API reference: what it does, its unit, and when to change it, in at
most 160 characters.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from finetune_api import descriptions
from finetune_api.lenient import LENIENT, kept


def cel(rule: str, message: str) -> JsonDict:
    """A CEL rule of the CRD. ``kubectl apply`` prints the message, so it says what is allowed and what to do."""
    return {"rule": rule, "message": message}


def validated(rules: list[JsonDict]) -> JsonDict:
    """The ``json_schema_extra`` of a model whose rules the API server checks."""
    return {"x-kubernetes-validations": list(rules)}


class Rule(NamedTuple):
    """A condition on a section, and the message for the user if it does not hold."""

    message: str
    cel: str
    holds: Callable[[Any], bool]
    structural: bool = False
    """Whether the section means nothing without it, so that `ApiModel.read` requires it too."""


class ApiModel(BaseModel):
    """A section of the API. It is frozen: ``model_copy(update=...)`` makes a changed copy."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()
    """Conditions that the API server checks as CEL and `model_validate` checks in Python. `read` lifts them, because
    another release may have accepted what this one refuses, unless they are structural."""

    def to_dict(self) -> dict[str, Any]:
        """The section as JSON-compatible camelCase dictionary, without unset fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, warnings=False)

    @classmethod
    def read(cls, document: Any) -> Self:
        """The section as another release may have written it: fields that this release does not know are left out, and
        values that it does not know are kept as they are. Raises pydantic.ValidationError if the shape differs."""
        return cls.model_validate(document, extra="ignore", context=LENIENT)

    @field_validator("*", mode="wrap")
    @classmethod
    def _keep_unknown_values(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        return kept(value, validate) if info.context is LENIENT else validate(value)

    @model_validator(mode="after")
    def _keep_rules(self, info: ValidationInfo) -> Self:
        rules = (rule for rule in self.RULES if rule.structural or info.context is not LENIENT)
        if broken := [rule.message for rule in rules if not rule.holds(self)]:
            raise ValueError("; ".join(broken))
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        resolved = handler.resolve_ref_schema(schema)
        properties = resolved["properties"]
        for name, text in descriptions.of_fields(cls).items():
            if name in cls.model_fields:
                alias = cls.model_fields[name].alias or name
                field = properties[alias if alias in properties else name]
                # A section that says the same of itself says it once.
                if "$ref" not in field or handler.resolve_ref_schema(field).get("description") != text:
                    field["description"] = text
        if cls.RULES:
            resolved.update(validated([cel(rule.cel, rule.message) for rule in cls.RULES]))
        return schema


Text = Annotated[str, StringConstraints(max_length=1024)]
ShortText = Annotated[str, StringConstraints(max_length=253)]
Time = Annotated[str, StringConstraints(max_length=32), WithJsonSchema({"type": "string", "format": "date-time"})]
"""RFC 3339 in UTC with seconds: ``2026-01-31T12:00:00Z``."""
