"""What is said of broken rows: the first of each kind, in a message that fits into a condition."""

import pytest
from finetune_trainer.data.row import Row
from finetune_trainer.prepare.findings import EDGES, Broken, Findings, too_many_broken


def found(*rows: Broken) -> Findings:
    findings = Findings("pvc://data/rows.jsonl", rows=200_000)
    for row in rows:
        findings.add_broken(row)
    return findings


def test_every_kind_is_named_before_a_second_of_the_same() -> None:
    many = [Broken(f"a.jsonl:{line}", "empty", "output: found empty text") for line in range(1, 101)]
    message = too_many_broken(found(*many, Broken("a.jsonl:999", "json", "not JSON")), 0, "the report")
    assert message.startswith("101 of 200000 rows can't be used: a.jsonl:1: output: found empty text; a.jsonl:2: ")
    assert "a.jsonl:999: not JSON; and 93 more; all of them are in the report" in message


def test_the_message_fits_into_a_condition() -> None:
    rows = [Broken(f"a.jsonl:{line}", f"rule {line}", "x" * 5000) for line in range(1, 9)]
    message = too_many_broken(found(*rows), 3, "the report")
    assert len(message) <= 1024
    assert "more than the 3 that maxInvalidRows allows" in message
    assert message.endswith("all of them are in the report")


def test_only_the_first_of_each_rule_are_kept_and_all_are_counted() -> None:
    findings = found(*[Broken(f"a:{n}", "empty", "m") for n in range(50)], *[Broken("a:99", "json", "m")] * 2)
    assert (findings.broken, findings.rules, len(findings.examples)) == (52, {"empty": 50, "json": 2}, 22)
    assert Findings.from_dict(findings.to_dict()) == findings


@pytest.mark.parametrize(("length", "bucket"), [(1, 0), (32, 0), (33, 1), (64, 1), (65, 2), (1 << 20, 15), (2**21, 16)])
def test_lengths_are_counted_by_the_edges_that_the_report_names(length: int, bucket: int) -> None:
    findings = Findings("x")
    assert findings.add_row(Row([0] * length, [(1, 2)] if length > 1 else [(0, 1)])) is (length > 1)
    if length > 1:
        assert findings.lengths[bucket] == 1
        assert bucket == len(EDGES) or length <= EDGES[bucket]


def test_a_row_without_trained_tokens_is_left_out_and_counted() -> None:
    findings = Findings("x")
    assert not findings.add_row(Row([1, 2, 3], [], cut=7))
    assert (findings.emptied, findings.truncated, findings.tokens_cut, findings.kept) == (1, 1, 7, 0)
