"""A commented FineTuneJob to start from, made from the schema of the API, so that it has every field there is."""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

STAGES = ("pt", "sft", "rm", "dpo", "ppo", "kto")
WIDTH = 100
PLAIN = re.compile(r"[A-Za-z][-\w]*(://)?[-\w./@]*")
"""Text that YAML reads as text without quotes."""
DEPTH = 3
"""Levels below spec whose fields are shown; deeper fields are in docs/api-reference.md."""

FORMATS = {"pt": "text", "sft": "openai", "rm": "preference", "dpo": "preference", "ppo": "openai", "kto": "kto"}


def filled(stage: str, name: str) -> dict[str, Any]:
    """The smallest job of a stage: what has no default."""
    spec: dict[str, Any] = {
        "stage": stage,
        "model": {"source": "hf://Qwen/Qwen3-4B-Instruct-2507"},
        "datasets": [{"source": "pvc://data/train.jsonl", "format": FORMATS[stage]}],
        "training": {"epochs": 3},
        "workspace": {"claim": {"size": "50Gi"}},
    }
    if stage == "ppo":
        spec["ppo"] = {"rewardModel": {"fromJob": "my-reward-model"}}
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def commented(stage: str, name: str) -> str:
    """The same with every other field as a comment: what it does, and its default."""
    from finetune_api.crd import schema

    job = filled(stage, name)
    spec = dict(schema()["properties"]["spec"])
    others = {other for other in ("rm", "dpo", "kto", "ppo") if other != stage}
    spec["properties"] = {key: value for key, value in spec["properties"].items() if key not in others}
    head = [
        f"# A FineTuneJob of stage {stage}. Fields in comments have the defaults that they show, or are unset.",
        f"# Send it with: finetune run -f {name}.yaml",
        f"apiVersion: {job['apiVersion']}",
        f"kind: {job['kind']}",
        "metadata:",
        f"  name: {name}",
        "spec:",
    ]
    return "\n".join([*head, *_section(spec, job["spec"], 1)]) + "\n"


def _section(node: dict[str, Any], given: dict[str, Any] | None, depth: int) -> Iterator[str]:
    """The fields of a section: those that are given first, in the order of the example, then the others."""
    fields = node["properties"]
    order = [*(given or {}), *(name for name in fields if name not in (given or {}))]
    for name in order:
        if name in ("gradientCheckpointing", "images", "videos", "audios"):
            continue  # deprecated, or refused
        field = fields[name]
        indent = "  " * depth
        if depth == 1:
            yield ""
        yield from _comment(field.get("description", ""), indent)
        if given is not None and name in given:
            yield from _given(name, field, given[name], depth)
        else:
            yield from (indent + "# " + line for line in _unset(name, field, depth))


def _given(name: str, field: dict[str, Any], value: Any, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, dict):
        yield f"{indent}{name}:"
        yield from _section(field, value, depth + 1)
    elif isinstance(value, list):
        yield f"{indent}{name}:"
        lines = list(_section(field["items"], value[0], depth + 2))
        first = next(at for at, line in enumerate(lines) if not line.lstrip().startswith("#"))
        yield from (line[2:] for line in lines[:first])
        yield "  " * (depth + 1) + "- " + lines[first].strip()
        yield from lines[first + 1 :]
    else:
        yield f"{indent}{name}: {_scalar(value)}"


def _unset(name: str, field: dict[str, Any], depth: int) -> Iterator[str]:
    """A field that is left out, as YAML that works once the comment signs are removed."""
    if "properties" in field and depth < DEPTH:
        yield f"{name}:"
        for inner, node in field["properties"].items():
            yield from ("  " + line for line in _comment(node.get("description", ""), ""))
            yield from ("  " + line for line in _unset(inner, node, depth + 1))
    elif field.get("default") not in (None, {}):
        yield f"{name}: {_scalar(field['default'])}{_choices(field)}"
    else:
        yield f"{name}:{_choices(field)}"


def _choices(field: dict[str, Any]) -> str:
    return f"  # {', '.join(str(value) for value in field['enum'])}" if "enum" in field else ""


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text, WIDTH - len(indent)):
        yield f"{indent}# {line}"


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) and PLAIN.fullmatch(value) else json.dumps(value)
