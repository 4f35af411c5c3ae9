"""All data sets of a job: every broken row is found, and named by file and line."""

import json
from pathlib import Path

import pytest
from finetune_api.data import DatasetSpec
from finetune_trainer.data import dataset
from finetune_trainer.data.dataset import TrainingData
from finetune_trainer.data.template import Template
from finetune_trainer.errors import InvalidData, InvalidSpec, NotFound, Preempted
from finetune_trainer.run import Folders

from tests.trainer import tiny

GOOD = json.dumps(tiny.conversation(0))


def load(tmp_path: Path, *files: str, cutoff: int = 1000, format_name: str = "openai") -> TrainingData:
    nowhere = tmp_path / "nowhere"
    folders = Folders(tmp_path, nowhere, nowhere, nowhere, nowhere, nowhere, {"data": tmp_path})
    specs = [DatasetSpec.model_validate({"source": f"pvc://data/{file}", "format": format_name}) for file in files]
    tokenizer = tiny.tokenizer()
    return dataset.load(specs, folders, Template(tokenizer, frozenset({tokenizer.eos_token_id})), cutoff)


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    tiny.save_rows(tmp_path / "a.jsonl", 3)
    (tmp_path / "b.json").write_text(json.dumps([tiny.conversation(5), tiny.conversation(6)]))
    data = load(tmp_path, "a.jsonl", "b.json")
    assert len(data.rows) == 5
    assert list(data.digests) == ["pvc://data/a.jsonl", "pvc://data/b.json"]
    assert "5 rows" in data.describe()


def test_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\n\n  \n{GOOD}\n".encode())
    assert len(load(tmp_path, "a.jsonl").rows) == 2


def test_the_first_broken_rows_are_named_and_all_are_counted(tmp_path: Path) -> None:
    lines = [GOOD, '{"messages": ', GOOD, *['{"messages": 3}'] * 6, GOOD]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(InvalidData) as error:
        load(tmp_path, "a.jsonl")
    message = str(error.value)
    assert message.startswith("7 of 10 rows can't be used: a.jsonl:2: not JSON: Expecting value")
    assert "a.jsonl:4: messages: found int 3, expected a non-empty list" in message
    assert message.count("a.jsonl:") == 5
    assert message.endswith("; and 2 more")


def test_rows_of_a_list_are_named_by_index(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps([tiny.conversation(0), {"messages": []}]))
    with pytest.raises(InvalidData, match=r"1 of 2 rows can't be used: b\.json\[1\]: messages"):
        load(tmp_path, "b.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.json", b'[{"a": 1},\n{]', r"b\.json:2: not JSON"),
        ("b.json", f"{GOOD}\n{GOOD}".encode(), r"one object a line must be named \.jsonl"),
        ("b.json", GOOD.encode(), r"holds one dict, expected a list"),
        ("a.jsonl", b"\xff\xfe\x00", r"a\.jsonl is not UTF-8 text"),
        ("a.jsonl", b"", r"hold no rows: pvc://data/a\.jsonl"),
        ("b.json", b"[]", r"hold no rows"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=message):
        load(tmp_path, name)


def test_another_kind_of_file_is_refused_before_any_is_read(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(InvalidSpec, match=r"rows\.csv ends in \.csv; a data set is a \.jsonl file"):
        load(tmp_path, "broken.jsonl", "rows.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidSpec, match=r"is a folder; name one \.json or \.jsonl file in it\. It has: nothing"):
        load(tmp_path, "folder")
    with pytest.raises(NotFound, match=r"missing\.jsonl: no such file"):
        load(tmp_path, "missing.jsonl")


def test_rows_that_lose_every_trained_token_are_left_out_and_counted(tmp_path: Path) -> None:
    long = tiny.conversation(0)
    long["messages"][0]["content"] *= 40
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\n{json.dumps(long)}\n")
    data = load(tmp_path, "a.jsonl", cutoff=60)
    assert (len(data.rows), data.cut, data.emptied) == (1, 1, 1)
    with pytest.raises(InvalidData, match="cutoffLength is 9 tokens, and in every one of 2 rows"):
        load(tmp_path, "a.jsonl", cutoff=9)


def test_a_stop_is_noticed_while_reading(tmp_path: Path) -> None:
    def stop() -> None:
        raise Preempted("stop")

    tiny.save_rows(tmp_path / "a.jsonl", 3)
    folders = Folders(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, {"data": tmp_path})
    spec = DatasetSpec.model_validate({"source": "pvc://data/a.jsonl", "format": "openai"})
    with pytest.raises(Preempted):
        dataset.load([spec], folders, Template(tiny.tokenizer(), frozenset({2})), 100, stop)


def test_alpaca_rows_come_out_as_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"instruction": "say alpha", "output": "alpha"}))
    assert load(tmp_path, "a.jsonl", format_name="alpaca").trained_tokens > 1
