"""README.md of the artifact: what it is, what it was made of, and how to use it.

Called by `finetune_trainer.artifact`.
"""

from typing import Any

from finetune_api.contract import ResolvedJob

from finetune_trainer.reporting import model_usage
from finetune_trainer.reporting.metrics import LOGGED, TEXTS


def render(job: ResolvedJob, kind: str, provenance: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The card, with the front matter that model hubs read."""
    scores = job.stage == "rm"
    what = ("A LoRA adapter" if kind == "adapter" else "A model") + (" that scores answers" if scores else "")
    settings = _settings(job, provenance)
    results = _results(provenance, metrics)
    data = [[f"`{entry['source']}`", f"`{entry['digest']}`"] for entry in provenance["data"]]
    library = "peft" if kind == "adapter" else "transformers"
    return "\n".join(
        [
            f"---\nlibrary_name: {library}\npipeline_tag: {'text-classification' if scores else 'text-generation'}",
            f"tags:\n- finetune-operator\n- {job.stage}\n---",
            f"# {job.name}\n",
            f"{what}, made by FineTuneJob `{provenance['namespace']}/{job.name}` (stage {job.stage}) from"
            f" `{job.model.source}`.\n",
            "## Use\n",
            f"```python\n{model_usage.code(job, provenance)}\n```\n",
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
    """What became of the base model's."""
    added = ["new tokens"] if job.model.new_tokens or job.model.new_special_tokens else []
    template = [f"the chat template `{job.template.name}`"] if job.template.name else []
    more = " and ".join(added + template)
    return "The tokenizer is that of the base model" + (f", with {more}." if more else ".")


def _settings(job: ResolvedJob, provenance: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters: those of every training, and what the stage's section says."""
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
        **_settled(job, provenance["settled"]),
    }


def _settled(job: ResolvedJob, settled: dict[str, str]) -> dict[str, str | int | float | bool]:
    """The stage's settings, as they came out where the job's word was not the last one."""
    asked = stage_settings(job)
    came_out = {f"{job.stage}.{name}": value for name, value in settled.items()}
    return asked | {
        name: f"{value} (the job says {asked[name]})" for name, value in came_out.items() if value != asked[name]
    }


def stage_settings(job: ResolvedJob) -> dict[str, str | int | float | bool]:
    """What the stage's own section says in numbers and words, under the names of the spec."""
    section = job.rm or job.dpo or job.kto or job.ppo
    values = section.to_dict() if section else {}
    return {f"{job.stage}.{name}": value for name, value in values.items() if isinstance(value, str | int | float)}


def _results(provenance: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """What is known of the model at the end."""
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
        for when, told in (("eval", "evaluation"), ("final", "training, last")):
            if f"{when}_{name}" in metrics:
                results[f"{told}: {name}"] = f"{metrics[f'{when}_{name}']:.4g}"
    return results | (_merge_results(provenance["merge"]) if "merge" in provenance else {})


def _lineage(provenance: dict[str, Any]) -> list[str]:
    """Other models that this one was made with, and other jobs that made them."""
    models = [("model", provenance["model"]), ("earlier adapter", provenance["adapter"])]
    models += [("reference", provenance["reference"]), ("reward model", provenance["rewardModel"])]
    rows = [[what, f"`{one['source']}`", f"`{one['digest']}`"] for what, one in models if one]
    jobs = [
        [one["use"], f"`{one['job']}` ({one['stage']}, uid {one['uid']})", f"`{one['artifact']['digest']}`"]
        for one in provenance["references"]
    ]
    made_by = [_table(["used as", "FineTuneJob", "digest of its artifact"], jobs)] if jobs else []
    return ["## Models\n", _table(["what", "source", "digest"], rows), *made_by]


def _merge_results(merge: dict[str, Any]) -> dict[str, str]:
    """What the merged model lost: by rounding, and by leaving the quantised base it was trained on."""
    told = {f"rounded to {merge['dtype']}, against fp32": merge["rounding"]}
    if merge["drift"]:
        told["merged, against the quantised base with the adapter"] = merge["drift"]
    return {name: _distance(how_far) for name, how_far in told.items()}


def _distance(how_far: dict[str, float]) -> str:
    if "score" in how_far:
        return f"scores differ by up to {how_far['score']:.2e}; their deviation is {how_far['spread']:.2e}"
    return f"same top token {how_far['top1']:.1%}, mean KL {how_far['kl']:.2e}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
