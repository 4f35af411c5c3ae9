"""A TrainJob of Kubeflow Trainer becomes a FineTuneJob, as far as it says what is trained.

A TrainJob with the runtime of torchtune says it by its settings. Another runtime runs a program of the user; then its
resources, environment, model and data are kept, and the rest is named.
"""

from typing import Any

from finetune_cli.importing.notes import Fate, Imported, ordered, put
from finetune_cli.problem import Problem

KIND = "TrainJob"
GPUS = ("nvidia.com/gpu", "amd.com/gpu")
TORCHTUNE: dict[str, str] = {
    "epochs": "training.epochs",
    "batch_size": "training.microBatchSize",
    "optimizer.lr": "training.learningRate",
    "optimizer.weight_decay": "training.weightDecay",
    "lr_scheduler.num_warmup_steps": "",
    "model.lora_rank": "tuning.lora.rank",
    "model.lora_alpha": "tuning.lora.alpha",
    "model.lora_dropout": "tuning.lora.dropout",
    "model.lora_attn_modules": "tuning.lora.targets",
    "seed": "training.seed",
    "max_steps_per_epoch": "",
    "tokenizer.max_seq_len": "training.cutoffLength",
    "gradient_accumulation_steps": "",
}
"""Settings of torchtune -> fields. An empty field: a note says why."""
PRECISION = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}


def convert(train_job: dict[str, Any], *, workspace_size: str = "50Gi") -> Imported:
    """The job."""
    if train_job.get("kind") != KIND:
        raise Problem(f"This is no {KIND} of Kubeflow Trainer (kind: {train_job.get('kind')}).")
    given = train_job.get("spec") or {}
    out = Imported(
        {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": _metadata(train_job),
            "spec": {"stage": "sft", "training": {}, "workspace": {"claim": {"size": workspace_size}}},
        }
    )
    spec = out.job["spec"]
    _sources(out, given.get("initializer") or {})
    trainer = given.get("trainer") or {}
    _resources(out, trainer)
    runtime = str((given.get("runtimeRef") or {}).get("name") or "")
    if "torchtune" in runtime:
        _torchtune(out, trainer)
        out.note(Fate.CHANGED, f"runtimeRef: {runtime}", "finetune-operator's own trainer takes the place of torchtune")
    else:
        _own_program(out, trainer, runtime)
    if not {"epochs", "maxSteps"} & set(spec["training"]):
        spec["training"]["epochs"] = 1
    if given.get("suspend"):
        spec["suspend"] = True
    for key in ("podTemplateOverrides", "runtimePatches", "managedBy"):
        if given.get(key):
            text = "spec.resources has nodeSelector, tolerations, affinity, volumes and others: set them there"
            out.note(Fate.LEFT_OUT, key, text)
    for key in ("labels", "annotations"):
        if given.get(key):
            put(spec, "resources.podLabels" if key == "labels" else "resources.podAnnotations", dict(given[key]))
    out.job["spec"] = ordered(spec)
    return out


def _metadata(train_job: dict[str, Any]) -> dict[str, Any]:
    given = train_job.get("metadata") or {}
    kept = {"name": str(given.get("name") or "imported")[:40].rstrip("-")}
    return {**kept, **{key: given[key] for key in ("namespace", "labels") if given.get(key)}}


def _sources(out: Imported, initializer: dict[str, Any]) -> None:
    spec = out.job["spec"]
    model, data = (str((initializer.get(kind) or {}).get("storageUri") or "") for kind in ("model", "dataset"))
    spec["model"] = {"source": model or "pvc://models/model"}
    if not model:
        out.note(Fate.CHANGED, "initializer.model", "it is left out: name your model in model.source")
    spec["datasets"] = [{"source": data or "pvc://data/rows.jsonl", "format": "alpaca"}]
    text = "name the format of the rows in datasets[0].format (docs/data.md); alpaca is a guess"
    out.note(Fate.CHANGED, f"initializer.dataset: {data or 'left out'}", text)
    for kind in ("model", "dataset"):
        if secret := ((initializer.get(kind) or {}).get("secretRef") or {}).get("name"):
            put(spec, "secrets.huggingFace", secret)
            out.note(Fate.CHANGED, f"initializer.{kind}.secretRef", f"Secret {secret} must have the key HF_TOKEN")


def _resources(out: Imported, trainer: dict[str, Any]) -> None:
    spec = out.job["spec"]
    resources = trainer.get("resourcesPerNode") or {}
    limits = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    found: dict[str, Any] = spec.setdefault("resources", {})
    if trainer.get("numNodes", 1) > 1:
        found["nodes"] = int(trainer["numNodes"])
        spec["workspace"]["claim"]["accessMode"] = "ReadWriteMany"
    for name, value in limits.items():
        if name in GPUS:
            found["gpusPerNode"] = int(value)
            if name != "nvidia.com/gpu":
                found["gpuResource"] = name
        elif name in ("cpu", "memory"):
            found[name] = str(value)
        else:
            out.note(Fate.LEFT_OUT, f"resourcesPerNode: {name}", "name other devices in resources.devices")
    if trainer.get("env"):
        found["env"] = list(trainer["env"])


def _torchtune(out: Imported, trainer: dict[str, Any]) -> None:
    spec = out.job["spec"]
    settings = dict(word.split("=", 1) for word in trainer.get("args") or () if "=" in word)
    spec["tuning"] = {"method": "lora" if any(key.startswith("model.lora_") for key in settings) else "full"}
    for key, text in settings.items():
        import yaml

        value = yaml.safe_load(text)
        field = TORCHTUNE.get(key)
        if field:
            put(spec, field, float(value) if field.endswith(("Rate", "Decay", "epochs")) else value)
        elif key == "dtype":
            put(spec, "training.precision", PRECISION.get(str(value), "auto"))
        elif key.startswith("dataset."):
            out.note(Fate.CHANGED, f"{key}={text}", "see datasets[0]: its format and columns")
        else:
            out.note(Fate.LEFT_OUT, f"{key}={text}", "no field means it; `kubectl explain ftj.spec` lists the fields")
    micro = spec["training"].get("microBatchSize", 1)
    accumulated = int(settings.get("gradient_accumulation_steps", 1))
    resources = spec.get("resources") or {}
    ranks = resources.get("nodes", 1) * max(1, resources.get("gpusPerNode", 1))
    spec["training"]["globalBatchSize"] = micro * accumulated * ranks


def _own_program(out: Imported, trainer: dict[str, Any], runtime: str) -> None:
    text = (
        "a FineTuneJob runs the operator's trainer and no program of yours: set spec.training and spec.tuning instead"
    )
    out.note(Fate.LEFT_OUT, f"runtimeRef: {runtime or 'unset'}", text)
    for key in ("image", "command", "args"):
        if trainer.get(key):
            value = trainer[key] if key == "image" else " ".join(map(str, trainer[key]))
            shown = value if len(value) <= 60 else value[:57] + "..."
            out.note(Fate.LEFT_OUT, f"trainer.{key}: {shown}", text)
