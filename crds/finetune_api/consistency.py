"""How the sections of a spec must fit each other. Each rule stands once: as CEL for the API server, and in Python.

Called by `finetune_api.spec`. Rules inside one section stand with it. A rule speaks of what the user wrote: defaults of
the schema are in already, those of `finetune_api.defaults` are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from finetune_api.base import cel

if TYPE_CHECKING:
    from pydantic.config import JsonDict

    from finetune_api.spec import FineTuneJobSpec

CHATS = ("alpaca", "sharegpt", "openai")
FORMATS: dict[str, tuple[str, ...]] = {
    "pt": ("text",),
    "sft": CHATS,
    "rm": ("preference",),
    "dpo": ("preference",),
    "ppo": (*CHATS, "preference"),
    "kto": ("kto",),
}
"""Formats of data that a stage can train on."""
SECTIONS = ("rm", "dpo", "kto", "ppo")
"""Stages with settings of their own."""

WEIGHTS = "weight needs mixing interleaveUnder or interleaveOver"
NO_REWARD = "stage ppo needs ppo.rewardModel: something must score the answers"
NO_TEMPLATE = "stage pt trains on plain text: there is no template"
ANSWERS_ONLY = "template.trainOnPrompt and maskHistory choose what stage sft trains: no other stage reads them"
PACKED = "packing is for stages pt and sft, whose rows stand alone: leave it out"
WRAPPED = "packing wrapped lets documents see each other, which only stage pt is for: use bfd"
STREAM = "groupByLength: stage pt packs unless packing is none, and then there is nothing to group"
UNGROUPED = "groupByLength is not for stages kto and ppo, where rows of a batch are compared or answered in their order"
NEFTUNE = "neftuneNoiseAlpha is for stages pt and sft: noise would change what others compare"
GENERATED = "evaluation.generate is for stage sft, whose rows have an answer to compare with"
BEST = "output.weights best compares evaluations during training: set evaluation.everySteps"
NEW_TOKENS = (
    "newTokens and newSpecialTokens are not for stages rm and ppo, whose models must agree: add them in stage sft"
)
PAIRED = "stage kto compares each prompt with another row's answer: training.globalBatchSize must be at least 2"
ADAPTER = "tuning.adapter.source goes with model.source: model.fromJob brings its adapter itself"
MERGE = "output.merge needs an adapter to merge: tuning.method lora or qlora"
ROLLOUT = "ppo.rolloutBatchSize must be a multiple of training.globalBatchSize"
NO_PROMPT = "ppo.maxNewTokens must be less than training.cutoffLength: prompt and answer share it"
SHAREABLE = "resources.nodes: more than one node needs workspace.claim.accessMode ReadWriteMany"
UNSHARED = (
    "training.parallelism fsdp shares out no quantised weights, which each GPU would hold whole: use ddp, or"
    " tuning.method lora"
)


class Rule(NamedTuple):
    """What must hold of a spec."""

    message: str
    cel: str
    holds: Callable[[FineTuneJobSpec], bool]


def check(spec: FineTuneJobSpec) -> None:
    """Raises ValueError with the message of the first rule that is broken."""
    for rule in RULES:
        if not rule.holds(spec):
            raise ValueError(rule.message)


def as_cel() -> list[JsonDict]:
    """The rules as the API server checks them."""
    return [cel(rule.cel, rule.message) for rule in RULES]


def formats_message(stage: str) -> str:
    """What a stage can train on."""
    return f"stage {stage} trains on data of format " + " or ".join(FORMATS[stage])


def section_message(section: str) -> str:
    """Whose settings a section holds."""
    return f"{section} settings need stage {section}"


def _formats(stage: str) -> Rule:
    fits = f"all(d, d.format in {list(FORMATS[stage])})"
    return Rule(
        formats_message(stage),
        f"self.stage != '{stage}' || (self.datasets.{fits} && (!has(self.evaluation)"
        f" || !has(self.evaluation.datasets) || self.evaluation.datasets.{fits}))",
        lambda spec: spec.stage != stage or all(dataset.format in FORMATS[stage] for dataset in spec.all_datasets()),
    )


def _section(section: str) -> Rule:
    return Rule(
        section_message(section),
        f"self.stage == '{section}' || !has(self.{section})",
        lambda spec: spec.stage == section or getattr(spec, section) is None,
    )


RULES: list[Rule] = [
    *(_formats(stage) for stage in FORMATS),
    *(_section(section) for section in SECTIONS),
    Rule(
        NO_REWARD,
        "self.stage != 'ppo' || has(self.ppo)",
        lambda spec: spec.stage != "ppo" or spec.ppo is not None,
    ),
    Rule(
        WEIGHTS,
        "self.mixing != 'concatenate' || !self.datasets.exists(d, has(d.weight))",
        lambda spec: spec.mixing != "concatenate" or all(dataset.weight is None for dataset in spec.datasets),
    ),
    Rule(
        NO_TEMPLATE,
        "self.stage != 'pt' || !has(self.template)",
        lambda spec: spec.stage != "pt" or spec.template is None,
    ),
    Rule(
        ANSWERS_ONLY,
        "self.stage == 'sft' || !has(self.template) || !(self.template.trainOnPrompt || self.template.maskHistory)",
        lambda spec: (
            spec.stage == "sft"
            or spec.template is None
            or not (spec.template.train_on_prompt or spec.template.mask_history)
        ),
    ),
    Rule(
        PACKED,
        "self.stage in ['pt', 'sft'] || !has(self.training.packing) || self.training.packing == 'none'",
        lambda spec: spec.stage in ("pt", "sft") or spec.training.packing in (None, "none"),
    ),
    Rule(
        WRAPPED,
        "self.stage == 'pt' || !has(self.training.packing) || self.training.packing != 'wrapped'",
        lambda spec: spec.stage == "pt" or spec.training.packing != "wrapped",
    ),
    Rule(
        STREAM,
        "self.stage != 'pt' || !self.training.groupByLength"
        " || (has(self.training.packing) && self.training.packing == 'none')",
        lambda spec: spec.stage != "pt" or not spec.training.group_by_length or spec.training.packing == "none",
    ),
    Rule(
        UNGROUPED,
        "!(self.stage in ['kto', 'ppo']) || !self.training.groupByLength",
        lambda spec: spec.stage not in ("kto", "ppo") or not spec.training.group_by_length,
    ),
    Rule(
        NEFTUNE,
        "self.stage in ['pt', 'sft'] || !has(self.training.neftuneNoiseAlpha)",
        lambda spec: spec.stage in ("pt", "sft") or spec.training.neftune_noise_alpha is None,
    ),
    Rule(
        GENERATED,
        "self.stage == 'sft' || !has(self.evaluation) || !has(self.evaluation.generate)",
        lambda spec: spec.stage == "sft" or spec.evaluation is None or spec.evaluation.generate is None,
    ),
    Rule(
        BEST,
        "self.output.weights != 'best' || (has(self.evaluation) && has(self.evaluation.everySteps))",
        lambda spec: (
            spec.output.weights != "best" or (spec.evaluation is not None and spec.evaluation.every_steps is not None)
        ),
    ),
    Rule(
        NEW_TOKENS,
        "!(self.stage in ['rm', 'ppo']) || !(has(self.model.newTokens) || has(self.model.newSpecialTokens))",
        lambda spec: (
            spec.stage not in ("rm", "ppo") or (spec.model.new_tokens is None and spec.model.new_special_tokens is None)
        ),
    ),
    Rule(
        PAIRED,
        "self.stage != 'kto' || self.training.globalBatchSize > 1",
        lambda spec: spec.stage != "kto" or spec.training.global_batch_size > 1,
    ),
    Rule(
        ADAPTER,
        "!has(self.tuning.adapter) || has(self.tuning.adapter.source) == has(self.model.source)",
        lambda spec: spec.tuning.adapter is None or (spec.tuning.adapter.source is None) == (spec.model.source is None),
    ),
    Rule(
        MERGE,
        "!self.output.merge || self.tuning.method in ['lora', 'qlora']",
        lambda spec: not spec.output.merge or spec.tuning.method in ("lora", "qlora"),
    ),
    Rule(
        ROLLOUT,
        "!has(self.ppo) || !has(self.ppo.rolloutBatchSize)"
        " || self.ppo.rolloutBatchSize % self.training.globalBatchSize == 0",
        lambda spec: spec.ppo is None or (spec.ppo.rollout_batch_size or 0) % spec.training.global_batch_size == 0,
    ),
    Rule(
        NO_PROMPT,
        "!has(self.ppo) || self.ppo.maxNewTokens < self.training.cutoffLength",
        lambda spec: spec.ppo is None or spec.ppo.max_new_tokens < spec.training.cutoff_length,
    ),
    Rule(
        SHAREABLE,
        "self.resources.nodes == 1 || !has(self.workspace.claim) || self.workspace.claim.accessMode == 'ReadWriteMany'",
        lambda spec: (
            spec.resources.nodes == 1
            or spec.workspace.claim is None
            or spec.workspace.claim.access_mode == "ReadWriteMany"
        ),
    ),
    Rule(
        UNSHARED,
        "self.training.parallelism != 'fsdp' || self.tuning.method != 'qlora'",
        lambda spec: spec.training.parallelism != "fsdp" or spec.tuning.method != "qlora",
    ),
]
