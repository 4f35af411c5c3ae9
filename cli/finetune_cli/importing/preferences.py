"""spec.dpo, spec.kto and spec.ppo from the settings of LLaMA-Factory."""

from typing import Any, get_args

from finetune_cli.importing.notes import Fate, Imported
from finetune_cli.importing.settings import Settings
from finetune_cli.importing.values import left_out

DPO = (
    ("pref_beta", "beta"),
    ("pref_ftx", "sftWeight"),
    ("dpo_label_smoothing", "labelSmoothing"),
    ("simpo_gamma", "simpoGamma"),
    ("ld_alpha", "ldAlpha"),
)
KTO = (
    ("pref_beta", "beta"),
    ("pref_ftx", "sftWeight"),
    ("kto_chosen_weight", "desirableWeight"),
    ("kto_rejected_weight", "undesirableWeight"),
)


def section(out: Imported, given: Settings, stage: str) -> None:
    """The section of the stage."""
    found: dict[str, Any] = {}
    if stage == "ppo":
        found = _ppo(out, given)
    elif stage in ("dpo", "kto"):
        for argument, field in DPO if stage == "dpo" else KTO:
            value = given.number(argument)
            if value is not None:
                found[field] = value
    if stage == "dpo":
        _loss(out, given, found)
    if stage != "rm":
        _reference(given, found)
    if found:
        out.job["spec"][stage] = found


def _loss(out: Imported, given: Settings, found: dict[str, Any]) -> None:
    from finetune_api.stages import DpoSpec

    allowed = get_args(DpoSpec.model_fields["loss"].annotation)
    loss = str(given.take("pref_loss", "sigmoid"))
    if loss in allowed:
        found["loss"] = loss
    else:
        left_out(out, "pref_loss", loss)
    if loss != "simpo":
        found.pop("simpoGamma", None)


def _reference(given: Settings, found: dict[str, Any]) -> None:
    model, adapter = given.take("ref_model"), given.take("ref_model_adapters")
    if adapter:
        found["reference"] = {
            "source": given.source(str(adapter)),
            **({"base": given.source(str(model))} if model else {}),
        }
    elif model:
        found["reference"] = {"source": given.source(str(model))}


def _ppo(out: Imported, given: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model, kind = given.take("reward_model"), str(given.take("reward_model_type", "lora"))
    if model and kind == "api":
        found["rewardModel"] = {"http": {"url": str(model)}}
    elif model:
        source = given.source(str(model))
        found["rewardModel"] = {"source": source}
        if source.startswith("pvc://"):
            text = f"it is a folder: copy it to claim {given.models_claim}, so that {source} is the reward model"
            out.note(Fate.CHANGED, f"reward_model: {model}", text)
    else:
        found["rewardModel"] = {"fromJob": "reward-model"}
        out.note(Fate.CHANGED, "reward_model", "it is left out: name the job of your reward model in ppo.rewardModel")
    found["epochs"] = int(given.take("ppo_epochs", 4))
    batches = int(given.take("ppo_buffer_size", 1))
    if batches > 1:
        found["rolloutBatchSize"] = batches * int(out.job["spec"]["training"]["globalBatchSize"])
    found["rewardNormalization"] = "running" if given.take("ppo_score_norm", False) else "none"
    if given.has("ppo_target"):
        found["klTarget"] = given.number("ppo_target")
    if given.take("ppo_whiten_rewards", False):
        found["whitenRewards"] = True
    length, cutoff = int(given.take("max_new_tokens", 1024)), int(out.job["spec"]["training"]["cutoffLength"])
    found["maxNewTokens"] = min(length, cutoff // 2)
    if length > cutoff // 2:
        out.note(
            Fate.CHANGED, f"max_new_tokens: {length}", "prompt and answer share cutoffLength, so answers get half of it"
        )
    top_k = int(given.take("top_k", 50))
    if top_k > 0:
        found["topK"] = top_k
    found["topP"] = given.number("top_p", 0.7)
    found["temperature"] = given.number("temperature", 0.95)
    return found
