"""Rows of files: they are read as written, for every kind, compression and block size; errors have their place."""

import bz2
import csv
import errno
import gzip
import io
import json
import lzma
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from finetune_trainer.data.files import Compression, DataFile, Kind
from finetune_trainer.data.readers import blocks
from finetune_trainer.data.readers.blocks import parse_block, read_blocks
from finetune_trainer.data.samples import RowError
from finetune_trainer.errors import AccessDenied, InvalidData
from hypothesis import given, settings
from hypothesis import strategies as st

COMPRESS: dict[Compression | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


def read(file: DataFile, size: int = 512) -> list[tuple[str, Any]]:
    """As preparation does it: blocks cross to another process."""
    return [row for block in read_blocks(file, size) for row in parse_block(pickle.loads(pickle.dumps(block)))]


def write(folder: Path, name: str, data: bytes | str, compression: Compression | None = None) -> DataFile:
    file = folder / (name + (f".{compression}" if compression else ""))
    file.write_bytes(COMPRESS[compression](data.encode() if isinstance(data, str) else data))
    return DataFile(file, file.name, file.name.split(".")[1], compression)  # type: ignore[arg-type]


def broken(found: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(place, row.rule) for place, row in found if isinstance(row, RowError)]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), max_size=12)


def as_csv(records: list[dict[str, str]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["a", "b"])
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def as_table(records: list[dict[str, str]]) -> pa.Table:
    return pa.Table.from_pylist(records, pa.schema([("a", pa.string()), ("b", pa.string())]))


def as_parquet(records: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(as_table(records), sink, row_group_size=3)
    return sink.getvalue()


def as_arrow(records: list[dict[str, str]], new: Callable[..., Any]) -> bytes:
    sink = io.BytesIO()
    table = as_table(records)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return sink.getvalue()


def as_lines(values: list[Any]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


PIECES = st.sampled_from([1, 7, 4096])
SIZES = st.sampled_from([1, 2, 5, 512])
COMPRESSIONS = st.sampled_from(list(COMPRESS))


@settings(max_examples=60)
@given(st.lists(VALUES, max_size=12), st.sampled_from(["jsonl", "json", "indented"]), COMPRESSIONS, PIECES, SIZES)
def test_json_is_read_as_written(
    values: list[Any], kind: str, compression: Compression | None, piece: int, size: int
) -> None:
    text = as_lines(values) if kind == "jsonl" else json.dumps(values, indent=2 if kind == "indented" else None)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.data.readers.decompress.PIECE", piece)
        file = write(Path(folder), "x.jsonl" if kind == "jsonl" else "x.json", text, compression)
        found = read(file, size)
    assert [row for _, row in found] == values
    expected = [f":{i + 1}" if kind == "jsonl" else f"[{i}]" for i in range(len(values))]
    assert [place.removeprefix(file.name) for place, _ in found] == expected


@settings(max_examples=60)
@given(RECORDS, st.sampled_from(["csv", "parquet", "arrow", "stream"]), COMPRESSIONS, PIECES, SIZES)
def test_tables_are_read_as_written(
    records: list[dict[str, str]], kind: str, compression: Compression | None, piece: int, size: int
) -> None:
    make: dict[str, Callable[[], bytes]] = {
        "csv": lambda: as_csv(records).encode(),
        "parquet": lambda: as_parquet(records),
        "arrow": lambda: as_arrow(records, pa.ipc.new_file),
        "stream": lambda: as_arrow(records, pa.ipc.new_stream),
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.data.readers.decompress.PIECE", piece)
        file = write(Path(folder), f"x.{'arrow' if kind == 'stream' else kind}", make[kind](), compression)
        found = read(file, size)
    assert [row for _, row in found] == records
    if kind != "csv":
        assert [place for place, _ in found] == [f"{file.name}[{i}]" for i in range(len(records))]


@pytest.mark.parametrize("compression", COMPRESS)
def test_text_has_a_row_per_line_that_is_not_empty(tmp_path: Path, compression: Compression | None) -> None:
    file = write(tmp_path, "x.txt", "\ufeffone\r\n\n  two\n \nthree", compression)
    assert read(file, 1) == [
        (f"{file.name}:1", {"text": "one"}),
        (f"{file.name}:3", {"text": "  two"}),
        (f"{file.name}:5", {"text": "three"}),
    ]


@pytest.mark.parametrize("size", [1, 2, 512])
def test_broken_lines_are_errors_and_the_others_are_read(tmp_path: Path, size: int) -> None:
    lines = [b'{"a": 1}', b"", b"{'a': 1}", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 100_000, b"1" * 5000, b"[2]"]
    found = read(write(tmp_path, "x.jsonl", b"\n".join(lines)), size)
    assert broken(found) == [
        ("x.jsonl:3", "not-json"),
        ("x.jsonl:4", "not-utf8"),
        ("x.jsonl:5", "not-utf8"),
        ("x.jsonl:6", "not-json"),
        ("x.jsonl:7", "not-json"),
    ]
    assert (found[0], found[-1]) == (("x.jsonl:1", {"a": 1}), ("x.jsonl:8", [2]))


def test_broken_csv_records_have_the_line_on_which_they_begin(tmp_path: Path) -> None:
    records = b'q,a\n"two\nlines",1\n\nonly\n"x"y,1\n\xff,1\n5" pipe,1\n"open,1\nend,2\n'
    found = read(write(tmp_path, "x.csv", records))
    assert broken(found) == [
        ("x.csv:5", "wrong-columns"),
        ("x.csv:6", "not-csv"),
        ("x.csv:7", "not-utf8"),
        ("x.csv:9", "not-csv"),
    ]
    assert [found[0], found[4]] == [("x.csv:2", {"q": "two\nlines", "a": "1"}), ("x.csv:8", {"q": '5" pipe', "a": "1"})]
    assert "never closed" in str(found[-1][1])


def test_fields_of_csv_may_be_long(tmp_path: Path) -> None:
    file = write(tmp_path, "x.csv", "text\n" + "x" * 1_000_000 + "\n")
    assert len(read(file)[0][1]["text"]) == 1_000_000


@pytest.mark.parametrize(("name", "text"), [("x.jsonl", '{"a": "%s"}\n'), ("x.txt", "%s\n")])
def test_a_line_that_is_too_long_is_a_row_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setattr(blocks, "ROW_LIMIT", 3 << 20)
    file = write(tmp_path, name, text % "b" + text % ("x" * (5 << 20)) + text % "e", "gz")
    found = read(file)
    assert broken(found) == [(f"{file.name}:2", "too-large")]
    assert [place for place, _ in found] == [f"{file.name}:{line}" for line in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", '[\n{"a": "%s"}]', r"x.json:2: not JSON: a row of more than 1 MiB at column 1"),
        (
            "x.csv",
            'a\n1\n"%s',
            r"x.csv:3: a row of more than 1 MiB begins here, which is the limit. Check whether",
        ),
    ],
)
def test_a_row_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, words: str
) -> None:
    monkeypatch.setattr(blocks, "ROW_LIMIT", 1 << 20)
    with pytest.raises(InvalidData) as error:
        read(write(tmp_path, name, text % ("line\\n" * (1 << 20))))
    assert words in str(error.value)


def test_large_and_undecodable_rows_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROW_LIMIT", 1 << 20)
    text = pa.array([b"a", b"\xff", b"x" * (2 << 20), b"b"], pa.binary()).view(pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table({"t": text}), sink)
    found = read(write(tmp_path, "x.parquet", sink.getvalue()))
    assert broken(found) == [("x.parquet[1]", "not-utf8"), ("x.parquet[2]", "too-large")]
    assert [found[0], found[3]] == [("x.parquet[0]", {"t": "a"}), ("x.parquet[3]", {"t": "b"})]


def test_null_in_a_nested_object_of_a_table_is_a_missing_field(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"m": [{"a": 1, "b": None}, {"b": 2}], "n": None}]), sink)
    assert read(write(tmp_path, "x.parquet", sink.getvalue())) == [
        ("x.parquet[0]", {"m": [{"a": 1}, {"b": 2}], "n": None})
    ]


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_truncated_archive_is_named(tmp_path: Path, compression: Compression, kind: Kind) -> None:
    file = write(tmp_path, f"x.{kind}", b"".join(b'{"a": %d}\n' % i for i in range(1000)), compression)
    file.path.write_bytes(file.path.read_bytes()[:-20])
    with pytest.raises(InvalidData, match=rf"x.{kind}.{compression} is a damaged or truncated archive"):
        read(file)


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
def test_an_archive_of_something_else_is_named(tmp_path: Path, compression: Compression) -> None:
    file = write(tmp_path, "x.jsonl", '{"a": 1}\n')
    with pytest.raises(InvalidData, match=r"x.jsonl is a damaged or truncated archive"):
        read(DataFile(file.path, file.name, "jsonl", compression))


