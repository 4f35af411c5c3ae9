"""spec.datasets, spec.evaluation and spec.template: the data, and how its rows become tokens."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated
from finetune_api.source import DataSource

Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Format = Literal["alpaca", "sharegpt", "openai", "text", "preference", "kto"]
Mixing = Literal["concatenate", "interleaveUnder", "interleaveOver"]

UNITS = {"pt": "rows", "sft": "rows", "rm": "pairs", "dpo": "pairs", "ppo": "prompts", "kto": "answers"}
"""Stage -> what its data consists of, for messages."""


class ColumnsSpec(ApiModel):
    """Names of a row's columns that differ from those of the format."""

    prompt: Column | None = None
    """Column with the question (alpaca, preference, kto). Unset: instruction; preference and kto use prompt if the rows
    have it."""
    query: Column | None = None
    """Column with more of the question, added on a new line (alpaca, preference, kto). Unset: input."""
    response: Column | None = None
    """Column with the answer (alpaca, kto). Unset: output; kto uses completion if the rows have it."""
    history: Column | None = None
    """Column with earlier turns, as a list of [question, answer] (alpaca, preference, kto). Unset: history."""
    system: Column | None = None
    """Column with the system prompt. Unset: system."""
    tools: Column | None = None
    """Column with the tools that the model may call, as JSON. Unset: tools."""
    messages: Column | None = None
    """Column with the conversation. Unset: messages (openai), conversations (sharegpt), whichever the rows have
    (preference, kto)."""
    text: Column | None = None
    """Column with the document (text). Unset: text."""
    chosen: Column | None = None
    """Column with the better answer (preference). Unset: chosen."""
    rejected: Column | None = None
    """Column with the worse answer (preference). Unset: rejected."""
    label: Column | None = None
    """Column that says whether the answer is wanted (kto). Unset: label, or kto_tag."""
    images: Column | None = None
    """Refused: only text is trained."""
    videos: Column | None = None
    """Refused: only text is trained."""
    audios: Column | None = None
    """Refused: only text is trained."""


class TagsSpec(ApiModel):
    """Names inside a row's messages that differ from those of the format."""

    role: Column | None = None
    """Key of the speaker's role. Unset: role (openai), from (sharegpt)."""
    content: Column | None = None
    """Key of the message's text. Unset: content (openai), value (sharegpt)."""
    user: Column | None = None
    """Role of the user. Unset: user (openai), human (sharegpt)."""
    assistant: Column | None = None
    """Role of the assistant. Unset: assistant (openai), gpt (sharegpt)."""
    system: Column | None = None
    """Role of the system prompt. Unset: system."""
    function: Column | None = None
    """Role of a tool call by the model (sharegpt). Unset: function_call."""
    observation: Column | None = None
    """Role of a tool's answer. Unset: tool (openai), observation (sharegpt)."""


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
"""Column -> the formats that read it. A column that no format reads is a mistake that nobody would notice."""
MEDIA = ("images", "videos", "audios")
"""Columns that other trainers read, and no format here. They are in the API so that the refusal says why."""
TEXT_ONLY = (
    "columns.images, columns.videos and columns.audios: only text is trained; remove them, and the rows that have media"
)
COLUMNS_OF_FORMATS = (
    "columns names a column that the format does not read: remove it; the columns and their formats are "
    + "; ".join(f"{name} ({', '.join(formats)})" for name, formats in READ_BY.items())
)
TAGS_OF_FORMATS = f"tags needs a format with messages ({', '.join(_MESSAGES)}): change format, or remove tags"
_COLUMNS_FIT = " && ".join(
    f"(!has(self.columns.{name}) || self.format in {list(formats)})" for name, formats in READ_BY.items()
)
_DATASET_RULES: list[JsonDict] = [
    cel("!has(self.columns) || !(" + " || ".join(f"has(self.columns.{name})" for name in MEDIA) + ")", TEXT_ONLY),
    cel(f"!has(self.columns) || ({_COLUMNS_FIT})", COLUMNS_OF_FORMATS),
    cel(f"!has(self.tags) || self.format in {list(_MESSAGES)}", TAGS_OF_FORMATS),
]


