"""A FineTuneJob from the flags of `finetune run`."""

from collections.abc import Sequence
from typing import Any

from finetune_cli.manifest import set_field
from finetune_cli.problem import Problem

FORMATS = ("alpaca", "sharegpt", "openai", "preference", "kto", "text")
USUAL_FORMAT = {"pt": "text", "rm": "preference", "dpo": "preference", "kto": "kto"}


def job_of(
    *,
    stage: str,
    model: str | None,
    from_job: str | None,
    datasets: Sequence[str],
    tuning: str | None = None,
    name: str | None = None,
    epochs: float | None = None,
    max_steps: int | None = None,
    gpus: int | None = None,
    nodes: int | None = None,
    workspace: str | None = None,
    workspace_size: str = "50Gi",
    reward_model: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """The job. Raises Problem if a flag is missing or contradicts another."""
    if (model is None) == (from_job is None):
        raise Problem("Say which model to train: exactly one of --model and --from-job.")
    if not datasets:
        raise Problem("Say which data to train on: --dataset SOURCE=FORMAT, such as pvc://data/rows.jsonl=alpaca")
    spec: dict[str, Any] = {
        "stage": stage,
        "model": {"source": model} if model else {"fromJob": from_job},
        "datasets": [dataset(text, stage) for text in datasets],
        "tuning": {"method": tuning} if tuning else None,
        "training": {"epochs": epochs} if epochs else {"maxSteps": max_steps} if max_steps else {"epochs": 1},
        "workspace": {"claimName": workspace} if workspace else {"claim": {"size": workspace_size}},
        "resources": {key: value for key, value in (("nodes", nodes), ("gpusPerNode", gpus)) if value is not None},
    }
    if epochs and max_steps:
        raise Problem("--epochs and --max-steps both say how long to train: remove one of them.")
    if reward_model:
        spec["ppo"] = {"rewardModel": {"source": reward_model} if "://" in reward_model else {"fromJob": reward_model}}
    job = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name} if name else {"name": job_name(stage, model or from_job or "")},
        "spec": {key: value for key, value in spec.items() if value not in (None, {})},
    }
    change(job, settings)
    return job


def change(job: dict[str, Any], settings: Sequence[str]) -> None:
    """Apply the values of --set."""
    import yaml

    for setting in settings:
        path, separator, text = setting.partition("=")
        if not separator:
            raise Problem(f"--set {setting}: write FIELD=VALUE, such as training.learningRate=2e-5")
        value = yaml.safe_load(text)
        if isinstance(value, str):
            value = number(value)
        set_field(job, path, value)


def number(text: str) -> Any:
    """A number as YAML 1.1 does not read it: 2e-5."""
    try:
        return float(text) if "e" in text.lower() else text
    except ValueError:
        return text


def dataset(text: str, stage: str) -> dict[str, Any]:
    """SOURCE or SOURCE=FORMAT."""
    source, separator, form = text.rpartition("=")
    if not separator:
        source, form = text, USUAL_FORMAT.get(stage, "")
    if form not in FORMATS:
        raise Problem(
            f"--dataset {text}: name the format of the rows, such as {source or text}=alpaca. Formats:"
            f" {', '.join(FORMATS)} (docs/data.md)"
        )
    return {"source": source, "format": form}


def job_name(stage: str, model: str) -> str:
    """A name that Kubernetes allows, from the stage and the model."""
    import re
    import secrets

    base = re.sub(r"@.*", "", model.rstrip("/")).rsplit("/", 1)[-1].lower()
    words = re.sub(r"[^a-z0-9]+", "-", f"{stage}-{base}").strip("-")[:34].rstrip("-")
    return f"{words}-{secrets.token_hex(2)}"
