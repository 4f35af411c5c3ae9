"""Messages about invalid rows, which show a row of each rule and fit into a condition; counts and warnings."""

import pytest
from finetune_trainer.data.row import Row
from finetune_trainer.data.templates.left_out import SUFFIX
from finetune_trainer.prepare.dataset_statistics import (
    BUCKETS,
    NAMES_COUNTED,
    NAMES_SHOWN,
    DatasetStatistics,
    InvalidRow,
    data_warning,
    invalid_rows_message,
    not_used,
    shown_names,
)


def found(*rows: InvalidRow) -> DatasetStatistics:
    findings = DatasetStatistics("pvc://data/rows.jsonl", rows=200_000)
    for row in rows:
        findings.add_invalid(row)
    return findings


def test_the_message_names_a_row_of_each_rule_first() -> None:
    many = [InvalidRow(f"a.jsonl:{line}", "empty", "output: found empty text") for line in range(1, 101)]
    message = invalid_rows_message(found(*many, InvalidRow("a.jsonl:999", "json", "not JSON")), 0, "the report")
    assert message.startswith("101 of 200000 rows can't be used: a.jsonl:1: output: found empty text; a.jsonl:2: ")
    assert "a.jsonl:999: not JSON; and 93 more; all of them are in the report. To leave them out" in message
    assert message.endswith("set datasets.maxInvalidRows to 101")


def test_the_message_fits_into_a_condition() -> None:
    rows = [InvalidRow(f"a.jsonl:{line}", f"rule {line}", "x" * 5000) for line in range(1, 9)]
    message = invalid_rows_message(found(*rows), 3, "the report")
    assert len(message) <= 1024
    assert "more than the 3 that maxInvalidRows allows" in message
    assert message.endswith("all of them are in the report. To leave them out, set datasets.maxInvalidRows to 8")


def test_the_first_rows_of_each_rule_are_examples_and_all_are_counted() -> None:
    findings = found(*[InvalidRow(f"a:{n}", "empty", "m") for n in range(50)], *[InvalidRow("a:99", "json", "m")] * 2)
    assert (findings.broken, findings.rules, len(findings.examples)) == (52, {"empty": 50, "json": 2}, 22)
    assert DatasetStatistics.from_dict(findings.to_dict()) == findings


@pytest.mark.parametrize(("length", "bucket"), [(1, 0), (32, 0), (33, 1), (64, 1), (65, 2), (1 << 20, 15), (2**21, 16)])
def test_lengths_are_counted_in_the_buckets_of_the_report(length: int, bucket: int) -> None:
    findings = DatasetStatistics("x")
    row = Row([0] * length, [(1, 2)] if length > 1 else [(0, 1)])
    assert findings.add_rows([row]) == ([row] if length > 1 else [])
    if length > 1:
        assert findings.lengths["rows"][bucket] == 1
        assert bucket == len(BUCKETS) or length <= BUCKETS[bucket]


def test_a_row_without_trained_tokens_is_dropped_and_counted() -> None:
    findings = DatasetStatistics("x")
    assert not findings.add_rows([Row([1, 2, 3], [], cut=7)])
    assert (findings.emptied, findings.truncated, findings.tokens_cut, findings.kept) == (1, 1, 7, 0)


def test_a_pair_is_counted_once_and_dropped_with_either_answer() -> None:
    findings = DatasetStatistics("x", "pairs")
    short, long, lost = Row([1, 2], [(1, 2)]), Row([1] * 40, [(1, 40)], cut=3), Row([1] * 40, [], cut=9)
    assert findings.add_rows([short, long]) == [short, long]
    assert findings.add_rows([short, lost]) == []
    assert findings.add_rows([lost, short]) == []
    assert (findings.kept, findings.emptied, findings.truncated, findings.tokens_cut) == (1, 2, 3, 21)
    assert {name: [i for i, count in enumerate(counts) if count] for name, counts in findings.lengths.items()} == {
        "chosen": [0],
        "rejected": [1],
        "prompts": [0],
    }
    assert DatasetStatistics.from_dict(findings.to_dict()) == findings


def test_a_pair_of_equal_rows_is_dropped_and_causes_a_warning() -> None:
    findings = DatasetStatistics("x", "pairs")
    row, other = Row([1, 2], [(1, 2)], cut=3), Row([1, 3], [(1, 2)], cut=3)
    assert findings.add_rows([row, row]) == []
    assert findings.add_rows([row, other]) == [row, other]
    assert (findings.kept, findings.alike, findings.emptied, findings.left_out) == (1, 1, 0, 1)
    assert data_warning([findings], "") == (
        "1 of 2 pairs are left out because training.cutoffLength ends before their answers differ"
    )
    assert DatasetStatistics.from_dict(findings.to_dict()) == findings


def test_the_advice_to_leave_rows_out_needs_rows_that_remain() -> None:
    findings = DatasetStatistics("x", rows=2)
    for line in (1, 2):
        assert ("maxInvalidRows" in invalid_rows_message(findings, 0, "the report")) == (findings.broken < 2)
        findings.add_invalid(InvalidRow(f"a:{line}", "empty", "m"))
    assert "maxInvalidRows" not in invalid_rows_message(findings, 0, "the report")


def test_unused_names_are_counted_and_their_number_is_bounded() -> None:
    findings, other = DatasetStatistics("x"), DatasetStatistics("y")
    findings.add_unused({"id": 3, "source": 5})
    findings.add_unused({"id": 4})
    other.add_unused({"id": 1})
    assert not_used([findings, other]) == {"id": 8, "source": 5}
    assert shown_names(not_used([findings, other])) == "id (8 rows), source (5 rows)"
    other.add_unused({f"key {number}": 1 for number in range(10_000)})
    assert len(other.not_used) == NAMES_COUNTED + 1
    assert sum(other.not_used.values()) == 10_001
    assert shown_names(not_used([other])).endswith(f", and {NAMES_COUNTED - NAMES_SHOWN + 1} more")
    assert DatasetStatistics.from_dict(other.to_dict()) == other


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("messages[].train", True),
        ("reasoning", True),
        (f"system messages{SUFFIX}", True),
        (f"parts of tools{SUFFIX}", True),
        ("id", False),
        (f"reasoning_content{SUFFIX}", False),
        (f"tool_calls[].id{SUFFIX}", False),
    ],
)
def test_what_may_matter_and_is_not_used_causes_a_warning(name: str, warned: bool) -> None:
    findings = DatasetStatistics("x", kept=3)
    findings.add_unused({name: 2})
    assert data_warning([findings], "") == (f"not used although it may matter: {name} (2 rows)" if warned else None)


@pytest.mark.parametrize(("labels", "said"), [([True] * 3, "wanted"), ([False] * 3, "unwanted"), ([True, False], None)])
def test_equal_labels_cause_a_warning(labels: list[bool], said: str | None) -> None:
    findings = DatasetStatistics("x", "answers")
    findings.add_rows([Row([1, 2], [(1, 2)], desirable=label) for label in labels])
    assert findings.unwanted == labels.count(False)
    warned = data_warning([findings], "")
    assert warned == (
        f"all 3 answers are {said}, and kto learns from the difference: check that the labels are right"
        if said
        else None
    )


def test_dropped_rows_cause_a_warning() -> None:
    findings = DatasetStatistics("x", "prompts")
    findings.add_rows([Row([1], [])])
    findings.add_rows([Row([], [])])
    assert data_warning([findings], "they are long") == "1 of 2 prompts are left out because they are long"
