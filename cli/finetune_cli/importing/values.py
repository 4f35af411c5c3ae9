"""The values of LLaMA-Factory's settings, section by section of a FineTuneJob."""

import json
from pathlib import Path
from typing import Any

from finetune_cli.importing import data_sets, table
from finetune_cli.importing.notes import Fate, Imported, put
from finetune_cli.importing.settings import NOTHING, Settings
from finetune_cli.problem import Problem

ATTENTION = {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flashAttention2"}
QUANTIZED = ("AWQ", "GPTQ", "AQLM", "-FP8", "BNB-4BIT")
COMES_QUANTIZED = (
    "the model comes quantised, so it lacks the original weights. Start from the original model, with tuning.method"
    " qlora"
)
OF_STAGES = {
    *("pref_beta", "pref_loss", "pref_ftx", "dpo_label_smoothing", "simpo_gamma", "ld_alpha", "kto_chosen_weight"),
    *("kto_rejected_weight", "ref_model", "ref_model_adapters", "reward_model", "reward_model_type", "ppo_epochs"),
    *("reward_model_adapters", "ppo_buffer_size", "ppo_score_norm", "ppo_target", "ppo_whiten_rewards"),
    *("max_new_tokens", "max_length", "top_k", "top_p", "temperature"),
}
"""Arguments that only some stages use."""


def own_data_sets() -> data_sets.Info:
    """The text data sets that come with LLaMA-Factory."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("data_sets.json").read_text(encoding="utf-8"))
    return dict(loaded["entries"])


def reason(known: table.Row) -> str:
    """Why an argument has no field, and what to do."""
    return table.plain(known.note)


def changes_something(value: Any) -> bool:
    """Whether a setting asks for something: false and null do not."""
    return value not in (*NOTHING, False, "false", "False", 0, "0")


def why(argument: str) -> str:
    """The note of an argument."""
    known = table.row(argument)
    return table.plain(known.note) if known else ""


def left_out(out: Imported, argument: str, value: Any, text: str = "") -> None:
    """A note that a setting is not kept."""
    out.note(Fate.LEFT_OUT, f"{argument}: {value}", text or why(argument))


def model(out: Imported, given: Settings) -> None:
    """spec.model."""
    spec = out.job["spec"]
    path = given.take("model_name_or_path")
    if not path:
        raise Problem("The configuration has no model_name_or_path, so it is no training of LLaMA-Factory.")
    revision = given.take("model_revision")
    source = given.source(str(path), revision)
    spec["model"] = {"source": source}
    if source.startswith("pvc://"):
        text = f"it is a folder: copy it to claim {given.models_claim}, so that {source} is the model"
        out.note(Fate.CHANGED, f"model_name_or_path: {path}", text)
    if any(word in str(path).upper() for word in QUANTIZED):
        left_out(out, "model_name_or_path", path, COMES_QUANTIZED)
    if given.take("trust_remote_code", False):
        from finetune_api.model import is_pinned

        if is_pinned(source):
            spec["model"]["trustRemoteCode"] = True
        else:
            left_out(out, "trust_remote_code", True)
    attention = str(given.take("flash_attn", "auto"))
    if attention not in ATTENTION:
        left_out(out, "flash_attn", attention)
    elif attention != "auto":
        spec["model"]["attention"] = ATTENTION[attention]
    for argument, field in (("add_tokens", "newTokens"), ("add_special_tokens", "newSpecialTokens")):
        if given.has(argument):
            spec["model"][field] = data_sets.names(given.take(argument))
    given.take("resize_vocab")


def tuning(out: Imported, given: Settings) -> None:
    """spec.tuning."""
    spec = out.job["spec"]
    method = str(given.take("finetuning_type", "lora"))
    bits = given.take("quantization_bit")
    kind = str(given.take("quantization_method", "bnb"))
    if method == "oft":
        left_out(out, "finetuning_type", "oft", f"{why('oft_target')}. The job uses lora")
        method = "lora"
    if bits and (kind not in ("bnb", "bitsandbytes") or int(bits) not in (4, 8)):
        left_out(out, "quantization_method", f"{kind}, {bits} bits", "bitsandbytes only, with 4 or 8 bits")
        bits = None
    if bits and method == "lora":
        method = "qlora"
        put(spec, "tuning.quantization.bits", int(bits))
        if given.has("double_quantization"):
            put(spec, "tuning.quantization.doubleQuantization", bool(given.take("double_quantization")))
    put(spec, "tuning.method", method)
    continued = _adapter(out, given)
    if method in ("lora", "qlora") and not continued:
        _lora(out, given)
    if method == "freeze":
        put(spec, "tuning.freeze.layers", int(given.take("freeze_trainable_layers", 2)))
        modules = data_sets.names(given.take("freeze_trainable_modules", "all"))
        if modules != ["all"]:
            put(spec, "tuning.freeze.modules", modules)
        if given.has("freeze_extra_modules"):
            put(spec, "tuning.freeze.extraModules", data_sets.names(given.take("freeze_extra_modules")))


def _adapter(out: Imported, given: Settings) -> bool:
    """Whether the job continues an earlier adapter."""
    named = data_sets.names(given.take("adapter_name_or_path", ""))
    merged = bool(given.take("create_new_adapter", False))
    if not named:
        return False
    if len(named) > 1:
        left_out(out, "adapter_name_or_path", ", ".join(named[:-1]))
    source = given.source(named[-1])
    out.job["spec"]["tuning"]["adapter"] = {"source": source, "mode": "merge" if merged else "continue"}
    if source.startswith("pvc://"):
        text = f"it is a folder: copy it to claim {given.models_claim}, so that {source} is the adapter"
        out.note(Fate.CHANGED, f"adapter_name_or_path: {named[-1]}", text)
    return not merged


def _lora(out: Imported, given: Settings) -> None:
    lora: dict[str, Any] = {"rank": int(given.take("lora_rank", 8))}
    for argument, field, kind in (
        ("lora_alpha", "alpha", int),
        ("lora_dropout", "dropout", float),
        ("use_rslora", "rsLora", bool),
        ("use_dora", "dora", bool),
        ("loraplus_lr_ratio", "loraPlusRatio", float),
    ):
        if given.has(argument):
            lora[field] = kind(given.take(argument))
    targets = data_sets.names(given.take("lora_target", "all"))
    if targets != ["all"]:
        lora["targets"] = targets
    if given.has("additional_target"):
        lora["modulesToSave"] = data_sets.names(given.take("additional_target"))
    if given.take("pissa_init", False):
        lora["init"] = "pissa"
        if int(given.take("pissa_iter", 16)) not in (16, -1):
            left_out(out, "pissa_iter", given.take("pissa_iter"))
    out.job["spec"]["tuning"]["lora"] = lora


def template(out: Imported, given: Settings, stage: str) -> None:
    """spec.template."""
    name = given.take("template")
    thinking = bool(given.take("enable_thinking", True))
    found: dict[str, Any] = {}
    if name and stage == "pt":
        out.note(Fate.NOT_NEEDED, f"template: {name}", "stage pt has no template")
    elif name:
        known = table.template(str(name), thinking)
        if known is None or known.missing:
            left_out(
                out, "template", name, "the model's own chat template is used, which is what servers show the model"
            )
        else:
            found.update(known.settings)
            _compare(out, str(name), known, given.has("default_system"))
    if stage != "pt" and given.has("default_system"):
        found["defaultSystem"] = str(given.take("default_system"))
    if stage == "sft":
        for argument, field in (("train_on_prompt", "trainOnPrompt"), ("mask_history", "maskHistory")):
            if given.take(argument, False):
                found[field] = True
    if found:
        out.job["spec"]["template"] = found


def _compare(out: Imported, name: str, known: table.Template, system: bool) -> None:
    if known.own_system and not system:
        text = "it has a system message of its own there: set template.defaultSystem to it"
        out.note(Fate.CHANGED, f"template: {name}", text)
    if known.same != "the same":
        text = f"its text is {known.same}" + (f": {table.plain(known.note)}" if known.note else "")
        out.note(Fate.CHANGED, f"template: {name}", text)


def reporting(out: Imported, given: Settings) -> None:
    """spec.reporting, spec.output and spec.secrets."""
    spec = out.job["spec"]
    trackers = given.take("report_to", [])
    for tracker in data_sets.names(trackers):
        if tracker == "tensorboard":
            put(spec, "reporting.tensorboard", True)
        elif tracker in ("wandb", "all"):
            put(spec, "reporting.wandb", {"project": str(given.take("project", "llamafactory")), "secret": "wandb"})
            text = "create a Secret wandb with the key WANDB_API_KEY, and check reporting.wandb.project"
            out.note(Fate.CHANGED, f"report_to: {tracker}", text)
        elif tracker != "none":
            left_out(out, "report_to", tracker, "set reporting.mlflow by hand" if tracker == "mlflow" else "")
    target = given.take("hub_model_id")
    pushed = given.take("push_to_hub", False)
    if pushed and target:
        revision = given.take("hub_revision")
        put(spec, "output.uri", f"hf://{target}" + (f"@{revision}" if revision else ""))
    elif pushed:
        left_out(out, "push_to_hub", True, "name the repository in output.uri")
    if given.has("hf_hub_token") or given.has("hub_token"):
        given.take("hf_hub_token"), given.take("hub_token")
        put(spec, "secrets.huggingFace", "hugging-face")
        text = "create a Secret hugging-face with the key HF_TOKEN; the token itself is not copied"
        out.note(Fate.CHANGED, "hf_hub_token", text)
    if given.has("output_dir"):
        name = out.job["metadata"]["name"]
        text = f"the results are in jobs/{name}/ of the workspace"
        out.note(Fate.CHANGED, f"output_dir: {given.take('output_dir')}", text)


def evaluation(out: Imported, given: Settings, stage: str) -> None:
    """spec.evaluation."""
    spec = out.job["spec"]
    share = given.number("val_size", 0.0) or 0.0
    if share > 1:
        left_out(
            out,
            "val_size",
            int(share),
            "it is a number of rows: divide it by all rows, and set evaluation.splitFraction",
        )
    elif share and "evaluation" not in spec:
        put(spec, "evaluation.splitFraction", min(share, 0.5))
        if share > 0.5:
            out.note(Fate.CHANGED, f"val_size: {share}", "at most half of the rows can be held out")
    strategy = str(given.take("eval_strategy", given.take("evaluation_strategy", "no")))
    steps = given.number("eval_steps")
    if "evaluation" not in spec:
        if steps or strategy not in ("no", "False"):
            left_out(out, "eval_strategy", strategy, "no data is held out: set val_size or eval_dataset")
        return
    if strategy == "epoch":
        left_out(out, "eval_strategy", "epoch", "evaluations are by steps: set evaluation.everySteps")
    elif strategy == "steps" or (steps and strategy == "no"):
        put(spec, "evaluation.everySteps", max(1, int(steps or given.number("logging_steps", 500) or 500)))
    if given.has("early_stopping_steps") and spec["evaluation"].get("everySteps"):
        put(spec, "evaluation.earlyStopping.patience", int(given.take("early_stopping_steps")))
    generates = bool(given.take("predict_with_generate", False)) or bool(given.take("do_predict", False))
    if generates and stage == "sft":
        length = given.take("generation_max_length", given.take("max_new_tokens", 1024))
        put(spec, "evaluation.generate", {"maxNewTokens": int(length)})
    if given.take("load_best_model_at_end", False) and spec["evaluation"].get("everySteps"):
        put(spec, "output.weights", "best")
