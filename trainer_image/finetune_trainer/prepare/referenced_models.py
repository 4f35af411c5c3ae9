"""The models of a job besides its own: the reference model of stages dpo, kto and ppo, and the reward model of ppo.

Each is a whole model, or an adapter and its base model. The artifact of another job must still have the digest that it
had when this job was accepted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune_api.contract import ResolvedJob, source_of
from finetune_api.model import ModelSettings

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.fetch import Fetched
from finetune_trainer.model import model_files
from finetune_trainer.prepare import base_of_adapter, tokenizer_identity
from finetune_trainer.workspace.files import parse_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Use = Literal["reference", "rewardModel"]


@dataclass(frozen=True)
class ReferencedModel:
    """A model that the job needs besides its own."""

    use: Use
    field: str
    """Field of the spec that names it."""
    fetched: Fetched
    base: Fetched | None
    """The base model, if ``fetched`` is an adapter."""
    remote_code: bool = False
    """Whether the model's own code may run: only if it is the job's own model."""

    @property
    def model(self) -> Fetched:
        """The whole model: the base model of an adapter."""
        return self.base or self.fetched

    @property
    def tokenizer(self) -> Path:
        """Folder with its tokenizer."""
        has_own = any((self.fetched.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
        return self.fetched.path if has_own or self.base is None else self.base.path


def fetch_referenced_models(job: ResolvedJob, fetch_model: Callable[[str], Fetched]) -> list[ReferencedModel]:
    """Fetch the models that the job names, with their base models. Raises InvalidSpec, and what ``fetch_model``
    raises."""
    referenced = []
    uses: tuple[Use, ...] = ("reference", "rewardModel")
    for use in uses:
        uri = source_of(job, use)
        if uri is None:
            continue
        fetched = fetch_model(uri)
        field = f"{job.stage}.{use}"
        is_adapter = model_files.is_adapter(fetched.path)
        base = fetch_model(base_of_adapter.uri(job, use, fetched, field, fetch_model)) if is_adapter else None
        remote_code = model_files.remote_code(job) and (base or fetched).uri == job.model.source
        referenced.append(ReferencedModel(use, field, fetched, base, remote_code))
    return referenced


def model_folders(referenced: Sequence[ReferencedModel]) -> dict[str, Path | None]:
    """The folders by their names in PREPARED.json."""
    names = {"reference": "reference", "rewardModel": "reward"}
    folders: dict[str, Path | None] = {}
    for model in referenced:
        name = names[model.use]
        folders |= {name: model.fetched.path, f"{name}_base": model.base.path if model.base else None}
    return folders


def check(job: ResolvedJob, referenced: ReferencedModel, tokenizer: "PreTrainedTokenizerBase") -> None:
    """The model can be loaded for its use, and its token ids are the job's. A reference model need not have the tokens
    that the job adds, because the model at the start of the job does not have them either. Raises InvalidSpec,
    NotFound."""
    from finetune_trainer.model import base, weight_shapes  # torch
    from finetune_trainer.reporting.library_logs import silence_libraries  # transformers

    silence_libraries()
    is_reward = referenced.use == "rewardModel"
    kind: base.Kind = "reward" if is_reward else "causal"
    folder, source, field = referenced.fetched.path, referenced.fetched.uri, referenced.field
    model = referenced.model
    if referenced.base is not None:
        _check_adapter(folder, source, field, is_reward)
    else:
        _check_architecture(folder, source, field, is_reward)
    shapes = weight_shapes.of_model(model.path, model.uri, field)
    weight_shapes.check_counts(model.path, shapes, model.uri, field)
    config = base.check(model.path, model.uri, allow_remote_code=referenced.remote_code, kind=kind, field=field)
    if is_reward and model_files.has_value_head(folder):
        weight_shapes.check_value_head(config, folder, source, field)
    weight_shapes.check_model(config, shapes, model.uri, kind=kind, field=field)
    added = [*(job.model.new_tokens or []), *(job.model.new_special_tokens or [])]
    other = _load_tokenizer(referenced, field)
    tokenizer_identity.check_same(tokenizer, other, source, field, ignored=() if is_reward else added)


def _load_tokenizer(referenced: ReferencedModel, field: str) -> "PreTrainedTokenizerBase":
    from finetune_trainer.model import tokenizer  # transformers

    settings = ModelSettings(trust_remote_code=referenced.remote_code)
    try:
        loaded: PreTrainedTokenizerBase = tokenizer.load(
            referenced.tokenizer, settings, allow_remote_code=referenced.remote_code
        )
    except InvalidSpec as error:
        culprit = f"{field}: {referenced.fetched.uri}: its"
        raise InvalidSpec(str(error).replace("model.source: its", culprit, 1)) from error
    return loaded


def _check_adapter(folder: Path, source: str, field: str, is_reward: bool) -> None:
    from finetune_trainer.model import adapter_config, weight_shapes  # torch

    config = model_files.check_adapter(folder, source, field)
    own_head = is_reward and model_files.has_value_head(folder)
    if not own_head and model_files.is_reward_adapter(config) != is_reward:
        raise InvalidSpec(
            f"{field}: {source} is an adapter of {_kind_name(not is_reward)}. Name an adapter of"
            f" {_kind_name(is_reward)}"
        )
    shapes = weight_shapes.of_adapter(folder, source, field)
    adapter_config.check(config, shapes, weight_shapes.lora_layers(shapes), source, field)
    if is_reward and not own_head and not any(name.endswith("score.weight") for name in shapes):
        raise InvalidSpec(
            f"{field}: {source} has no weights of a reward head (score.weight). Name an artifact of stage rm"
        )


def _check_architecture(folder: Path, source: str, field: str, is_reward: bool) -> None:
    """transformers would silently give a language model a reward head of random weights."""
    from finetune_trainer.model import weight_shapes  # torch

    model_files.check_model(folder, source, field)
    if is_reward and model_files.has_value_head(folder):
        return
    architectures = parse_object((folder / "config.json").read_bytes()).get("architectures") or [""]
    if is_reward and not architectures[0].endswith("ForSequenceClassification"):
        raise InvalidSpec(
            f"{field}: {source} is a {architectures[0] or 'model of unknown type'}, which gives no scores. Name an"
            " artifact of stage rm, or a sequence classification model with a single label"
        )
    if is_reward and "score.weight" not in weight_shapes.of_model(folder, source, field):
        raise NotFound(f"{field}: {source} has no weights of a reward head (score.weight). Copy the model again")


def _kind_name(is_reward: bool) -> str:
    return "a reward model" if is_reward else "a language model"
