"""Values that another release may have written: unknown words, longer texts, larger numbers and longer lists.

Only constraints are lifted. A value of another type is an error, also when it is read leniently.
"""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

LENIENT = object()
"""The validation context in which `finetune_api.base.ApiModel` keeps values that it does not know."""

_TEXTS = {"literal_error", "enum", "string_too_long", "string_too_short", "string_pattern_mismatch"}
_OF_TEXTS = {*_TEXTS, "value_error"}
_OF_NUMBERS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"}
_OF_MAPS = {"string_too_long", "string_pattern_mismatch", "too_long", *_OF_NUMBERS}


def are_unknown_values(error: ValidationError) -> bool:
    """Whether the API server has let pass what this release of the API would not: its CRD is another release's. Keys of
    maps do not count: the schema of a CRD does not bound them."""
    problems = error.errors(include_url=False, include_context=False)
    return all(one["type"] in _TEXTS | _OF_NUMBERS and "[key]" not in one["loc"] for one in problems)


def kept(value: Any, validate: Callable[[Any], Any]) -> Any:
    """The validated value, or the value itself if it only breaks a constraint. Raises pydantic.ValidationError."""
    try:
        return validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        broken = {problem["type"] for problem in problems}
        if any(problem["type"] in _OF_NUMBERS and isinstance(problem["input"], str) for problem in problems):
            raise  # A text in place of a number has another type, although pydantic converts it.
        if isinstance(value, str) and broken <= _OF_TEXTS:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and broken <= _OF_NUMBERS:
            return value
        if isinstance(value, list) and len(value) > 1:
            return [item for one in value for item in kept([one], validate)]
        if isinstance(value, list) and value and isinstance(value[0], str) and broken <= _OF_TEXTS:
            return value
        if isinstance(value, dict) and all(isinstance(one, str | int) for one in value.values()) and broken <= _OF_MAPS:
            return value
        raise
