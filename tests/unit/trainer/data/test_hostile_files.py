"""Data files of strangers, from a ConfigMap or anywhere: with bytes replaced, removed and added, each is read, or its
rows are reported, or the job ends with an error for the user. Sizes and nesting have bounds (see test_blocks.py).

pyarrow reads an Arrow file as it is, so wrong offsets in it would crash the process that reads it: here the test's own.
"""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from finetune_api.data import DatasetSpec
from finetune_trainer.data import files
from finetune_trainer.data.readers.blocks import parse_block, read_blocks
from finetune_trainer.data.samples import RowError
from finetune_trainer.errors import InvalidData, InvalidSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
ROWS = [
    {"messages": [{"role": "user", "content": f"é {n}"}, {"role": "assistant", "content": "b" * n}]} for n in range(9)
]
CHARACTERS = [b"\x00", b"\xff\xfe", b'"', b"{", b"\n", b",", b"\r", b"\\ud800"]
STRANGE = [*CHARACTERS, b"[" * 3000, b"9" * 5000, b"PAR1", b"\x7f" * 8]


def contents() -> dict[str, bytes]:
    table = pa.Table.from_pylist(ROWS)
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with ipc.new_stream(arrow, table.schema) as stream:
        stream.write_table(table)
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    return {
        "rows.jsonl": lines,
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": b'text,more\n"a ""b"" c",1\nd,2\n',
        "rows.txt": "one\ntwo é\n".encode(),
        "rows.parquet": parquet.getvalue(),
        "rows.arrow": arrow.getvalue(),
        "rows.jsonl.gz": gzip.compress(lines),
    }


CONTENTS = contents()


@st.composite
def spoiled(draw: st.DrawFn, content: bytes) -> bytes:
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(made)))
        width = draw(st.integers(0, 8))
        made[at : at + width] = draw(st.one_of(st.sampled_from(STRANGE), st.binary(max_size=8)))
    return bytes(made)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_strange_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    spec = DatasetSpec(source=f"configmap://data/{name}", format="openai")

    @EXAMPLES
    @given(content=spoiled(CONTENTS[name]))
    def run(content: bytes) -> None:
        file.write_bytes(content)
        refusal = ""
        try:
            [found] = files.data_files(file, spec)
            for block in read_blocks(found, 4):
                for place, row in parse_block(block):
                    assert place.startswith("rows")
                    assert isinstance(row, RowError) or json.dumps(row, default=str)
        except (InvalidData, InvalidSpec) as error:
            refusal = str(error)
        assert name in (refusal or name)

    run()


NOT_UTF8 = pa.array([b"1", b"\xff", b"1"])
FAR = pa.py_buffer(np.array([0, 2, 1 << 30, 3], np.int32))
"""Offsets of three values; one is outside every buffer."""


def as_text(values: pa.Array) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(values), values.buffers())


def lists(offsets: pa.Buffer) -> pa.Array:
    return pa.Array.from_buffers(pa.list_(pa.string()), 3, [None, offsets], children=[as_text(NOT_UTF8)])


ONE_EACH = pa.py_buffer(np.arange(4, dtype=np.int32))
TEXT = as_text(NOT_UTF8)
TEXTS = {
    "text": TEXT,
    "large": pa.Array.from_buffers(pa.large_string(), 3, NOT_UTF8.cast(pa.large_binary()).buffers()),
    "view": NOT_UTF8.cast(pa.binary_view()).view(pa.string_view()),
    "in a list": lists(ONE_EACH),
    "in an object": pa.StructArray.from_arrays([TEXT], ["a"]),
    "in a map": pa.MapArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), pa.array(["a", "b", "c"]), TEXT),
    "in a dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), TEXT),
    "in runs": pa.Array.from_buffers(
        pa.run_end_encoded(pa.int32(), pa.string()), 3, [None], children=[pa.array([1, 2, 3], pa.int32()), TEXT]
    ),
    "in a union": pa.UnionArray.from_sparse(pa.array([0, 0, 0], pa.int8()), [TEXT]),
    "of a type of its own": pa.ExtensionArray.from_storage(pa.json_(), TEXT),
}
WRONG = {
    "text": pa.Array.from_buffers(pa.string(), 3, [None, FAR, pa.py_buffer(b"abcd")]),
    "a list": lists(FAR),
    "in an object": pa.StructArray.from_arrays([TEXT, lists(FAR)], ["a", "b"]),
    "a dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1 << 20, 1]), TEXT, safe=False),
}


def read_table(folder: Path, columns: dict[str, pa.Array]) -> list[str]:
    """The rule of each row that cannot be read, else nothing."""
    file = folder / "rows.arrow"
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with pa.ipc.new_file(file, batch.schema) as out:
        out.write_batch(batch)
    [found] = files.data_files(file, DatasetSpec(source="configmap://data/rows.arrow", format="openai"))
    rows = [row for block in read_blocks(found) for _, row in parse_block(block)]
    assert json.dumps([row for row in rows if not isinstance(row, RowError)], default=str)
    return [row.rule if isinstance(row, RowError) else "" for row in rows]


@pytest.mark.parametrize("kind", TEXTS)
def test_text_that_is_not_utf8_concerns_its_row(tmp_path: Path, kind: str) -> None:
    assert read_table(tmp_path, {"text": TEXTS[kind]}) == ["", "not-utf8", ""]


@pytest.mark.parametrize("kind", WRONG)
def test_text_that_is_not_utf8_hides_no_wrong_offsets(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidData, match=r"rows.arrow is not a valid arrow file: "):
        read_table(tmp_path, {"text": TEXT, "wrong": WRONG[kind]})


@pytest.mark.parametrize("value", [1 << 62, -(1 << 62)])
def test_a_time_outside_the_calendar_concerns_its_row(tmp_path: Path, value: int) -> None:
    column = pa.array([0, value, 0], pa.timestamp("us", "UTC"))
    assert read_table(tmp_path, {"time": column}) == ["", "wrong-type", ""]


@pytest.mark.parametrize(("keys", "rules"), [([b"a", b"b"], ["", ""]), ([{"a": 1}, {"a": 2}], ["wrong-type"] * 2)])
def test_maps_whose_keys_are_no_text(tmp_path: Path, keys: list[object], rules: list[str]) -> None:
    column = pa.MapArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array(keys), pa.array(["x", "y"]))
    assert read_table(tmp_path, {"map": column}) == rules


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    table = pa.table({"abcdefgh": [{"a": 1}], "b": [{"ijklmnop": 1}]})
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    file = tmp_path / "rows.arrow"
    for name in (b"abcdefgh", b"ijklmnop"):
        file.write_bytes(sink.getvalue().replace(name, b"\xff" * 8))
        [found] = files.data_files(file, DatasetSpec(source="configmap://data/rows.arrow", format="openai"))
        with pytest.raises(InvalidData, match=r"rows.arrow: the name of a column or of a field in it is not UTF-8"):
            list(read_blocks(found))
