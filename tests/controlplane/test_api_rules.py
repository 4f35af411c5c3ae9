"""The rules of the API: the API server and the laptop refuse the same values, with the same message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_api.consistency import (
    ADAPTER,
    BEST,
    FSDP_QUANTIZED,
    GENERATED,
    GROUPED_PT,
    GROUPED_STAGES,
    KTO_BATCH,
    MERGE,
    NEFTUNE,
    NEW_TOKENS,
    NO_QUEUE,
    NO_REWARD,
    NO_ROOM_FOR_PROMPT,
    NO_TEMPLATE,
    PACKED,
    ROLLOUT,
    SEVERAL_NODES,
    SFT_MASKS,
    TOPOLOGY,
    WEIGHTS,
    WRAPPED,
    formats_message,
    section_message,
)
from finetune_api.crd import schema
from finetune_api.data import COLUMNS_OF_FORMATS, HELD_OUT, MASKS, STOPPING, TAGS_OF_FORMATS, TEXT_ONLY
from finetune_api.job import FineTuneJob
from finetune_api.kubernetes import SIZE
from finetune_api.model import ONE_MODEL, PINNED
from finetune_api.stages import (
    ADAPTIVE_KL,
    BASE_OF_SOURCE,
    LABEL_SMOOTHING,
    LD_ALPHA,
    NO_REFERENCE,
    ONE_REFERENCE,
    ONE_REWARD,
    SIMPO_MARGIN,
)
from finetune_api.training import (
    DECAY,
    DIVISOR,
    FSDP_OPTIMIZER,
    GROUPED_PACKS,
    LENGTH,
    MINIMUM_RATIO,
    ONE_MICRO_BATCH,
    RECOMPUTED_TWICE,
    RESTARTS,
    SUM_OF_RATIOS,
)
from finetune_api.tuning import (
    ALL_LINEAR,
    CONTINUED,
    DORA_BITS,
    LM_HEAD,
    NEEDS_FREEZE,
    NEEDS_LORA,
    NEEDS_QLORA,
    NO_LAYERS,
    OWN_LORA,
    PISSA_BASE,
)
from pydantic import ValidationError

from tests.controlplane import pod_violations
from tests.controlplane.api import (
    DPO,
    DPO_ALONE,
    FULL,
    HEAD,
    KTO,
    PPO,
    PPO_SERVED,
    RM,
    WITH_CLAIM,
    Steps,
    changed,
)
from tests.kube import ApiError, Kube, Object


def rules(node: Object, at: str = "") -> Iterator[tuple[str, str]]:
    """(where, message) of every CEL rule that is not about change."""
    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"]:
            yield at, rule["message"]
    for name, sub in node.get("properties", {}).items():
        yield from rules(sub, f"{at}.{name}".lstrip("."))
    if isinstance(node.get("items"), dict):
        yield from rules(node["items"], at)


INSIDE = "must not have '.' or '..' parts: use the full path"
MODEL = "must look like hf://org/name[@revision], s3://bucket/prefix or pvc://claim/path/in/the/volume"
DATA = (
    "must look like hf://org/name[@revision][/path], s3://bucket/prefix, pvc://claim/path/in/the/volume or"
    " configmap://name/key"
)
OUTPUT = "must look like s3://bucket/prefix or hf://org/name[@branch]"
UNPINNED = "hf://org/base@main"
VIOLATIONS: dict[tuple[str, str], tuple[Steps, Any]] = {
    ("spec.model.source", MODEL): (("model", "source"), "configmap://name/key"),
    ("spec.model.source", INSIDE): (("model", "source"), "pvc://models/../etc"),
    ("spec.model", PINNED): (("model", "source"), UNPINNED),
    ("spec.model", ONE_MODEL): (("model", "fromJob"), "first"),
    ("spec.datasets.source", DATA): (("datasets", 0, "source"), "/data/rows.jsonl"),
    ("spec.datasets.source", INSIDE): (("datasets", 0, "source"), "pvc://models/./rows.jsonl"),
    ("spec.evaluation.datasets.source", DATA): (("evaluation", "datasets", 0, "source"), "ftp://host/rows.jsonl"),
    ("spec.evaluation.datasets.source", INSIDE): (("evaluation", "datasets", 0, "source"), "s3://bucket/../rows"),
    ("spec.datasets", COLUMNS_OF_FORMATS): (("datasets", 0, "columns", "text"), "body"),
    ("spec.datasets", TEXT_ONLY): (("datasets", 0, "columns", "images"), "pictures"),
    ("spec.datasets", TAGS_OF_FORMATS): (("datasets", 0, "tags"), {"role": "who"}),
    ("spec.evaluation.datasets", COLUMNS_OF_FORMATS): (("evaluation", "datasets", 1, "columns", "prompt"), "question"),
    ("spec.evaluation.datasets", TEXT_ONLY): (("evaluation", "datasets", 1, "columns", "videos"), "films"),
    ("spec.evaluation.datasets", TAGS_OF_FORMATS): (("evaluation", "datasets", 0, "tags"), {"role": "who"}),
    ("spec.evaluation", HELD_OUT): (("evaluation", "splitFraction"), 0.1),
    ("spec.evaluation", STOPPING): (("evaluation", "everySteps"), None),
    ("spec.template", MASKS): (
        ("template", "maskHistory"),
        True,
    ),
    ("spec.output.uri", OUTPUT): (("output", "uri"), "pvc://models/artifact"),
    ("spec.output.uri", INSIDE): (("output", "uri"), "s3://bucket/./artifact"),
    ("spec", formats_message("sft")): (("datasets", 0, "format"), "text"),
    ("spec", formats_message("pt")): (("stage",), "pt"),
    ("spec", formats_message("rm")): (("stage",), "rm"),
    ("spec", formats_message("dpo")): (("datasets", 0, "format"), "kto"),
    ("spec", formats_message("kto")): (("datasets", 0, "format"), "openai"),
    ("spec", formats_message("ppo")): (("datasets", 0, "format"), "kto"),
    ("spec", section_message("rm")): (("rm",), {}),
    ("spec", section_message("dpo")): (("dpo",), {}),
    ("spec", section_message("kto")): (("kto",), {}),
    ("spec", section_message("ppo")): (("ppo",), {"rewardModel": {"fromJob": "scores"}}),
    ("spec", NO_REWARD): (("ppo",), None),
    ("spec", WEIGHTS): (("mixing",), "concatenate"),
    ("spec", NO_TEMPLATE): (("stage",), "pt"),
    ("spec", SFT_MASKS): (("template", "maskHistory"), True),
    ("spec", PACKED): (("training", "packing"), "bfd"),
    ("spec", WRAPPED): (("training", "packing"), "wrapped"),
    ("spec", GROUPED_PT): (("training", "groupByLength"), True),
    ("spec", GROUPED_STAGES): (("training", "groupByLength"), True),
    ("spec", NEFTUNE): (("training", "neftuneNoiseAlpha"), 5),
    ("spec", GENERATED): (("evaluation",), {"splitFraction": 0.1, "generate": {}}),
    ("spec", BEST): (("output",), {"weights": "best"}),
    ("spec", NEW_TOKENS): (("model", "newTokens"), ["one"]),
    ("spec", KTO_BATCH): (("training", "globalBatchSize"), 1),
    ("spec", ADAPTER): (("tuning", "adapter"), {"source": "pvc://models/adapter", "mode": "merge"}),
    ("spec", MERGE): (("tuning", "method"), "full"),
    ("spec", ROLLOUT): (("ppo", "rolloutBatchSize"), 50),
    ("spec", NO_ROOM_FOR_PROMPT): (("ppo", "maxNewTokens"), 4096),
    ("spec", NO_QUEUE): (("queuePriorityClass",), "urgent"),
    ("spec", TOPOLOGY): (("queue",), None),
    ("spec", SEVERAL_NODES): (("workspace",), {"claim": {"size": "1Gi"}}),
    ("spec", FSDP_QUANTIZED): (("tuning",), {"method": "qlora"}),
    ("spec.dpo", LABEL_SMOOTHING): (("dpo", "labelSmoothing"), 0.1),
    ("spec.dpo", LD_ALPHA): (("dpo", "loss"), "ipo"),
    ("spec.dpo", SIMPO_MARGIN): (("dpo", "loss"), "sigmoid"),
    ("spec.dpo", NO_REFERENCE): (("dpo", "loss"), "orpo"),
    ("spec.dpo.reference", ONE_REFERENCE): (("dpo", "reference", "fromJob"), "first"),
    ("spec.dpo.reference.source", MODEL): (("dpo", "reference", "source"), "configmap://name/key"),
    ("spec.dpo.reference.source", INSIDE): (("dpo", "reference", "source"), "pvc://models/../etc"),
    ("spec.kto.reference", ONE_REFERENCE): (("kto", "reference", "fromJob"), "first"),
    ("spec.kto.reference.source", MODEL): (("kto", "reference", "source"), "configmap://name/key"),
    ("spec.kto.reference.source", INSIDE): (("kto", "reference", "source"), "pvc://models/../etc"),
    ("spec.ppo", ADAPTIVE_KL): (("ppo", "klCoefficient"), 0),
    ("spec.ppo.reference", ONE_REFERENCE): (("ppo", "reference"), {}),
    ("spec.ppo.reference.source", MODEL): (("ppo", "reference", "source"), "configmap://name/key"),
    ("spec.ppo.reference.source", INSIDE): (("ppo", "reference", "source"), "pvc://models/../etc"),
    ("spec.ppo.rewardModel", ONE_REWARD): (("ppo", "rewardModel", "source"), "pvc://models/reward"),
    ("spec.ppo.rewardModel.source", MODEL): (("ppo", "rewardModel"), {"source": "configmap://name/key"}),
    ("spec.ppo.rewardModel.source", INSIDE): (("ppo", "rewardModel"), {"source": "pvc://models/../etc"}),
    ("spec.dpo.reference", BASE_OF_SOURCE): (("dpo", "reference"), {"fromJob": "first", "base": "pvc://models/base"}),
    ("spec.dpo.reference.base", MODEL): (("dpo", "reference", "base"), "configmap://name/key"),
    ("spec.dpo.reference.base", INSIDE): (("dpo", "reference", "base"), "pvc://models/../etc"),
    ("spec.kto.reference", BASE_OF_SOURCE): (("kto", "reference"), {"fromJob": "first", "base": "pvc://models/base"}),
    ("spec.kto.reference.base", MODEL): (("kto", "reference", "base"), "configmap://name/key"),
    ("spec.kto.reference.base", INSIDE): (("kto", "reference", "base"), "pvc://models/../etc"),
    ("spec.ppo.reference", BASE_OF_SOURCE): (("ppo", "reference"), {"fromJob": "first", "base": "pvc://models/base"}),
    ("spec.ppo.reference.base", MODEL): (("ppo", "reference", "base"), "configmap://name/key"),
    ("spec.ppo.reference.base", INSIDE): (("ppo", "reference", "base"), "pvc://models/../etc"),
    ("spec.ppo.rewardModel", BASE_OF_SOURCE): (
        ("ppo", "rewardModel"),
        {"fromJob": "scores", "base": "pvc://models/base"},
    ),
    ("spec.ppo.rewardModel.base", MODEL): (
        ("ppo", "rewardModel"),
        {"source": "pvc://models/reward", "base": "configmap://name/key"},
    ),
    ("spec.ppo.rewardModel.base", INSIDE): (
        ("ppo", "rewardModel"),
        {"source": "pvc://models/reward", "base": "pvc://models/../etc"},
    ),
    ("spec.tuning", NEEDS_LORA): (("tuning", "method"), "full"),
    ("spec.tuning", NEEDS_QLORA): (("tuning", "quantization"), {"bits": 4}),
    ("spec.tuning", NEEDS_FREEZE): (("tuning", "freeze"), {"layers": 1}),
    ("spec.tuning", CONTINUED): (("tuning",), {"method": "full", "adapter": {"source": "s3://bucket/adapter"}}),
    ("spec.tuning", OWN_LORA): (("tuning", "adapter", "mode"), "continue"),
    ("spec.tuning", DORA_BITS): (
        ("tuning",),
        {"method": "qlora", "lora": {"dora": True}, "quantization": {"bits": 8}},
    ),
    ("spec.tuning", PISSA_BASE): (
        ("tuning", "method"),
        "qlora",
    ),
    ("spec.tuning.lora", ALL_LINEAR): (("tuning", "lora", "targets"), ["all-linear", "q_proj"]),
    ("spec.tuning.lora", LM_HEAD): (("tuning", "lora", "targets"), ["lm_head"]),
    ("spec.tuning.freeze", NO_LAYERS): (
        ("tuning",),
        {"method": "freeze", "freeze": {"layers": 0}},
    ),
    ("spec.tuning.adapter.source", MODEL): (("tuning", "adapter", "source"), "configmap://name/key"),
    ("spec.tuning.adapter.source", INSIDE): (("tuning", "adapter", "source"), "pvc://models/../etc"),
    ("spec.training", LENGTH): (("training", "epochs"), 2),
    ("spec.training", DIVISOR): (("training", "microBatchSize"), 5),
    ("spec.training", RECOMPUTED_TWICE): (("training", "recompute"), "all"),
    ("spec.training", ONE_MICRO_BATCH): (("training", "microBatchTokens"), 4096),
    ("spec.training", GROUPED_PACKS): (("training", "groupByLength"), True),
    ("spec.training", MINIMUM_RATIO): (("training", "scheduler"), "linear"),
    ("spec.training", FSDP_OPTIMIZER): (("training", "optimizer"), "adafactor"),
    ("spec.training", DECAY): (("training", "scheduler"), "cosine_with_min_lr"),
    ("spec.training", SUM_OF_RATIOS): (("training", "warmupRatio"), 0.8),
    ("spec.training", RESTARTS): (("training", "schedulerCycles"), 3),
    ("spec.workspace.claim.size", SIZE): (("workspace", "claim", "size"), "1Ki"),
    **pod_violations.VIOLATIONS,
}
BROKEN_FROM = {
    formats_message("dpo"): DPO,
    formats_message("kto"): KTO,
    formats_message("ppo"): PPO,
    NO_QUEUE: WITH_CLAIM,
    NO_REWARD: PPO,
    SFT_MASKS: RM,
    PACKED: DPO,
    GROUPED_PT: WITH_CLAIM,
    GROUPED_STAGES: KTO,
    NEFTUNE: DPO,
    GENERATED: RM,
    BEST: RM,
    NEW_TOKENS: RM,
    KTO_BATCH: KTO,
    ADAPTER: DPO,
    ROLLOUT: PPO,
    NO_ROOM_FOR_PROMPT: PPO,
    LABEL_SMOOTHING: DPO,
    NO_REFERENCE: DPO,
    SIMPO_MARGIN: DPO_ALONE,
    ADAPTIVE_KL: PPO_SERVED,
    "spec.workspace.claim.size": WITH_CLAIM,
    "spec.dpo": DPO,
    "spec.kto": KTO,
    "spec.ppo": PPO,
}
"""Where it takes another spec than the first to break a rule, or those of a section, by one change."""


def test_every_rule_is_tried() -> None:
    """The name's rule is tried with `kubectl apply`, and that of the status in test_status_policy."""
    assert {rule for rule in rules(schema()) if rule[0].startswith("spec")} == set(VIOLATIONS)


@pytest.mark.parametrize("rule", VIOLATIONS, ids=lambda rule: f"{rule[0]}: {rule[1]}")
def test_a_rule_is_kept_by_the_server_and_on_a_laptop(kube: Kube, rule: tuple[str, str]) -> None:
    where, message = rule
    section = ".".join(where.split(".")[:2])
    base = next((BROKEN_FROM[one] for one in (message, where, section) if one in BROKEN_FROM), FULL)
    spec = changed(base, *VIOLATIONS[rule])
    broken = {**HEAD, "metadata": {"name": "job", "namespace": "default"}, "spec": spec}
    with pytest.raises(ApiError) as refused:
        kube.create(broken, dry_run=True)
    assert message in refused.value.message
    assert re.search(where.replace(".", r"(\[\d\])?\."), refused.value.message)
    with pytest.raises(ValidationError) as laptop:
        FineTuneJob.model_validate(broken)
    assert message in str(laptop.value) or rule not in pod_violations.VIOLATIONS