@pytest.mark.parametrize("kind", ["jsonl", "txt", "json", "parquet"])
def test_an_archive_bomb_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("finetune_trainer.data.readers.decompress.ALWAYS_ALLOWED", 1 << 20)
    file = write(tmp_path, f"x.{kind}", b" " * (20 << 20), "zst")
    with pytest.raises(InvalidData, match=rf"x.{kind}.zst decompresses to more than 500 times its size"):
        read(file)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "x.json",
            '{\n"a": [1]}',
            "x.json:1: found '{', expected a list of objects: [{...}, ...], or an object per line",
        ),
        ("x.json", " ", "x.json is empty, expected a list of objects"),
        ("x.json", '[\n{"a": 1}\n{"a": 2}]', "x.json:3: not JSON: expected ',' or ']' after a row at column 1"),
        ("x.json", '[{"a": 1},\n  {"a" 2}]' + " " * 200, "x.json:2: not JSON: Expecting ':' delimiter at column 8"),
        ("x.json", '[{"a": 1},', "x.json:1: not JSON: Expecting value at column 11"),
        ("x.json", '[{"a": 1}', "x.json:1: not JSON: the file ends within the list at column 10"),
        ("x.json", "[1]]", "x.json:1: not JSON: expected nothing after the list at column 4"),
        ("x.json", "[" * 100_000, "x.json:1: not JSON: lists or objects in a row are nested too deeply"),
        ("x.csv", "", "x.csv is empty, expected a first line with the names of the columns"),
        ("x.csv", "a,b,a\n", "x.csv:1: two columns are named 'a'"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), "x.jsonl is UTF-16 text: save it as UTF-8"),
        ("x.parquet", "PAR1 not", "x.parquet is not a valid parquet file: "),
        ("x.arrow", "ARROW1 not", "x.arrow is not a valid arrow file: "),
        ("x.arrow", "not arrow", "x.arrow is not a valid arrow file: "),
        ("x.parquet", "", "x.parquet is not a valid parquet file: "),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    with pytest.raises(InvalidData) as error:
        read(write(tmp_path, name, text))
    assert words in str(error.value)


