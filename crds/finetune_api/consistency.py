"""Rules between the sections of a spec, each as CEL for the API server and in Python.

Called by `finetune_api.spec`. A rule within a section is in the module of that section. Rules see the spec as the user
wrote it, with the defaults of the schema, but without those of `finetune_api.defaults`.
"""

from pydantic.config import JsonDict

from finetune_api.base import Rule, cel
from finetune_api.sections import SpecSections

CHATS = ("alpaca", "sharegpt", "openai")
FORMATS: dict[str, tuple[str, ...]] = {
    "pt": ("text",),
    "sft": CHATS,
    "rm": ("preference",),
    "dpo": ("preference",),
    "ppo": (*CHATS, "preference"),
    "kto": ("kto",),
}
"""Stage -> the data formats that it trains on."""
SECTIONS = ("rm", "dpo", "kto", "ppo")
"""Stages that have a section for their settings."""

WEIGHTS = "datasets[].weight needs mixing interleaveUnder or interleaveOver: set mixing, or remove weight"
NO_REWARD = "stage ppo needs a model that scores the answers: set ppo.rewardModel"
NO_TEMPLATE = "stage pt trains on plain text, without a template: remove template"
SFT_MASKS = "template.trainOnPrompt and template.maskHistory work in stage sft only: remove them"
PACKED = "training.packing works in stages pt and sft only: remove it"
WRAPPED = "training.packing wrapped joins documents and works in stage pt only: use bfd"
GROUPED_PT = "training.groupByLength has no effect on packed rows: remove it, or set training.packing to none"
GROUPED_STAGES = "training.groupByLength does not work in stages kto and ppo, which need the rows in order: remove it"
NEFTUNE = "training.neftuneNoiseAlpha works in stages pt and sft only: remove it"
GENERATED = "evaluation.generate compares answers with expected answers and works in stage sft only: remove it"
BEST = "output.weights best compares evaluations during training: set evaluation.everySteps"
NEW_TOKENS = (
    "model.newTokens and model.newSpecialTokens do not work in stages rm and ppo, whose models share a tokenizer: add"
    " them in stage sft"
)
KTO_BATCH = "stage kto compares each prompt with the answer of another row: set training.globalBatchSize to at least 2"
ADAPTER = (
    "tuning.adapter.source needs model.source, because model.fromJob brings its own adapter: set source in both or in"
    " neither"
)
MERGE = "output.merge needs an adapter: set tuning.method to lora or qlora, or remove output.merge"
ROLLOUT = "ppo.rolloutBatchSize must be a multiple of training.globalBatchSize: change either"
NO_ROOM_FOR_PROMPT = (
    "ppo.maxNewTokens must be less than training.cutoffLength, which prompt and answer share: lower maxNewTokens, or"
    " raise cutoffLength"
)
SEVERAL_NODES = (
    "resources.nodes above 1 needs a volume that several nodes can mount: set"
    " workspace.claim.accessMode to ReadWriteMany"
)
NO_QUEUE = "queuePriorityClass needs a queue of Kueue: set queue or prepare.queue, or remove queuePriorityClass"
TOPOLOGY = "resources.topology is for pods that a queue of Kueue admits: set queue, or remove resources.topology"
FSDP_QUANTIZED = "training.parallelism fsdp cannot shard quantized weights: use ddp, or tuning.method lora"


def check(spec: SpecSections) -> None:
    """Raises ValueError with the message of the first rule that does not hold."""
    for rule in RULES:
        if not rule.holds(spec):
            raise ValueError(rule.message)


def as_cel() -> list[JsonDict]:
    """The rules in the form that the API server checks."""
    return [cel(rule.cel, rule.message) for rule in RULES]


def formats_message(stage: str) -> str:
    """The message about a data format that the stage does not train on."""
    return f"stage {stage} needs data of format {' or '.join(FORMATS[stage])}: change format or stage"


def section_message(section: str) -> str:
    """The message about a section of another stage."""
    return f"section {section} needs stage {section}: remove it, or change the stage"


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
        SFT_MASKS,
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
        GROUPED_PT,
        "self.stage != 'pt' || !self.training.groupByLength"
        " || (has(self.training.packing) && self.training.packing == 'none')",
        lambda spec: spec.stage != "pt" or not spec.training.group_by_length or spec.training.packing == "none",
    ),
    Rule(
        GROUPED_STAGES,
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
        KTO_BATCH,
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
        NO_ROOM_FOR_PROMPT,
        "!has(self.ppo) || self.ppo.maxNewTokens < self.training.cutoffLength",
        lambda spec: spec.ppo is None or spec.ppo.max_new_tokens < spec.training.cutoff_length,
    ),
    Rule(
        SEVERAL_NODES,
        "self.resources.nodes == 1 || !has(self.workspace.claim) || self.workspace.claim.accessMode == 'ReadWriteMany'",
        lambda spec: (
            spec.resources.nodes == 1
            or spec.workspace.claim is None
            or spec.workspace.claim.access_mode == "ReadWriteMany"
        ),
    ),
    Rule(
        NO_QUEUE,
        "!has(self.queuePriorityClass) || has(self.queue) || has(self.prepare.queue)",
        lambda spec: spec.queue_priority_class is None or spec.queue is not None or spec.prepare.queue is not None,
    ),
    Rule(
        TOPOLOGY,
        "!has(self.resources.topology) || has(self.queue)",
        lambda spec: spec.resources.topology is None or spec.queue is not None,
    ),
    Rule(
        FSDP_QUANTIZED,
        "self.training.parallelism != 'fsdp' || self.tuning.method != 'qlora'",
        lambda spec: spec.training.parallelism != "fsdp" or spec.tuning.method != "qlora",
    ),
]
