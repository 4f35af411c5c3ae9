"""Jobs for the tests of the form: the examples, specs that set every field, and random jobs that the schema allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from finetune_api.crd import schema
from hypothesis import strategies as st

CHECKOUT = Path(__file__).resolve().parents[4]
HEAD = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
SPEC: dict[str, Any] = schema()["properties"]["spec"]

EXAMPLES: dict[str, dict[str, Any]] = {
    str(path.relative_to(CHECKOUT)): job
    for path in sorted((CHECKOUT / "examples").rglob("*.yaml"))
    for job in yaml.safe_load_all(path.read_text())
    if job["kind"] == HEAD["kind"]
}
FULL: list[dict[str, Any]] = [
    {**HEAD, "metadata": {"name": "job"}, "spec": spec}
    for spec in yaml.safe_load_all((CHECKOUT / "tests/controlplane/full.yaml").read_text())
]
"""Jobs in which, together, every field is set."""
STAGES = ("pt", "sft", "rm", "dpo", "ppo", "kto")


def of_schema(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema allows."""
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        return st.from_regex(node["pattern"], fullmatch=True) | st.integers(0, 10**6)
    low, high = node.get("minimum"), node.get("maximum")
    match node["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(low, high)
        case "number":
            options = {
                "exclude_min": node.get("exclusiveMinimum", False),
                "exclude_max": node.get("exclusiveMaximum", False),
            }
            return st.floats(low, high, **options)
        case "string" if "pattern" in node:
            return st.from_regex(node["pattern"], fullmatch=True)
        case "string":
            least = node.get("minLength", 0)
            return st.text(min_size=least, max_size=20) | st.sampled_from(
                ["a ", "a\nb", "\r\n", " ", "<b>&\"'", "ü 漢"]
            )
        case "array":
            return st.lists(of_schema(node["items"]), min_size=node.get("minItems", 0), max_size=3)
        case _ if "properties" in node:
            parts = {name: of_schema(sub) for name, sub in node["properties"].items()}
            needed = {name: parts.pop(name) for name in node.get("required", [])}
            return _some(needed, parts)
        case _:
            keys = st.text(max_size=10) | st.sampled_from(["app", "example.com/a.b", "a]|[0]"])
            return st.dictionaries(keys, of_schema(node["additionalProperties"]), max_size=3)


def _some(needed: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Sections with few of their optional fields, as people write them: with half of all, each job is as long as the
    schema."""

    def with_parts(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(needed | {name: optional[name] for name in names})

    if not optional:
        return st.fixed_dictionaries(needed)
    return st.lists(st.sampled_from(sorted(optional)), max_size=6, unique=True).flatmap(with_parts)


def jobs() -> st.SearchStrategy[dict[str, Any]]:
    """Whole jobs."""
    return of_schema(SPEC).map(lambda spec: {**HEAD, "metadata": {"name": "a"}, "spec": spec})


def with_text_quantities(value: Any, node: dict[str, Any]) -> Any:
    """The value with each quantity as text: 4 and "4" mean the same."""
    if node.get("x-kubernetes-int-or-string"):
        return str(value)
    if "properties" in node:
        known = node["properties"]
        return {
            name: with_text_quantities(each, known[name]) if name in known else each for name, each in value.items()
        }
    if "items" in node:
        return [with_text_quantities(each, node["items"]) for each in value]
    return value
