"""What the schema does not say about the form: groups, what is open, and the few fields that need special controls.

Everything here is a list of paths. A field that no list names still has its control: in the last group, and folded.
"""

from typing import Any

from finetune_ui.texts import text


def metadata() -> dict[str, Any]:
    """The part of metadata that people write. The schema of a CRD leaves metadata to the API server."""
    words: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
    line = {"type": "string"}
    kinds: dict[str, dict[str, Any]] = {"name": line, "namespace": line, "labels": words, "annotations": words}
    properties = {name: {**kind, "description": text(f"form.metadata.{name}")} for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": ["name"]}


STAGE = "spec.stage"
STAGE_SECTIONS = ("spec.rm", "spec.dpo", "spec.kto", "spec.ppo")
"""Sections of a single stage. The form shows that of the chosen stage, and posts no other."""

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("job", ("metadata",)),
    ("model", ("spec.model",)),
    ("data", ("spec.datasets", "spec.mixing", "spec.evaluation")),
    ("template", ("spec.template",)),
    ("tuning", ("spec.tuning",)),
    ("training", ("spec.training",)),
    ("stage", STAGE_SECTIONS),
    ("resources", ("spec.resources", "spec.workspace")),
)
"""Groups in the order of the page, and their fields. A last group, `more`, has all other fields of the spec."""

COMMON = frozenset(
    {
        # Each job needs these.
        "metadata.name",
        "metadata.namespace",
        "spec.model.source",
        "spec.datasets[].source",
        "spec.datasets[].format",
        "spec.training.epochs",
        "spec.workspace.claimName",
        "spec.workspace.claim.size",
        "spec.ppo.rewardModel.fromJob",
        "spec.ppo.rewardModel.source",
        # The examples and the tutorial set these, and so does the first page of LLaMA Board.
        "spec.model.fromJob",
        "spec.evaluation.splitFraction",
        "spec.tuning.method",
        "spec.tuning.lora.rank",
        "spec.tuning.lora.alpha",
        "spec.training.maxSteps",
        "spec.training.learningRate",
        "spec.training.globalBatchSize",
        "spec.training.microBatchSize",
        "spec.training.cutoffLength",
        # The first settings of a stage that its guide speaks about.
        "spec.rm.centerRewards",
        "spec.dpo.loss",
        "spec.dpo.beta",
        "spec.kto.beta",
        "spec.kto.desirableWeight",
        "spec.kto.undesirableWeight",
        "spec.ppo.klCoefficient",
        "spec.ppo.maxNewTokens",
        # What a cluster's people ask for.
        "spec.resources.nodes",
        "spec.resources.gpusPerNode",
        "spec.resources.cpu",
        "spec.resources.memory",
    }
)
"""What people change most: it is open. The rest is folded under "More"."""

FREE = frozenset({"spec.resources.affinity"})
"""Fields with a box for YAML in place of controls. Affinity has five levels of lists, and people copy it from a pod."""

MEANINGFUL_EMPTY = frozenset(
    {
        "spec.evaluation.generate",  # {}: generate answers with the defaults
        "spec.tuning.adapter",  # {}: continue the adapter of fromJob
        "spec.prepare.nodeSelector",  # {}: any node, instead of resources.nodeSelector
        "spec.resources.volumes[].emptyDir",  # {}: an empty folder
        "spec.template.defaultSystem",  # "": no system prompt
        "spec.resources.env[].value",  # "": a variable without text
    }
)
"""Fields that mean something else if they are empty than if they are unset. They have a check box for that."""

SUGGESTED: dict[str, str] = {
    "fromJob": "jobs",
    "claimName": "claims",
    "queue": "queues",
    "secret": "secrets",
    "huggingFace": "secrets",
    "s3": "secrets",
    "secretName": "secrets",
}
"""Last part of a path -> the kind of names that the input suggests."""

ROW_LIMIT = 100
"""Most rows of a list or map that the form shows and reads: more than the schema allows. Labels and annotations may be
more; then they are in the box for other fields."""
