"""The behaviour of a tokenizer as a digest, and whether two tokenizers agree.

Tokens of different tokenizers are cached separately, and models that work together read each other's token ids.
"""

import hashlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import InvalidSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = (
    'The quick brown fox, 1234567.89 \n\n\t  naïve déjà-vu — Ωμέγα, привет, 你好世界 🙂 <b>x</b> != f(y); {"a": [0]}'
)
SHOWN = 3


def digest(tokenizer: "PreTrainedTokenizerBase", model: str) -> str:
    """Digest of the tokenizer's behaviour, with the job's new tokens, rather than of its files. A tokenizer without a
    fast backend cannot describe its behaviour: its vocabulary and ``model``, the digest of its model, stand for it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    behaviour = f"{model}{sorted(tokenizer.get_vocab().items())!r}" if backend is None else json.dumps(_stable(backend))
    special = repr(sorted((name, str(value)) for name, value in tokenizer.special_tokens_map.items()))
    return hashlib.sha256(f"{behaviour}{special}".encode()).hexdigest()


def _stable(backend: Any) -> dict[str, Any]:
    """The backend's description without padding and truncation, which are those of its last call."""
    description: dict[str, Any] = json.loads(backend.to_str())
    return {name: part for name, part in description.items() if name not in ("padding", "truncation")}


def check_same(
    tokenizer: "PreTrainedTokenizerBase",
    other: "PreTrainedTokenizerBase",
    source: str,
    field: str,
    ignored: Collection[str] = (),
) -> None:
    """Check that every token of ``tokenizer``, except ``ignored`` tokens, has the same id in ``other``, and that both
    split text alike. ``other``, the tokenizer of ``source``, may have more tokens. Raises InvalidSpec."""
    vocabulary, skipped = other.get_vocab(), set(ignored)
    different = [token for token, number in tokenizer.get_vocab().items() if vocabulary.get(token) != number]
    different = [token for token in different if token not in skipped]
    if different:
        raise InvalidSpec(
            f"{field}: {source} has another tokenizer than this job's model: {len(different)} tokens differ, such as"
            f" {', '.join(map(repr, sorted(different)[:SHOWN]))}. Use a model with the same base model and the same new"
            " tokens"
        )
    if probe_ids(tokenizer) != probe_ids(other):
        raise InvalidSpec(
            f"{field}: {source} has another tokenizer than this job's model: it has the same tokens, but splits text"
            " differently. Use a model with the same base model"
        )


def probe_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of a text with many kinds of characters."""
    tokenize: Any = tokenizer
    ids: list[int] = tokenize(PROBE, add_special_tokens=False)["input_ids"]
    return ids
