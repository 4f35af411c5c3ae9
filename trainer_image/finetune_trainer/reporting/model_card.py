"""README.md of the artifact: what it is, what it was made of, and how to use it.

Called by `finetune_trainer.artifact`.
"""

from typing import Any

from finetune_api.contract import ResolvedJob

_USE = {
    "adapter": """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ".")  # BASE: a copy of {source}
tokenizer = AutoTokenizer.from_pretrained(".")""",
    "model": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")""",
}
_ASK = """
question = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))"""


def render(job: ResolvedJob, kind: str, provenance: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The card, with the front matter that model hubs read."""
    training = job.training
    what = "A LoRA adapter" if kind == "adapter" else "A model"
    length = f"{training.epochs:g} epochs" if training.epochs is not None else f"{training.max_steps} steps"
    settings = {
        "method": job.tuning.method,
        **({"rank": job.tuning.lora.rank, "alpha": job.tuning.lora.alpha} if job.tuning.lora else {}),
        "length": length,
        "learning rate": f"{training.learning_rate:g} ({training.scheduler}, warm-up {training.warmup_ratio:g})",
        "global batch": training.global_batch_size,
        "cut-off length": training.cutoff_length,
        "precision": provenance["precision"],
        "seed": training.seed,
    }
    results = {
        "training loss (mean, last)": f"{metrics['train_loss']:.4f}, {metrics['final_loss']:.4f}",
        "rows": metrics["train_samples"],
        "tokens": metrics["num_tokens"],
        "steps": metrics["train_steps"],
    }
    if "eval_loss" in metrics:
        results["evaluation loss, perplexity"] = f"{metrics['eval_loss']:.4f}, {metrics['eval_perplexity']:.4g}"
    if "merge" in provenance:
        results |= _merge_results(provenance["merge"])
    data = [[f"`{entry['source']}`", f"`{entry['digest']}`"] for entry in provenance["data"]]
    library = "peft" if kind == "adapter" else "transformers"
    return "\n".join(
        [
            f"---\nlibrary_name: {library}\npipeline_tag: text-generation",
            f"tags:\n- finetune-operator\n- {job.stage}\n---",
            f"# {job.name}\n",
            f"{what}, made by FineTuneJob `{provenance['namespace']}/{job.name}` (stage {job.stage}) from"
            f" `{job.model.source}`.\n",
            "## Use\n",
            f"```python\n{_USE[kind].format(source=job.model.source)}\n{_ASK}\n```\n",
            "## Training\n",
            _table(["setting", "value"], [[name, str(value)] for name, value in settings.items()]),
            "## Result\n",
            _table(["metric", "value"], [[name, str(value)] for name, value in results.items()]),
            "## Data\n",
            _table(["source", "digest"], data),
            "`provenance.json` has digests, versions and the whole job. The tokenizer's chat template is that of the"
            " base model.\n",
        ]
    )


def _merge_results(merge: dict[str, Any]) -> dict[str, str]:
    """What the merged model lost: by rounding, and by leaving the quantised base it was trained on."""
    told = {f"rounded to {merge['dtype']}, against fp32": merge["rounding"]}
    if merge["drift"]:
        told["merged, against the quantised base with the adapter"] = merge["drift"]
    return {name: f"same top token {d['top1']:.1%}, mean KL {d['kl']:.2e}" for name, d in told.items()}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
