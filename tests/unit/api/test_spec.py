"""Rules of the spec in Python, and fields that may change. tests/controlplane/test_api.py checks the rules as CEL."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.contract import resolve
from finetune_api.output import OutputSpec, lacks_copy
from finetune_api.spec import MUTABLE, MUTABLE_WHILE_SUSPENDED, FineTuneJobSpec, immutability_rules
from pydantic import ValidationError

from tests.unit.api.make import PAIRS, REWARD, job


@pytest.mark.parametrize(
    "bad",
    [
        {"stage": "sfft"},
        {"unknown": 1},
        {"model": {"source": "pvc://models/../etc"}},
        {"model": {"source": "/etc/passwd"}},
        {"model": {"source": "pvc://models"}},
        {"model": {"source": "configmap://models/base"}},
        {"model": {"source": "hf://org/name", "trustRemoteCode": True}},
        {"datasets": [{"source": "pvc://models/a.txt", "format": "text"}]},
        {"training": {"epochs": 1, "packing": "wrapped"}},
        {"tuning": {"lora": {"rank": -1}}},
        {"tuning": {"method": "full", "lora": {"rank": 8}}},
        {"training": {}},
        {"training": {"epochs": 1, "maxSteps": 1}},
        {"resources": {"volumeMounts": [{"name": "x", "mountPath": "/x"}]}},
        {"dpo": {}},
        {"stage": "ppo"},
        {"stage": "ppo", "ppo": {"rewardModel": {}}},
        {"training": {"epochs": 1, "microBatchSize": 1, "microBatchTokens": 4096}},
        {"training": {"epochs": 1, "decayRatio": 0.1}},
        {"training": {"epochs": 1, "scheduler": "warmup_stable_decay", "warmupRatio": 0.95}},
        {"training": {"epochs": 1, "schedulerCycles": 3}},
        {"stage": "dpo", "datasets": PAIRS, "dpo": {"loss": "ipo", "ldAlpha": 0.5}},
        {"stage": "dpo", "datasets": PAIRS, "dpo": {"simpoGamma": 1.0}},
        {"stage": "ppo", "datasets": PAIRS, "ppo": dict(REWARD, klCoefficient=0)},
        {"stage": "ppo", "datasets": PAIRS, "ppo": {"rewardModel": {"http": {"url": "http://judge:80o0/score"}}}},
    ],
)
def test_a_laptop_refuses_what_the_api_server_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(**bad)


@pytest.mark.parametrize(
    "good",
    [
        {"training": {"epochs": 1, "scheduler": "warmup_stable_decay", "warmupRatio": 0.7, "decayRatio": 0.3}},
        {"training": {"epochs": 1, "scheduler": "cosine_with_restarts", "schedulerCycles": 3}},
        {"training": {"epochs": 1, "scheduler": "polynomial", "minLearningRateRatio": 0.1}},
        {"stage": "dpo", "datasets": PAIRS, "dpo": {"loss": "hinge", "ldAlpha": 0.5}},
        {"stage": "dpo", "datasets": PAIRS, "dpo": {"loss": "simpo", "simpoGamma": 1.0}},
        {"stage": "ppo", "datasets": PAIRS, "ppo": dict(REWARD, klCoefficient=0, klControl="fixed")},
        {"stage": "ppo", "datasets": PAIRS, "ppo": {"rewardModel": {"http": {"url": "http://[::1]:8000/score"}}}},
    ],
)
def test_valid_combinations_are_accepted(good: dict[str, Any]) -> None:
    assert holds(resolve(job(**good)).to_dict(), {name: value for name, value in good.items() if name != "datasets"})


def holds(whole: Any, part: Any) -> bool:
    """Whether ``whole`` contains all fields of ``part``, with equal values."""
    if not isinstance(part, dict):
        return bool(whole == part)
    return all(holds(whole[name], value) for name, value in part.items())


def test_resources_and_prepare_change_only_while_the_job_is_suspended() -> None:
    for rule in immutability_rules():
        conditional = "oldSelf.suspend" in str(rule["rule"])
        assert conditional == any(f"spec.{field} can be" in str(rule["message"]) for field in MUTABLE_WHILE_SUSPENDED)


def test_every_field_is_immutable_or_named_as_mutable() -> None:
    rules = " ".join(str(rule["rule"]) for rule in immutability_rules())
    for name, info in FineTuneJobSpec.model_fields.items():
        field = info.alias or name
        fixed = f"self.{field} == oldSelf.{field}" in rules or field == "checkpoints"
        assert (field in MUTABLE) != fixed, field
    assert "checkpoints.everySteps" in rules
    assert "checkpoints.keep" not in rules


@pytest.mark.parametrize(
    ("uri", "published", "lacks"),
    [
        (None, None, False),
        (None, "s3://b/a", False),
        ("s3://b/a", None, True),
        ("s3://b/a", "s3://b/a", False),
        ("s3://b/a", "s3://b/ab", True),
        ("s3://b/a@1", "s3://b/a@2", True),
        ("hf://team/a", "hf://team/a@0c0ffee", False),
        ("hf://team/a@branch", "hf://team/a@0c0ffee", False),
        ("hf://team/a", "hf://team/ab@0c0ffee", True),
        ("hf://team/a", "s3://b/a", True),
        ("hf://team/a", None, True),
    ],
)
def test_a_copy_is_lacking_until_there_is_one_at_its_destination(
    uri: str | None, published: str | None, lacks: bool
) -> None:
    assert lacks_copy(OutputSpec.model_construct(uri=uri), published) == lacks
