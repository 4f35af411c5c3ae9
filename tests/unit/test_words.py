"""Texts for people use plain words: no banned word or pattern in any checked file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.words import SCOPES, texts, violations


@pytest.mark.parametrize("scope", SCOPES)
def test_texts_use_plain_words(scope: str) -> None:
    paths = [path for path in Path().glob(scope) if path.is_file()]
    assert paths, f"{scope} matches no file: change SCOPES"
    messages = [
        f"{path}:{line + offset}: {words!r}: {advice}"
        for path in sorted(paths)
        for line, text in texts(path)
        for offset, words, advice in violations(text)
    ]
    assert not messages, "\n".join(messages)


@pytest.mark.parametrize(
    "text",
    [
        "What has Failed stays so: mend it and create it anew",
        "The run goes on from the newest checkpoint",
        "The user is told why",
        "What is said.",
        "Where it stands.",
        "A server of one's own",
        "They are placed on a node of its own, or one of its own",
        "It waits for this one.",
        "Name the one that failed",
        "the newest one is kept",
        "The last ones may be fewer",
        "It needn't wait",
        "Rows to train on. Of these, some count in the loss.",
        "Of a job that has ended: the artifact",
        "what becomes of it",
        "It hangs on the rank",
    ],
)
def test_a_banned_word_is_reported(text: str) -> None:
    assert list(violations(text))


@pytest.mark.parametrize(
    "text",
    [
        "Set exactly one of source and fromJob.",
        "Models that one GPU cannot hold",
        "Cause of the phase in one word, for tools.",
        "The Job has more than one pod, and at most one of them is ranked 0",
        "A tensor of zeros and ones",
        "The attempt continues on another node",
        "It depends on the amendment of the rules",
        "Names of the Secrets for hubs and buckets",
        "The number of GPUs",
        "A value that is one of the listed values",
        "The claim stays so that another job can use it",
    ],
)
def test_plain_text_is_not_reported(text: str) -> None:
    assert not list(violations(text))


def test_a_banned_phrase_is_found_across_lines() -> None:
    assert list(violations("The run\n    goes\n    on.")) == [(1, "goes on", "continue, resume")]


def test_texts_of_a_file_are_found_with_their_lines(tmp_path: Path) -> None:
    module = tmp_path / "a.py"
    module.write_text('"""Doc."""\n\n# A comment\n# of two lines\nx = f"first {1} " "second"\n')
    assert sorted(texts(module)) == [(1, "Doc."), (3, "A comment\nof two lines"), (5, "first X second")]
    chart = tmp_path / "a.yaml"
    chart.write_text("# A comment\n# of two lines\nkey: some text\n")
    assert sorted(texts(chart)) == [(1, "A comment\nof two lines"), (3, "key"), (3, "some text")]
    page = tmp_path / "a.md"
    page.write_text("# Title\n\nSome `code` and\ntext.\n\n```\ngoes on\n```\n\n- item\n- item\n")
    found = {text.strip() for _, text in texts(page)} - {""}
    assert found == {"# Title", "Some X and\ntext.", "- item"}
