"""What is said of broken rows: the first of each kind, in a message that fits into a condition."""

import pytest
from finetune_trainer.data.row import Row
from finetune_trainer.prepare.findings import EDGES, Broken, Findings, too_many_broken, warning


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
    row = Row([0] * length, [(1, 2)] if length > 1 else [(0, 1)])
    assert findings.add([row]) == ([row] if length > 1 else [])
    if length > 1:
        assert findings.lengths["rows"][bucket] == 1
        assert bucket == len(EDGES) or length <= EDGES[bucket]


def test_a_row_without_trained_tokens_is_left_out_and_counted() -> None:
    findings = Findings("x")
    assert not findings.add([Row([1, 2, 3], [], cut=7)])
    assert (findings.emptied, findings.truncated, findings.tokens_cut, findings.kept) == (1, 1, 7, 0)


def test_a_pair_counts_as_one_and_goes_with_either_answer() -> None:
    findings = Findings("x", "pairs")
    short, long, lost = Row([1, 2], [(1, 2)]), Row([1] * 40, [(1, 40)], cut=3), Row([1] * 40, [], cut=9)
    assert findings.add([short, long]) == [short, long]
    assert findings.add([short, lost]) == []
    assert findings.add([lost, short]) == []
    assert (findings.kept, findings.emptied, findings.truncated, findings.tokens_cut) == (1, 2, 3, 21)
    assert {name: [i for i, count in enumerate(counts) if count] for name, counts in findings.lengths.items()} == {
        "chosen": [0],
        "rejected": [1],
        "prompts": [0],
    }
    assert Findings.from_dict(findings.to_dict()) == findings


@pytest.mark.parametrize(("labels", "said"), [([True] * 3, "wanted"), ([False] * 3, "unwanted"), ([True, False], None)])
def test_answers_that_are_all_alike_are_warned_of(labels: list[bool], said: str | None) -> None:
    findings = Findings("x", "answers")
    findings.add([Row([1, 2], [(1, 2)], desirable=label) for label in labels])
    assert findings.unwanted == labels.count(False)
    warned = warning([findings], "")
    assert warned == (
        f"all 3 answers are {said}, and kto learns from the difference: see that the labels are right" if said else None
    )


def test_what_is_left_out_is_warned_of() -> None:
    findings = Findings("x", "prompts")
    findings.add([Row([1], [])])
    findings.add([Row([], [])])
    assert warning([findings], "they are long") == "1 of 2 prompts are left out because they are long"
