"""What a tokenizer does, as a digest, and whether two do the same.

Called by ``prepare.run``: tokens of one tokenizer are kept apart from another's, and models that work together see each
other's tokens as they are.
"""

import hashlib
import json
from collections.abc import Collection
from typing import Any

from finetune_trainer.errors import InvalidSpec

PROBE = (
    'The quick brown fox, 1234567.89 \n\n\t  naïve déjà-vu — Ωμέγα, привет, 你好世界 🙂 <b>x</b> != f(y); {"a": [0]}'
)
SHOWN = 3


def digest(tokenizer: Any, model: str) -> str:
    """Of what it does, with the job's new tokens, rather than of the files it came in. One that can't say all that it
    does, as those without a fast backend, is known by its words and the digest of its model."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = f"{model}{sorted(tokenizer.get_vocab().items())!r}" if backend is None else json.dumps(_lasting(backend))
    special = repr(sorted((name, str(value)) for name, value in tokenizer.special_tokens_map.items()))
    return hashlib.sha256(f"{said}{special}".encode()).hexdigest()


def _lasting(backend: Any) -> dict[str, Any]:
    """Without how its last caller had rows padded and cut, which it remembers and saves."""
    said: dict[str, Any] = json.loads(backend.to_str())
    return {name: part for name, part in said.items() if name not in ("padding", "truncation")}


def check_same(tokens: Any, other: Any, source: str, field: str, besides: Collection[str] = ()) -> None:
    """A model that is shown the job's tokens as they are, ``besides`` left out, was trained on tokens that mean the
    same; it may know more of them. Raises InvalidSpec."""
    theirs, skipped = other.get_vocab(), set(besides)
    wrong = [token for token, number in tokens.get_vocab().items() if theirs.get(token) != number]
    wrong = [token for token in wrong if token not in skipped]
    if wrong:
        raise InvalidSpec(
            f"{field}: {source} has another tokenizer than this job's model: {len(wrong)} tokens are not the same in"
            f" both, as {', '.join(map(repr, sorted(wrong)[:SHOWN]))}. Use one that was made from the same base model,"
            " and with the same new tokens"
        )
    if ids(tokens) != ids(other):
        raise InvalidSpec(
            f"{field}: {source} has another tokenizer than this job's model: it knows the same tokens, and splits text"
            " into others. Use one that was made from the same base model"
        )


def ids(tokenizer: Any) -> list[int]:
    """Tokens of a text with a bit of everything."""
    found: list[int] = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return found
