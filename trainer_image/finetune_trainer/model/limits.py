"""What a model's config limits: the positions of a row and the ids of tokens, whatever the family calls them.

Preparation holds rows against them, so that no kernel meets an index beyond a table. They are read through
transformers' config class: its attribute_map knows a family's own names (n_positions), and it finds the text model of
a model that also sees or hears.
"""

from typing import Any, NamedTuple

NAMES = ("max_position_embeddings", "max_seq_len")
"""The name that attribute_map leads to, and that of MPT, whose config maps nothing."""
STRETCHED = ("linear", "dynamic", "yarn")
"""Types of RoPE with a factor by which the model has more positions than its config may say: Qwen's YaRN, for one. The
configs of the other types (llama3, longrope) always give the stretched number."""


class Limit(NamedTuple):
    """A number, and what the model's config calls it."""

    value: int
    name: str


def positions(config: Any) -> Limit | None:
    """The tokens of the longest row that the model supports. None without a limit: alibi, states, or a config that
    says nothing. A sliding window is no limit: it bounds what a token sees, not its position."""
    text = config.get_text_config()
    if getattr(text, "alibi", False):  # Falcon's: its config has max_position_embeddings all the same
        return None
    for name in NAMES:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:  # XLNet's is -1
            own, stretched = text.attribute_map.get(name, name), _stretched(text, value)
            return Limit(stretched, own if stretched == value else f"{own} and RoPE's factor")
    return None


def tokens(config: Any) -> Limit | None:
    """The rows of the model's embeddings. None for a model of its own code whose config does not say."""
    text = config.get_text_config()
    value = getattr(text, "vocab_size", None)
    return Limit(value, text.attribute_map.get("vocab_size", "vocab_size")) if isinstance(value, int) else None


def _stretched(text: Any, positions: int) -> int:
    """The positions with RoPE's factor. It is applied to the positions before stretching, so nothing is counted twice.
    Parameters per type of layer (Gemma 3) come with the stretched number."""
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") not in STRETCHED:
        return positions
    before = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(before * (rope.get("factor") or 1)))
