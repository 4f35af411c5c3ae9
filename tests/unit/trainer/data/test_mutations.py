"""Rows that differ from valid rows as data of users does: every text is trained, counted as not used, or refused."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from finetune_api.data import TemplateSpec
from finetune_trainer.data.readers.blocks import Block
from finetune_trainer.data.templates import ChatTemplate, named_templates
from finetune_trainer.data.templates.left_out import SUFFIX
from finetune_trainer.prepare.worker_pool import BlockResult, RowFormat, Tokenization, tokenize_block
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.trainer.tokenizers import tokenizer

TOKENIZER = tokenizer(named_templates.text("qwen3"))
TEMPLATE = ChatTemplate(TOKENIZER, frozenset(named_templates.stop_ids("qwen3", TOKENIZER)), TemplateSpec(name="qwen3"))
TWICE = "\x01"
"""The end of a key that is written without it, so that an object has the key twice."""

TOOL = {"type": "function", "function": {"name": "rain", "description": "tells rain", "parameters": {"type": "object"}}}
CALL = {"id": "call-9", "type": "function", "function": {"name": "rain", "arguments": {"city": "Bergen"}}}
CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer", "reasoning_content": "first thought"},
    {"role": "user", "content": "second question", "name": "Ada"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "tool result", "tool_call_id": "call-9", "name": "rain"},
    {"role": "assistant", "content": "second answer", "weight": 1},
]
SHARED = [
    {"from": "human", "value": "first question"},
    {"from": "function_call", "value": json.dumps([{"name": "rain", "arguments": {"city": "Bergen"}}])},
    {"from": "observation", "value": "tool result"},
    {"from": "gpt", "value": "first answer"},
]
Q = {"role": "user", "content": "first question"}
VALID: dict[str, list[dict[str, Any]]] = {
    "openai": [
        {"messages": CHAT, "tools": [TOOL], "id": "row-1"},
        {"messages": json.dumps(CHAT[:3])},
        {"prompt": CHAT[:2], "completion": [{"role": "assistant", "content": "an answer"}]},
    ],
    "sharegpt": [{"conversations": SHARED, "system": "be kind", "tools": json.dumps([TOOL])}],
    "alpaca": [
        {"instruction": "a task", "input": "more", "output": "an answer", "system": "be kind", "history": [["q", "r"]]},
        {"instruction": "a task", "output": "an answer"},
    ],
    "text": [{"text": "a document", "source": "a book"}],
    "preference": [
        {"prompt": "a task", "chosen": "good answer", "rejected": "bad answer", "system": "be kind"},
        {"prompt": [Q], "chosen": [{"role": "assistant", "content": "good answer"}], "rejected": "bad answer"},
        {
            "prompt": "first question",
            "chosen": [Q, {"role": "assistant", "content": "good answer"}],
            "rejected": [Q, {"role": "assistant", "content": "bad answer"}],
        },
        {
            "conversations": SHARED[:1],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
    "kto": [
        {"prompt": "a task", "completion": "an answer", "label": True},
        {"messages": CHAT[:3], "kto_tag": False},
        {"instruction": "a task", "input": "more", "output": "an answer", "label": "true"},
    ],
}
NAMES = [
    *("role", "content", "from", "value", "messages", "conversations", "system", "tools", "functions", "tool_calls"),
    *("function_call", "tool_call_id", "name", "reasoning", "reasoning_content", "thinking", "weight", "train", "text"),
    *("refusal", "images", "audio", "instruction", "input", "output", "history", "prompt", "completion", "chosen"),
    *("rejected", "label", "kto_tag", "type", "function", "arguments", "parameters", "id", "query", "unknown"),
]
ROLES = ["user", "human", "assistant", "gpt", "system", "developer", "tool", "observation", "function"]
ROLES += ["function_call", "critic", "User"]
FRESH = st.integers(100, 999).map(lambda number: f"new text {number}")
PART = st.sampled_from([{"type": "image_url", "image_url": {"url": "file.png"}}, {"type": "text"}, {"text": "a part"}])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below the row."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, format: str) -> dict[str, Any]:
    """A valid row after one to three mutations."""
    row: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(VALID[format])))
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(list(places(row))))
        parent: Any = row
        for step in parents:
            parent = parent[step]
        MUTATIONS[draw(st.sampled_from(sorted(MUTATIONS)))](draw, parent, key)
        if not row:
            break
    return row


def _rename(draw: st.DrawFn, parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[draw(st.sampled_from(NAMES))] = parent.pop(key)


def _add(draw: st.DrawFn, parent: Any, _key: Any) -> None:
    if isinstance(parent, dict):
        fresh = draw(FRESH)
        value: Any = draw(st.sampled_from([fresh, [fresh], {"name": fresh}, [["q", fresh]], [{"role": "user"}, fresh]]))
        parent.setdefault(draw(st.sampled_from(NAMES)), value)


def _double(draw: st.DrawFn, parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[f"{key}{TWICE}"] = draw(FRESH)
    else:
        parent.insert(key, copy.deepcopy(parent[key]))


def _nest(draw: st.DrawFn, parent: Any, key: Any) -> None:
    parent[key] = draw(st.sampled_from([[parent[key]], {"value": parent[key]}, {"content": parent[key]}]))


def _retype(draw: st.DrawFn, parent: Any, key: Any) -> None:
    value = parent[key]
    written = json.dumps(value) if isinstance(value, dict | list) else f"{value}"
    parent[key] = draw(st.sampled_from([written, 7, 0.5, True, [], {}, None, "", " \n"]))


def _parts(draw: st.DrawFn, parent: Any, key: Any) -> None:
    more = draw(st.lists(PART, max_size=1))
    parent[key] = [{"type": "text", "text": parent[key]}, *copy.deepcopy(more)]


def _text(draw: st.DrawFn, parent: Any, key: Any) -> None:
    parent[key] = draw(st.sampled_from(ROLES) if key in ("role", "from") else FRESH)


def _remove(_draw: st.DrawFn, parent: Any, key: Any) -> None:
    del parent[key]


MUTATIONS: dict[str, Callable[[st.DrawFn, Any, Any], None]] = {
    "rename": _rename,
    "add": _add,
    "double": _double,
    "nest": _nest,
    "retype": _retype,
    "parts": _parts,
    "text": _text,
    "remove": _remove,
}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(names of the keys on the way, text) of every text that a format does not define."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    elif isinstance(value, str) and value.strip():
        last = path[-1] if path else ""
        defined = (
            (last in ("role", "from") and value in ROLES)
            or (last == "type" and value in ("text", "function"))
            or (last in ("label", "kto_tag") and value.lower() in ("true", "false"))
        )
        if not defined:
            yield path, value


COVERS = {
    "system messages": {"content", "value", "system", "text"},
    "user messages": {"content", "value"},
    "answers": {"content", "value"},
    "tool messages": {"content", "value"},
    "reasoning_content": {"reasoning_content", "reasoning", "thinking"},
    "tool_calls[].id": {"id"},
    "parts of tools": {"tools", "functions"},
}
"""What a template leaves out -> keys of the data that hold it."""


IN_ANSWERS = {"content", "value", "tool_calls", "function_call", *COVERS["reasoning_content"]}


def covered(path: tuple[str, ...], unused: list[str]) -> bool:
    """Whether the report says that the text at a path is not used."""
    for name in unused:
        if name.endswith(SUFFIX):
            base = name.removesuffix(SUFFIX)
            if COVERS.get(base, {base}) & set(path):
                return True
        elif name == "the last answer" and set(path) & IN_ANSWERS:
            return True
        else:
            keys = tuple(key for key in re.split(r"\[\]|\.", name) if key)
            if path[: len(keys)] == keys:
                return True
    return False


def lost(row: dict[str, Any], text: str, unused: list[str]) -> list[tuple[tuple[str, ...], str]]:
    """Texts of the row that are neither in the trained text nor reported as not used."""
    return [missing for path, leaf in leaves(row) for missing in _missing(path, leaf, text, unused)]


def _missing(path: tuple[str, ...], leaf: str, text: str, unused: list[str]) -> list[tuple[tuple[str, ...], str]]:
    """The leaf, or those of its parts that are missing: it may be JSON, whose texts may be JSON, too."""
    if leaf.strip() in text or json.dumps(leaf)[1:-1] in text or covered(path, unused):
        return []
    try:
        inner = json.loads(leaf)
    except ValueError:
        inner = None
    if not isinstance(inner, dict | list):
        return [(path, leaf)]
    return [missing for p, part in leaves(inner, path) for missing in _missing(p, part, text, unused)]


def written(row: dict[str, Any]) -> str:
    """The row as JSON, in which an object may have a key twice."""
    return json.dumps(row).replace("\\u0001", "")


def has_a_key_twice(line: str) -> bool:
    found: list[bool] = []
    json.loads(line, object_pairs_hook=lambda pairs: found.append(len(dict(pairs)) < len(pairs)))
    return any(found)


def prepared(line: str, format: str, stage: str) -> BlockResult:
    tokenization = Tokenization(TOKENIZER, None if stage == "pt" else TEMPLATE, 0)
    row_format = RowFormat(format, None, None, prompts_only=stage == "ppo")
    return tokenize_block(Block("rows.jsonl", "jsonl", 1, line.encode()), row_format, tokenization)


STAGES = {"openai": "sft", "sharegpt": "sft", "alpaca": "sft", "text": "pt", "preference": "dpo", "kto": "kto"}


def check(row: dict[str, Any], format: str, stage: str) -> None:
    line = written(row)
    result = prepared(line, format, stage)
    assert result.rows == 1
    assert len(result.groups) + len(result.invalid) == 1
    if has_a_key_twice(line):
        assert [invalid.rule for invalid in result.invalid] == ["not-json"]
    for group in result.groups:
        text = "\n".join(TOKENIZER.decode(made.input_ids) for made in group)
        assert lost(json.loads(line), text, list(result.unused)) == []


@pytest.mark.parametrize("format", VALID)
def test_no_text_of_a_valid_row_is_lost(format: str) -> None:
    for row in VALID[format]:
        assert not prepared(written(row), format, STAGES[format]).invalid
        check(row, format, STAGES[format])


@pytest.mark.parametrize("format", VALID)
def test_no_text_of_a_mutated_row_is_lost(format: str) -> None:
    @settings(max_examples=500, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(format))
    def every(row: dict[str, Any]) -> None:
        check(row, format, STAGES[format])

    every()
    assert STAGES[format]


@pytest.mark.parametrize("format", ["openai", "sharegpt", "alpaca", "preference"])
def test_no_text_of_a_mutated_prompt_is_lost(format: str) -> None:
    @settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(format))
    def every(row: dict[str, Any]) -> None:
        check(row, format, "ppo")

    every()
    assert format in VALID


def test_no_depth_of_nesting_ends_in_a_stack_trace() -> None:
    rules = set()
    for depth in range(500, 1100, 5):
        deep = f"{'[' * depth}{']' * depth}"
        tool = f'{{"name": "f", "parameters": {deep}}}'
        result = prepared(f'{{"messages": {json.dumps(CHAT[:3])}, "tools": [{tool}]}}', "openai", "sft")
        assert len(result.groups) + len(result.invalid) == 1
        rules |= {invalid.rule for invalid in result.invalid} or {"trained"}
    assert "trained" in rules
    assert "not-json" in rules
