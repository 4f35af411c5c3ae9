"""spec.datasets, spec.evaluation and spec.template: the data, and how a row of it becomes what the model sees."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated
from finetune_api.source import DataSource

Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Format = Literal["alpaca", "sharegpt", "openai", "text", "preference", "kto"]
Mixing = Literal["concatenate", "interleaveUnder", "interleaveOver"]

UNITS = {"pt": "rows", "sft": "rows", "rm": "pairs", "dpo": "pairs", "ppo": "prompts", "kto": "answers"}
"""What a stage's data consists of, for messages."""


class ColumnsSpec(ApiModel):
    """Names of the columns (keys) of a row, where they are not those of the format."""

    prompt: Column | None = None
    """alpaca, preference, kto: what is asked. Unset: instruction; for preference and kto prompt, if there is one."""
    query: Column | None = None
    """alpaca, preference, kto: more of what is asked, on a line of its own. Unset: input."""
    response: Column | None = None
    """alpaca, kto: the answer. Unset: output; for kto completion, if there is one."""
    history: Column | None = None
    """alpaca, preference, kto: earlier turns, as a list of [question, answer]. Unset: history."""
    system: Column | None = None
    """The system prompt. Unset: system."""
    tools: Column | None = None
    """Tools that the model may call, as JSON. Unset: tools."""
    messages: Column | None = None
    """openai, sharegpt, preference, kto: the conversation. Unset: messages for openai, conversations for sharegpt,
    whichever there is for the others."""
    text: Column | None = None
    """text: the document. Unset: text."""
    chosen: Column | None = None
    """preference: the better answer. Unset: chosen."""
    rejected: Column | None = None
    """preference: the worse answer. Unset: rejected."""
    label: Column | None = None
    """kto: whether the answer is wanted. Unset: label, or kto_tag."""


class TagsSpec(ApiModel):
    """Names inside the messages of a row, where they are not those of the format."""

    role: Column | None = None
    """Key of who speaks. Unset: role for openai, from for sharegpt."""
    content: Column | None = None
    """Key of what is said. Unset: content for openai, value for sharegpt."""
    user: Column | None = None
    """Who asks. Unset: user for openai, human for sharegpt."""
    assistant: Column | None = None
    """Who answers. Unset: assistant for openai, gpt for sharegpt."""
    system: Column | None = None
    """Who sets the scene. Unset: system."""
    function: Column | None = None
    """sharegpt: the model calling a tool. Unset: function_call."""
    observation: Column | None = None
    """What a tool answered. Unset: tool for openai, observation for sharegpt."""


_PROMPTS: tuple[Format, ...] = ("alpaca", "preference", "kto")
_MESSAGES: tuple[Format, ...] = ("sharegpt", "openai", "preference", "kto")
READ_BY: dict[str, tuple[Format, ...]] = {
    "prompt": _PROMPTS,
    "query": _PROMPTS,
    "response": ("alpaca", "kto"),
    "history": _PROMPTS,
    "system": ("alpaca", *_MESSAGES),
    "tools": ("alpaca", *_MESSAGES),
    "messages": _MESSAGES,
    "text": ("text",),
    "chosen": ("preference",),
    "rejected": ("preference",),
    "label": ("kto",),
}
"""Column -> the formats that have it. A name that nothing reads is a mistake that would show only in the model."""
UNREAD = "columns are read so: " + "; ".join(f"{name} of {', '.join(formats)}" for name, formats in READ_BY.items())
UNTAGGED = f"tags name the parts of messages, which rows of {', '.join(_MESSAGES)} have"
_COLUMNS_FIT = " && ".join(
    f"(!has(self.columns.{name}) || self.format in {list(formats)})" for name, formats in READ_BY.items()
)
_DATASET_RULES: list[JsonDict] = [
    cel(f"!has(self.columns) || ({_COLUMNS_FIT})", UNREAD),
    cel(f"!has(self.tags) || self.format in {list(_MESSAGES)}", UNTAGGED),
]