class DatasetSpec(ApiModel):
    """A data set: a file, or a directory of files of the same kind."""

    model_config = ConfigDict(json_schema_extra=validated(_DATASET_RULES))

    source: DataSource
    """json, jsonl, csv, parquet, arrow or txt, also compressed, at hf://org/name[@revision][/path], s3://bucket/prefix,
    pvc://claim/path or configmap://name/key."""
    format: Format
    """Layout of a row: alpaca, sharegpt or openai (conversations), text (documents), preference (pairs), kto (labelled
    answers). See docs/data.md."""
    columns: ColumnsSpec | None = None
    """Names of columns. Set it if the rows use other names than the format."""
    tags: TagsSpec | None = None
    """Names inside messages. Set it if the messages use other names than the format."""
    subset: Column | None = None
    """Configuration of a hub repository that has several."""
    split: Column | None = None
    """Split of a directory or hub repository that has several (train, validation, test). Unset: train if there are
    splits, otherwise all files."""
    max_samples: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Maximum number of rows to use, drawn by training.seed. Set it for a quick trial. Unset: all rows."""
    weight: float | None = Field(default=None, gt=0, le=1_000_000)
    """Share of this data set in the mixture, relative to the others. Needs mixing interleaveUnder or interleaveOver.
    Unset: 1."""
    # No default in the schema, as in all lists: kubectl and Argo CD would see a difference that never goes away.
    max_invalid_rows: int | None = Field(default=None, ge=0, le=1_000_000_000)
    """Invalid rows that are skipped; with more the job fails before it holds a GPU. Raise it for data that you cannot
    clean. Unset: 0."""

    @model_validator(mode="after")
    def _names_are_read(self) -> Self:
        if self.columns and any(name in MEDIA for name in self.columns.to_dict()):
            raise ValueError(TEXT_ONLY)
        if self.columns and any(self.format not in READ_BY[name] for name in self.columns.to_dict()):
            raise ValueError(COLUMNS_OF_FORMATS)
        if self.tags and self.format not in _MESSAGES:
            raise ValueError(TAGS_OF_FORMATS)
        return self


class GenerateSpec(ApiModel):
    """Stage sft: greedy answers to held-out prompts, compared with the expected answers."""

    max_new_tokens: int = Field(default=256, ge=1, le=65_536)
    """Longest answer in tokens. Raise it if expected answers are longer."""
    max_rows: int = Field(default=200, ge=1, le=1_000_000)
    """Maximum number of held-out rows to answer, from the first row on. Raise it for more exact scores, at the cost of
    time."""


class EarlyStoppingSpec(ApiModel):
    """Ends training when evaluations stop improving: when the loss no longer falls or, in stage ppo, the mean reward no
    longer rises."""

    patience: int = Field(ge=1, le=1000)
    """Evaluations in a row without improvement before training ends. Raise it if the evaluation loss is noisy."""
    min_delta: float = Field(default=0.0, ge=0, le=1000)
    """Smallest change of the loss (ppo: of the reward) that counts as an improvement. Raise it to ignore small
    gains."""


HELD_OUT = "set exactly one of datasets and splitFraction"
STOPPING = "earlyStopping compares evaluations during training: set everySteps"
_EVALUATION_RULES: list[JsonDict] = [
    cel("has(self.datasets) != has(self.splitFraction)", HELD_OUT),
    cel("!has(self.earlyStopping) || has(self.everySteps)", STOPPING),
]


class EvaluationSpec(ApiModel):
    """Evaluation on held-out data. Set exactly one of datasets and splitFraction."""

    model_config = ConfigDict(json_schema_extra=validated(_EVALUATION_RULES))

    datasets: list[DatasetSpec] | None = Field(default=None, min_length=1, max_length=16)
    """Held-out data sets. The model does not train on them."""
    split_fraction: float | None = Field(default=None, gt=0, le=0.5)
    """Share of the training rows to hold out, drawn by training.seed. Set it if you have no separate data for
    evaluation."""
    every_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer steps between evaluations; the last step is always evaluated. Lower it to see overfitting earlier.
    Unset: only the last step."""
    early_stopping: EarlyStoppingSpec | None = None
    """Ends training before epochs or maxSteps are reached. Unset: training never ends early."""
    generate: GenerateSpec | None = None
    """Stage sft: BLEU, ROUGE and exact match of answers that the trained model generates at the end. Unset: none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.datasets is None) == (self.split_fraction is None):
            raise ValueError(HELD_OUT)
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
MASKS = "trainOnPrompt trains every token, which contradicts maskHistory: remove either"
_TEMPLATE_RULES: list[JsonDict] = [cel("!(self.trainOnPrompt && self.maskHistory)", MASKS)]


class TemplateSpec(ApiModel):
    """How a conversation becomes tokens, and which of the tokens are trained."""

    model_config = ConfigDict(json_schema_extra=validated(_TEMPLATE_RULES))

    name: TemplateName | None = None
    """Chat template to use, saved with the artifact. Set it for a base model that has none, or to replace its own.
    Unset: the tokenizer's own."""
    history: Literal["split", "lastTurn", "asRendered"] = "split"
    """For templates that drop reasoning of earlier turns. split: a row per answer. lastTurn: the last answer only.
    asRendered: all answers as rendered."""
    default_system: Annotated[str, StringConstraints(max_length=16_384)] | None = None
    """System prompt of conversations that have none. Unset: that of the template, if it has any."""
    train_on_prompt: bool = False
    """Train on every token, prompts included. Turn it on if the model must learn to write prompts too."""
    mask_history: bool = False
    """Train on the last answer of each conversation only. Turn it on if earlier answers are poor."""

    @model_validator(mode="after")
    def _masks_agree(self) -> Self:
        if self.train_on_prompt and self.mask_history:
            raise ValueError(MASKS)
        return self
