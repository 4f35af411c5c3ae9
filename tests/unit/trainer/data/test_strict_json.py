"""JSON with an unclear meaning is refused wherever a row has JSON: in a line, a list, a column, arguments, or Arrow."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finetune_trainer.data.files import DataFile, Kind
from finetune_trainer.data.formats import Layout, read
from finetune_trainer.data.readers.blocks import parse_block, read_blocks
from finetune_trainer.data.samples import RowError

GOOD = '{"instruction": "Q", "output": "A"}'
TWICE = '{"instruction": "Q", "output": "A", "output": "B"}'
DEEP = '{"a": [{"b": 1, "b": 1}]}'


def rows(file: Path, kind: Kind) -> list[Any]:
    return [value for block in read_blocks(DataFile(file, file.name, kind)) for _, value in parse_block(block)]


def rules(values: list[Any]) -> list[str | None]:
    return [value.rule if isinstance(value, RowError) else None for value in values]


@pytest.mark.parametrize("bad", [TWICE, DEEP])
def test_a_key_twice_is_an_error_of_its_row_alone(tmp_path: Path, bad: str) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([bad, GOOD, bad, GOOD]))
    (tmp_path / "a.json").write_text(f"[{GOOD}, {bad}, {GOOD}]")
    (tmp_path / "b.json").write_text("\n".join([bad, GOOD]))  # an object per line
    assert rules(rows(tmp_path / "a.jsonl", "jsonl")) == ["not-json", None, "not-json", None]
    found = rows(tmp_path / "a.json", "json")
    assert rules(found) == [None, "not-json", None]
    assert "twice, expected each key once" in str(found[1])
    assert rules(rows(tmp_path / "b.json", "json")) == ["not-json", None]


def test_a_key_twice_in_a_long_list_does_not_stop_the_reading(tmp_path: Path) -> None:
    text = [TWICE.replace('"Q"', json.dumps("Q" * 70_000)) if n % 3 else GOOD for n in range(30)]
    (tmp_path / "a.json").write_text(f"[{', '.join(text)}]")
    assert rules(rows(tmp_path / "a.json", "json")) == [None if n % 3 == 0 else "not-json" for n in range(30)]


MESSAGES = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize("inside", ['"x": 1, "x": 2', '"x": "\\ud800"'])
@pytest.mark.parametrize("column", ["messages", "tools", "arguments", "history"])
def test_json_inside_a_column_is_as_strict(column: str, inside: str) -> None:
    bad = f"[{{{inside}}}]"
    row: dict[str, Any] = {"messages": MESSAGES, "instruction": "Q", "output": "A"}
    if column == "arguments":
        call = {"name": "f", "arguments": bad[1:-1]}
        row["messages"] = [MESSAGES[0], {"role": "assistant", "tool_calls": [call]}]
    else:
        row[column] = bad
    with pytest.raises(RowError, match=rf"{column}.*(twice|half a character)") as error:
        read(row, Layout("alpaca" if column == "history" else "openai"))
    assert error.value.rule in ("not-json", "not-utf8")


def test_lists_that_are_nested_too_deeply_make_a_broken_row() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RowError, match="nested too deeply"):
        read({"messages": MESSAGES, "tools": [{"name": "f", "parameters": {"x": deep}}]}, Layout("openai"))
    while deep:  # its destructor would recurse
        deep = deep.pop()


def saved(file: Path, **columns: Any) -> list[Any]:
    pq.write_table(pa.table(columns), file)
    return rows(file, "parquet")


def as_json(*values: str | None) -> Any:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(values, pa.string()))


def test_arrows_json_is_read_at_any_depth(tmp_path: Path) -> None:
    messages = [json.dumps(message) for message in MESSAGES]
    column = pa.ListArray.from_arrays(pa.array([0, 2, 2]), as_json(*messages))
    inner = pa.StructArray.from_arrays([as_json('{"a": null}', "[1]"), pa.array(["x", None])], ["j", "t"])
    found = saved(tmp_path / "a.parquet", messages=column, tools=as_json('[{"name": "f"}]', None), more=inner)
    assert found == [
        {"messages": MESSAGES, "tools": [{"name": "f"}], "more": {"j": {"a": None}, "t": "x"}},
        {"messages": [], "tools": None, "more": {"j": [1]}},
    ]
    assert read(found[0], Layout("openai")).unused == ["more"]


@pytest.mark.parametrize("bad", [TWICE, "{", '"\\ud800"'])
def test_broken_json_of_arrow_is_an_error_of_its_row_alone(tmp_path: Path, bad: str) -> None:
    found = saved(tmp_path / "a.parquet", x=as_json(GOOD, bad, GOOD))
    assert [isinstance(row, RowError) for row in found] == [False, True, False]


def test_maps_and_other_types_of_arrow_are_read_by_their_meaning(tmp_path: Path) -> None:
    pairs = pa.array([[("k", "v"), ("n", None)], [("k", "v"), ("k", "w")]], pa.map_(pa.string(), pa.string()))
    found = saved(
        tmp_path / "a.parquet",
        arguments=pairs,
        large=pa.array([["a"], None], pa.large_list(pa.large_string())),
        coded=pa.array(["x", "y"]).dictionary_encode(),
        padded=pa.array([[{"a": "x", "b": None}], [{"a": None, "b": "y"}]]),
    )
    assert found[0] == {"arguments": {"k": "v", "n": None}, "large": ["a"], "coded": "x", "padded": [{"a": "x"}]}
    assert rules(found) == [None, "wrong-type"]


def test_a_column_without_a_name_is_reported_as_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",instruction,output,\n0,Name a tree,Oak,\n1,Name a fish,Pike,x\n")
    first, second = rows(tmp_path / "a.csv", "csv")
    assert read(first, Layout("alpaca")).unused == ["column 1 (no name)"]
    assert read(second, Layout("alpaca")).unused == ["column 1 (no name)", "column 4 (no name)"]
