"""The lines that copy an artifact and load it. Its own README.md has more."""

from finetune_cli import jobs
from finetune_cli.cluster.client import Object

from finetune_ui.texts import text

CAUSAL, SCORES = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


def lines(job: Object) -> dict[str, str] | None:
    """A command and some Python; None without an artifact."""
    artifact = jobs.status(job).get("artifact")
    if not artifact:
        return None
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    return {"command": f"kubectl finetune fetch {name} -n {namespace} -o {name}", "python": _python(job, artifact)}


def _python(job: Object, artifact: Object) -> str:
    name, kind = job["metadata"]["name"], SCORES if job["spec"]["stage"] == "rm" else CAUSAL
    labels = ", num_labels=1" if kind == SCORES else ""
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    if artifact["kind"] == "model":
        return (
            f'from transformers import {kind}, AutoTokenizer\n\nmodel = {kind}.from_pretrained("{name}")\n{tokenizer}'
        )
    if artifact.get("baseAdapter"):
        return f"# {text('job.adapter_below', name=name)}"
    base = artifact.get("base") or job["spec"]["model"].get("source") or text("job.base")
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {kind}, AutoTokenizer",
            "",
            f"base = {kind}.from_pretrained(BASE{labels})  # BASE: {text('job.base_copy', base=base)}",
            f'model = PeftModel.from_pretrained(base, "{name}")',
            tokenizer,
        ]
    )