class DatasetSpec(ApiModel):
    """One data set: a file, or a folder of files of one kind."""

    model_config = ConfigDict(json_schema_extra=validated(_DATASET_RULES))

    source: DataSource
    """json, jsonl, csv, parquet, arrow or txt, also compressed (.gz, .bz2, .xz, .zst): one file or a folder of them, as
    hf://org/name[@revision][/path], s3://bucket/prefix, pvc://claim/path or configmap://name/key."""
    format: Format
    """alpaca: instruction, input, output (system, history, tools). sharegpt: conversations of {from, value}. openai:
    messages of {role, content}. text: documents, for stage pt. preference: a prompt with chosen and rejected. kto: a
    prompt, a completion and its label. Which of them a stage trains on: docs/data.md."""
    columns: ColumnsSpec | None = None
    """Names of the columns, where they are not those of the format."""
    tags: TagsSpec | None = None
    """Names inside the messages, where they are not those of the format."""
    subset: Column | None = None
    """Which configuration of a hub repository that has several."""
    split: Column | None = None
    """Which split of a folder or hub repository that has several (train, validation, test). Unset: train if there are
    splits, else everything."""
    max_samples: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Use so many rows at most, drawn by training.seed."""
    weight: float | None = Field(default=None, gt=0, le=1_000_000)
    """Share of this data set in the mixture, relative to the others'. Needs mixing interleaveUnder or interleaveOver.
    Unset: 1."""
    # No default in the schema, as nowhere in lists: kubectl and Argo CD would see a difference for ever.
    max_invalid_rows: int | None = Field(default=None, ge=0, le=1_000_000_000)
    """Broken rows that may be left out. One more, and the job fails before a GPU is held. Unset: 0."""

    @model_validator(mode="after")
    def _names_are_read(self) -> Self:
        if self.columns and any(self.format not in READ_BY[name] for name in self.columns.to_dict()):
            raise ValueError(UNREAD)
        if self.tags and self.format not in _MESSAGES:
            raise ValueError(UNTAGGED)
        return self


class GenerateSpec(ApiModel):
    """Stage sft: let the trained model answer held-out prompts, and compare. Greedy: the likeliest token each time."""

    max_new_tokens: int = Field(default=256, ge=1, le=65_536)
    """Longest answer."""
    max_rows: int = Field(default=200, ge=1, le=1_000_000)
    """Rows answered at most, from the start of the held-out data."""


class EarlyStoppingSpec(ApiModel):
    """Stop when the evaluation loss no longer falls (of ppo: when the mean reward no longer rises)."""

    patience: int = Field(ge=1, le=1000)
    """Evaluations in a row that may bring nothing better."""
    min_delta: float = Field(default=0.0, ge=0, le=1000)
    """Fall of the loss that counts as better."""


STOPPING = "earlyStopping looks at evaluations during training: set everySteps"
_EVALUATION_RULES: list[JsonDict] = [
    cel("has(self.datasets) != has(self.splitFraction)", "set exactly one of datasets and splitFraction"),
    cel("!has(self.earlyStopping) || has(self.everySteps)", STOPPING),
]


class EvaluationSpec(ApiModel):
    """What the model is measured on besides the training loss. Set exactly one of datasets and splitFraction."""

    model_config = ConfigDict(json_schema_extra=validated(_EVALUATION_RULES))

    datasets: list[DatasetSpec] | None = Field(default=None, min_length=1, max_length=16)
    """Data that is not trained on."""
    split_fraction: float | None = Field(default=None, gt=0, le=0.5)
    """Share of the training rows, drawn by training.seed, that is kept out of training."""
    every_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Evaluate every so many optimizer steps, besides once at the end."""
    early_stopping: EarlyStoppingSpec | None = None
    """When to stop before epochs or maxSteps are done. Unset: never."""
    generate: GenerateSpec | None = None
    """Stage sft: BLEU, ROUGE and exact match of answers generated at the end. Unset: none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.datasets is None) == (self.split_fraction is None):
            raise ValueError("set exactly one of datasets and splitFraction")
        if self.early_stopping is not None and self.every_steps is None:
            raise ValueError(STOPPING)
        return self


TemplateName = Literal[
    "chatml",
    "llama3",
    "qwen2.5",
    "qwen3",
    "qwen3-nothink",
    "gemma3",
    "mistral",
    "phi4",
    "glm4",
    "deepseek",
    "deepseek-r1",
    "alpaca",
    "default",
]
_TEMPLATE_RULES: list[JsonDict] = [
    cel("!(self.trainOnPrompt && self.maskHistory)", "trainOnPrompt trains everything: maskHistory contradicts it")
]


class TemplateSpec(ApiModel):
    """How a conversation becomes tokens, and which of them are trained."""

    model_config = ConfigDict(json_schema_extra=validated(_TEMPLATE_RULES))

    name: TemplateName | None = None
    """A chat template for a base model that has none, or instead of its own. It is saved with the artifact. Unset: the
    tokenizer's own."""
    history: Literal["split", "lastTurn", "asRendered"] = "split"
    """What becomes of a conversation whose earlier answers look different once it goes on (reasoning that the template
    takes out). split: one row per answer, each as the model sees it when asked. lastTurn: train the last answer only.
    asRendered: train all of them as they stand, which is not what the model sees when asked."""
    default_system: Annotated[str, StringConstraints(max_length=16_384)] | None = None
    """System prompt of conversations that bring none. Unset: the template's own, if it has one."""
    train_on_prompt: bool = False
    """Train every token, the prompts included."""
    mask_history: bool = False
    """Train the last answer of each conversation only."""

    @model_validator(mode="after")
    def _one_mask(self) -> Self:
        if self.train_on_prompt and self.mask_history:
            raise ValueError("trainOnPrompt trains everything: maskHistory contradicts it")
        return self
