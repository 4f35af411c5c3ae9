"""The owner reference, by which the garbage collector deletes the children of a FineTuneJob."""

from typing import Any

from finetune_api.contract import AttemptFacts
from finetune_api.job import API_VERSION, KIND


def owner(facts: AttemptFacts) -> dict[str, Any]:
    """The FineTuneJob that an attempt belongs to."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": facts.name,
        "uid": facts.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
