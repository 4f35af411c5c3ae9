"""Rows are kept under the digest of the files that they were read from, made by the tokenizer that is named."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from finetune_api.data import DatasetSpec
from finetune_trainer.errors import InvalidData
from finetune_trainer.fetch import Places, fetch
from finetune_trainer.prepare import unchanged
from finetune_trainer.prepare.tokenizers import digest

SPEC = DatasetSpec.model_validate({"source": "pvc://data/rows", "format": "openai"})


def nothing() -> None:
    """Nobody asks to stop."""


@pytest.mark.parametrize(
    ("name", "content", "changed"),
    [
        ("a.jsonl", "first", False),
        ("a.jsonl", "other", True),
        ("a.jsonl", "first and more", True),
        ("b.jsonl", "", True),
    ],
)
def test_what_changed_while_it_was_read_is_not_kept(tmp_path: Path, name: str, content: str, changed: bool) -> None:
    folder = tmp_path / "data" / "rows"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("first")
    places = Places(tmp_path / "workspace" / "cache", {"data": tmp_path / "data"}, tmp_path, "run-1")
    read = fetch(SPEC.source, "data", places)
    (folder / name).write_text(content)
    if changed:
        with pytest.raises(InvalidData, match="pvc://data/rows changed while it was read"):
            unchanged(SPEC, read, places, nothing)
    else:
        unchanged(SPEC, read, places, nothing)


def fast(said: str) -> SimpleNamespace:
    """A tokenizer that says what it does."""
    return SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: said), special_tokens_map={})


def test_a_tokenizer_that_cannot_say_what_it_does_is_known_by_its_model() -> None:
    slow = SimpleNamespace(get_vocab=lambda: {"a": 0}, special_tokens_map={})
    assert digest(slow, "sha256:1") != digest(slow, "sha256:2")
    assert digest(fast('{"model": {}}'), "sha256:1") == digest(fast('{"model": {}}'), "sha256:2")


def test_a_tokenizer_is_the_same_however_rows_were_last_padded_and_cut_with_it() -> None:
    """As it is saved with an artifact, after it was used."""
    new, used = fast('{"model": {}, "truncation": null}'), fast('{"model": {}, "truncation": {"max_length": 4}}')
    assert digest(new, "") == digest(used, "")
    assert digest(new, "") != digest(fast('{"model": {"vocab": {}}}'), "")
