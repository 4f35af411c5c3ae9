"""README.md of the artifact: the model card, with its use, training, results and data.

Called by `writer`.
"""

from typing import Any

from finetune_api.contract import ResolvedJob

from finetune_trainer.artifact.usage_example import usage_example
from finetune_trainer.reporting.hyper_parameters import stage_settings
from finetune_trainer.reporting.metrics import TEXTS
from finetune_trainer.reporting.names import LOGGED


def render(job: ResolvedJob, kind: str, provenance: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The card, with the front matter that model hubs read. ``kind`` is adapter or model."""
    scores = job.stage == "rm"
    description = ("A LoRA adapter" if kind == "adapter" else "A model") + (" that scores answers" if scores else "")
    settings = _settings(job, provenance)
    results = _results(provenance, metrics)
    data = [[f"`{entry['source']}`", f"`{entry['digest']}`"] for entry in provenance["data"]]
    library = "peft" if kind == "adapter" else "transformers"
    return "\n".join(
        [
            f"---\nlibrary_name: {library}\npipeline_tag: {'text-classification' if scores else 'text-generation'}",
            f"tags:\n- finetune-operator\n- {job.stage}\n---",
            f"# {job.name}\n",
            f"{description}, made by FineTuneJob `{provenance['namespace']}/{job.name}` (stage {job.stage}) from"
            f" `{job.model.source}`.\n",
            "## Use\n",
            f"```python\n{usage_example(job, provenance)}\n```\n",
            "## Training\n",
            _table(["setting", "value"], [[name, str(value)] for name, value in settings.items()]),
            "## Result\n",
            _table(["metric", "value"], [[name, str(value)] for name, value in results.items()]),
            *_lineage(provenance),
            "## Data\n",
            _table(["source", "digest"], data),
            f"`provenance.json` has digests, versions and the whole job. {_tokenizer(job)}\n",
        ]
    )


def _tokenizer(job: ResolvedJob) -> str:
    """A sentence about the tokenizer."""
    added = ["new tokens"] if job.model.new_tokens or job.model.new_special_tokens else []
    template = [f"the chat template `{job.template.name}`"] if job.template.name else []
    changes = " and ".join(added + template)
    return "The tokenizer is that of the base model" + (f", with {changes}." if changes else ".")


def _settings(job: ResolvedJob, provenance: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters: those of every stage, and the stage's own."""
    training = job.training
    return {
        "method": job.tuning.method,
        **({"rank": job.tuning.lora.rank, "alpha": job.tuning.lora.alpha} if job.tuning.lora else {}),
        "length": f"{training.epochs:g} epochs" if training.epochs is not None else f"{training.max_steps} steps",
        "learning rate": f"{training.learning_rate:g} ({training.scheduler}, warm-up {training.warmup_ratio:g})",
        "global batch": training.global_batch_size,
        "cut-off length": training.cutoff_length,
        "precision": provenance["precision"],
        "seed": training.seed,
        **_stage_settings(job, provenance["settled"]),
    }


def _stage_settings(job: ResolvedJob, effective: dict[str, str]) -> dict[str, str | int | float | bool]:
    """The stage's own settings. Where the run decided another value than the job, the table shows both."""
    requested = stage_settings(job)
    effective = {f"{job.stage}.{name}": value for name, value in effective.items()}
    return requested | {
        name: f"{value} (the job says {requested[name]})"
        for name, value in effective.items()
        if value != requested[name]
    }


def _results(provenance: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics at the end of training."""
    results = {
        "training loss (mean, last)": f"{metrics['train_loss']:.4f}, {metrics['final_loss']:.4f}",
        "rows": metrics["train_samples"],
        "tokens": metrics["num_tokens"],
        "steps": f"{metrics['train_steps']} of {provenance['stepsPlanned']}",
    }
    if provenance["weightsStep"] != metrics["train_steps"]:
        results["weights of step"] = f"{provenance['weightsStep']}, which has the lowest evaluation loss"
    if "eval_loss" in metrics:
        results["evaluation loss"] = f"{metrics['eval_loss']:.4f}"
    for name in ("perplexity", *TEXTS, *LOGGED):
        for prefix, label in (("eval", "evaluation"), ("final", "training, last")):
            if f"{prefix}_{name}" in metrics:
                results[f"{label}: {name}"] = f"{metrics[f'{prefix}_{name}']:.4g}"
    return results | (_merge_results(provenance["merge"]) if "merge" in provenance else {})


def _lineage(provenance: dict[str, Any]) -> list[str]:
    """Tables of the models that the training used, and of the jobs that made them."""
    models = [("model", provenance["model"]), ("earlier adapter", provenance["adapter"])]
    models += [("reference", provenance["reference"]), ("reward model", provenance["rewardModel"])]
    rows = [[use, f"`{model['source']}`", f"`{model['digest']}`"] for use, model in models if model]
    jobs = [
        [entry["use"], f"`{entry['job']}` ({entry['stage']}, uid {entry['uid']})", f"`{entry['artifact']['digest']}`"]
        for entry in provenance["references"]
    ]
    made_by = [_table(["used as", "FineTuneJob", "digest of its artifact"], jobs)] if jobs else []
    return ["## Models\n", _table(["what", "source", "digest"], rows), *made_by]


def _merge_results(merge: dict[str, Any]) -> dict[str, str]:
    """How far the merged model is from the fp32 model and from the quantised model that was trained."""
    differences = {f"rounded to {merge['dtype']}, against fp32": merge["rounding"]}
    if merge["drift"]:
        differences["merged, against the quantised base with the adapter"] = merge["drift"]
    return {name: _describe(difference) for name, difference in differences.items()}


def _describe(difference: dict[str, float]) -> str:
    if "score" in difference:
        return f"scores differ by up to {difference['score']:.2e}; their deviation is {difference['spread']:.2e}"
    return f"same top token {difference['top1']:.1%}, mean KL {difference['kl']:.2e}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
