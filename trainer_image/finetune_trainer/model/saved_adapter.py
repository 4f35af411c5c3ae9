"""An adapter from files: whether it fits the job's model, and attaching it to a model."""

from pathlib import Path
from typing import Any, cast

import torch
from finetune_api.contract import ResolvedJob
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import adapter_config, base, model_files, reward_head, vocabulary, weight_shapes
from finetune_trainer.workspace.files import parse_object

EMBEDDINGS = tuple(
    f".{name}.weight" for name in ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out")
)
"""How the names of embeddings and heads end, in all families."""


def mode_of(job: ResolvedJob) -> str | None:
    """What happens to the job's earlier adapter: continue or merge. None when the job has none."""
    return job.tuning.adapter.mode if job.tuning.adapter else None


def kind_of(adapter: Path) -> base.Kind:
    """The kind of model that an adapter belongs to."""
    config = parse_object((adapter / model_files.ADAPTER_CONFIG).read_bytes())
    return "reward" if model_files.is_reward_adapter(config) else "causal"


def embedding_rows(adapter: Path) -> int:
    """The number of tokens in the adapter's own embeddings. 0 when it has none."""
    with safe_open(adapter / model_files.ADAPTER_WEIGHTS, framework="pt") as weights:
        names = weights.keys()
        sizes = [weights.get_slice(name).get_shape()[0] for name in names if name.endswith(EMBEDDINGS)]
    return max(sizes, default=0)


def check_fits(base_folder: Path, adapter: Path, job: ResolvedJob) -> None:
    """The job can use this adapter with its model and stage. Loading compares shapes; this checks what shapes do not
    show. Raises InvalidSpec."""
    assert job.tuning.adapter is not None
    source, mode = job.tuning.adapter.source, job.tuning.adapter.mode
    config = model_files.check_adapter(adapter, source)
    if config.get("init_lora_weights") not in (True, False, "gaussian", None):
        raise InvalidSpec(
            f"tuning.adapter.source: {source} was made with init_lora_weights={config['init_lora_weights']!r}, so it"
            " belongs to a changed base. Convert it to an ordinary adapter first"
        )
    if (adapter / model_files.BASE_ADAPTER).is_dir():
        raise InvalidSpec(
            f"tuning.adapter.source: {source} belongs to a base into which the adapter in its"
            f" {model_files.BASE_ADAPTER}/ was merged. Set output.merge in the job that made it, and name that job's"
            " artifact as model.source"
        )
    if config.get("use_dora") and job.tuning.quantization is not None and job.tuning.quantization.bits == 8:
        raise InvalidSpec(f"tuning.adapter.source: {source} is a DoRA adapter. Set quantization.bits to 4")
    if model_files.is_reward_adapter(config) and job.stage != "rm":
        raise InvalidSpec(
            f"tuning.adapter.source: {source} is a reward model's adapter, but stage {job.stage} trains a language"
            " model. Name an adapter of a language model"
        )
    scores = model_files.is_reward_adapter(config) or model_files.has_value_head(adapter)
    if job.stage == "rm" and mode == "continue" and not scores:
        raise InvalidSpec(
            f"tuning.adapter.mode: {source} is a language model's adapter, which has no scores to continue with. Use"
            " mode merge"
        )
    trains = set(config.get("modules_to_save") or ()) | set(config.get("trainable_token_indices") or ())
    if mode == "continue" and vocabulary.adds_tokens(job.model) and not trains:
        raise InvalidSpec(
            f"model.newTokens: the adapter {source} does not train embeddings, so new tokens would not be learned. Use"
            " adapter.mode merge, or remove model.newTokens and model.newSpecialTokens"
        )
    architectures = parse_object((base_folder / "config.json").read_bytes()).get("architectures")
    made_for = (config.get("auto_mapping") or {}).get("base_model_class")
    if made_for and architectures and made_for not in architectures:
        raise InvalidSpec(
            f"tuning.adapter.source: {source} was made for {made_for}, but the model is {architectures[0]}. Name an"
            " adapter of this model"
        )


def check_patterns(adapter: Path, names: list[str], source: str, field: str = "tuning.adapter.source") -> None:
    """The patterns of the adapter's config can be held against the layers of a model. Raises InvalidSpec."""
    config = model_files.check_adapter(adapter, source, field)
    adapter_config.check(config, weight_shapes.of_adapter(adapter, source, field), names, source, field)


def attach(
    model: PreTrainedModel,
    adapter: Path,
    source: str,
    *,
    trainable: bool = False,
    exact: bool = False,
    field: str = "tuning.adapter.source",
) -> PeftModel:
    """The model with the adapter, frozen, or ``trainable``. With ``exact`` a frozen adapter computes as it did in
    training: its full modules (modulesToSave) stay in fp32 beside a bf16 base, and autocast mixes them. Raises
    InvalidSpec for an adapter of another model."""
    try:
        if reward_head.is_reward_model(model) and model_files.has_value_head(adapter):
            tuned = _with_value_head(model, adapter, trainable)
        else:
            tuned = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable, use_safetensors=True)
        if trainable or exact:
            _restore_fp32(tuned, adapter)
        return tuned
    except (torch.OutOfMemoryError, OSError, MemoryError):
        raise
    except Exception as error:  # peft passes on whatever the values of the config lead to
        raise InvalidSpec(f"{field}: {source} does not fit the model: {error}") from error


def attach_for_training(model: PreTrainedModel, adapter: Path, job: ResolvedJob) -> PeftModel:
    """The model with the job's earlier adapter, which is trained further."""
    assert job.tuning.adapter is not None
    source = job.tuning.adapter.source
    tuned = attach(model, adapter, source, trainable=True)
    if not any(weight.requires_grad for weight in tuned.parameters()):
        raise InvalidSpec(f"tuning.adapter.source: {source} has no weights to train. Use adapter.mode merge")
    return tuned


def _with_value_head(model: PreTrainedModel, adapter: Path, trainable: bool) -> PeftModel:
    """A reward model with an adapter whose own config and weights know nothing of the head beside it."""
    config = PeftConfig.from_pretrained(str(adapter))
    config.task_type, config.inference_mode = "SEQ_CLS", not trainable
    config.modules_to_save = sorted({*(config.modules_to_save or ()), reward_head.NAME})
    tuned = cast(PeftModel, get_peft_model(model, config))
    result: Any = set_peft_model_state_dict(tuned, _weights(tuned, adapter))
    if unexpected := result.unexpected_keys:
        raise ValueError(f"the model has no {unexpected[0]}")
    return tuned


def _weights(model: PeftModel, adapter: Path) -> dict[str, torch.Tensor]:
    """The adapter's weights. For a reward model with those of a head in a file of its own."""
    weights = load_file(adapter / model_files.ADAPTER_WEIGHTS)
    if model_files.has_value_head(adapter) and model.active_peft_config.task_type == "SEQ_CLS":
        head = load_file(adapter / model_files.VALUE_HEAD)[reward_head.VALUE_HEAD_WEIGHT]
        weights[f"base_model.model.{reward_head.NAME}.weight"] = head
    return weights


def _restore_fp32(model: PeftModel, adapter: Path) -> None:
    """peft creates an adapter's full modules in the number type of the base, and rounds their weights to it. Load them
    again in fp32."""
    full = [weight for name, weight in model.named_parameters() if ".modules_to_save." in name]
    if all(weight.dtype == torch.float32 for weight in full):
        return
    for weight in full:
        weight.data = weight.data.float()
    set_peft_model_state_dict(model, _weights(model, adapter))
