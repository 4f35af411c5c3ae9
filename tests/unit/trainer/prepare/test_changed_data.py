"""Cached rows match their key: the digest of their files, and the digest of their tokenizer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_api.data import DatasetSpec
from finetune_trainer.errors import InvalidData
from finetune_trainer.fetch import FetchContext, fetch
from finetune_trainer.prepare.inputs import FetchedDataset, check_unchanged
from finetune_trainer.prepare.tokenizer_identity import digest

SPEC = DatasetSpec.model_validate({"source": "pvc://data/rows", "format": "openai"})


def nothing() -> None:
    """Never stops."""


@pytest.mark.parametrize(
    ("name", "content", "changed"),
    [
        ("a.jsonl", "first", False),
        ("a.jsonl", "other", True),
        ("a.jsonl", "first and more", True),
        ("b.jsonl", "", True),
    ],
)
def test_data_that_changed_while_it_was_read_is_rejected(
    tmp_path: Path, name: str, content: str, changed: bool
) -> None:
    folder = tmp_path / "data" / "rows"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("first")
    context = FetchContext(tmp_path / "workspace" / "cache", {"data": tmp_path / "data"}, tmp_path, "run-1")
    read = fetch(SPEC.source, "data", context)
    (folder / name).write_text(content)
    if changed:
        with pytest.raises(InvalidData, match="pvc://data/rows changed while it was read"):
            check_unchanged(FetchedDataset(SPEC, read), context, nothing)
    else:
        check_unchanged(FetchedDataset(SPEC, read), context, nothing)


def fast(said: str) -> Any:
    """A tokenizer whose backend describes itself."""
    return SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: said), special_tokens_map={})


def test_the_digest_of_a_slow_tokenizer_depends_on_its_model() -> None:
    slow: Any = SimpleNamespace(get_vocab=lambda: {"a": 0}, special_tokens_map={})
    assert digest(slow, "sha256:1") != digest(slow, "sha256:2")
    assert digest(fast('{"model": {}}'), "sha256:1") == digest(fast('{"model": {}}'), "sha256:2")


def test_the_digest_does_not_depend_on_padding_and_truncation() -> None:
    """A tokenizer remembers both from its last call, and an artifact has it after use."""
    new, used = fast('{"model": {}, "truncation": null}'), fast('{"model": {}, "truncation": {"max_length": 4}}')
    assert digest(new, "") == digest(used, "")
    assert digest(new, "") != digest(fast('{"model": {"vocab": {}}}'), "")
