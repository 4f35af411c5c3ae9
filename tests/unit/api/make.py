"""FineTuneJobs for the tests of the API."""

from __future__ import annotations

from typing import Any

from finetune_api.job import FineTuneJob

SPEC: dict[str, Any] = {
    "stage": "sft",
    "model": {"source": "pvc://models/base"},
    "datasets": [{"source": "pvc://models/train.jsonl", "format": "openai"}],
    "training": {"epochs": 1},
    "workspace": {"claimName": "work"},
}

PAIRS = [{"source": "pvc://models/pairs.jsonl", "format": "preference"}]

REWARD: dict[str, Any] = {"rewardModel": {"source": "pvc://models/reward"}}


def job(**changes: Any) -> FineTuneJob:
    """A valid job of stage sft, with changed sections."""
    spec = {**SPEC, **changes}
    head = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}}
    return FineTuneJob.model_validate({**head, "spec": spec})
