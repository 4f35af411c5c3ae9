"""A conversation -> token ids and labels, cut to length.

Called by `dataset` for every row.
"""

from typing import NamedTuple

from finetune_trainer.data.formats import Conversation
from finetune_trainer.data.template import Template

IGNORED = -100
"""Label of a token that is seen but not trained, as torch's cross-entropy knows it."""


class Row(NamedTuple):
    """What a model is trained on."""

    input_ids: list[int]
    labels: list[int]
    cut: bool
    """Whether it was longer than allowed."""

    @property
    def trained(self) -> int:
        """Tokens that count in the loss; the first of a row has nothing before it to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


def tokenize(messages: Conversation, template: Template, cutoff: int) -> Row:
    """Loss on every assistant turn with its stop token, and on nothing else; what is beyond ``cutoff`` is cut."""
    ids, spans = template.row(messages)
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return Row(ids[:cutoff], labels[:cutoff], len(ids) > cutoff)