@pytest.mark.parametrize("piece", [1, 4096])
@pytest.mark.parametrize("compression", [None, "gz"])
def test_lines_in_a_file_named_json(
    tmp_path: Path, piece: int, compression: Compression | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.data.readers.decompress.PIECE", piece)
    file = write(tmp_path, "x.json", ' \n{"a": 1}\n{"a": \n{"a": 3}', compression)
    found = read(file)
    assert [found[0], found[2]] == [(f"{file.name}:2", {"a": 1}), (f"{file.name}:4", {"a": 3})]
    assert broken(found) == [(f"{file.name}:3", "not-json")]


def test_a_row_of_json_that_is_not_utf8(tmp_path: Path) -> None:
    found = read(write(tmp_path, "x.json", b'[{"a": "\xff"}, {"a": "\\ud800"}, {"a": "\\ud83d\\ude00"}]'))
    assert broken(found) == [("x.json[0]", "not-utf8"), ("x.json[1]", "not-utf8")]
    assert found[2] == ("x.json[2]", {"a": "😀"})


def test_a_file_that_is_closed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(AccessDenied, match=r"data.jsonl"):
        list(read_blocks(DataFile(tmp_path / "data.jsonl", "data.jsonl", "jsonl")))


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "txt"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    """48 MiB are read with a few: several pieces and blocks, not the file."""
    row = {"json": b'{"a": "%s"},\n', "jsonl": b'{"a": "%s"}\n', "csv": b'"%s\n"\n', "txt": b"%s\n"}[kind] % (
        b"x" * 1000
    )
    path = tmp_path / f"x.{kind}"
    with path.open("wb") as out:
        out.write({"json": b"[", "csv": b"a\n"}.get(kind, b""))
        for _ in range(48):
            out.write(row * 1000)
        out.write({"json": b"1]"}.get(kind, b""))
    tracemalloc.start()
    file = DataFile(path, path.name, kind)  # type: ignore[arg-type]
    count = sum(len(list(parse_block(block))) for block in read_blocks(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count >= 48_000
    assert peak < 16 << 20
