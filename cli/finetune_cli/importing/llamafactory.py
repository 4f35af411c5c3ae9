"""A configuration of LLaMA-Factory becomes a FineTuneJob. Every setting is kept, or a note says why not.

Settings that are left out in the configuration get the defaults of LLaMA-Factory, so that the training is the same.
"""

import re
from typing import Any

from finetune_cli.importing import data_sets, hyperparameters, preferences, values
from finetune_cli.importing.notes import Fate, Imported, ordered, put
from finetune_cli.importing.settings import Settings
from finetune_cli.importing.table import row

STAGES = ("pt", "sft", "rm", "dpo", "ppo", "kto")


def convert(
    configuration: dict[str, Any],
    *,
    name: str | None = None,
    info: data_sets.Info | None = None,
    gpus: int | None = None,
    nodes: int = 1,
    models_claim: str = "models",
    data_claim: str = "data",
    workspace_size: str = "50Gi",
) -> Imported:
    """The job. `info` is the content of dataset_info.json; without it, the data sets that come with LLaMA-Factory are
    known. `gpus` are those of each node."""
    given = Settings(configuration, models_claim)
    stage = str(given.take("stage", "sft"))
    out = Imported(
        {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name or _name(stage, configuration)},
            "spec": {"stage": stage},
        }
    )
    spec = out.job["spec"]
    if "use_ray" in configuration or "ray_num_workers" in configuration:
        gpus = gpus or int(given.take("ray_num_workers", 1))
    if given.take("use_cpu", False):
        gpus = 0
    spec["workspace"] = {"claim": {"size": workspace_size}}
    if nodes > 1:
        spec["workspace"]["claim"]["accessMode"] = "ReadWriteMany"
    spec["resources"] = {
        **({"nodes": nodes} if nodes > 1 else {}),
        **({"gpusPerNode": gpus} if gpus is not None else {}),
    }
    values.model(out, given)
    values.tuning(out, given)
    _data(out, given, stage, info, data_claim)
    values.template(out, given, stage)
    hyperparameters.training(out, given, stage, nodes * max(1, 1 if gpus is None else gpus))
    values.reporting(out, given)
    if stage in ("dpo", "kto", "rm", "ppo"):
        preferences.section(out, given, stage)
    values.evaluation(out, given, stage)
    _rest(out, given)
    out.job["spec"] = ordered(spec)
    return out


def _data(out: Imported, given: Settings, stage: str, info: data_sets.Info | None, claim: str) -> None:
    spec = out.job["spec"]
    folder = str(given.take("dataset_dir", "data"))
    known = info if info is not None else values.own_data_sets()
    rows = given.take("max_samples")

    def converted(argument: str) -> list[dict[str, Any]]:
        named = data_sets.names(given.take(argument, ""))
        made = [data_sets.convert(out, each, stage, known, folder, claim) for each in named]
        found = [each for each in made if each is not None]
        for each in found:
            if rows and argument == "dataset":
                each["maxSamples"] = min(int(rows), each.get("maxSamples", int(rows)))
        return found

    spec["datasets"] = converted("dataset")
    held_out = converted("eval_dataset")
    if not spec["datasets"] and held_out:
        spec["datasets"], held_out = held_out, []
        out.note(Fate.CHANGED, "eval_dataset", "a job always trains, so these data sets are trained on")
    if held_out:
        put(spec, "evaluation.datasets", held_out)
    files = [each["source"] for each in [*spec["datasets"], *held_out] if each["source"].startswith("pvc://")]
    if files:
        text = f"copy the files to claim {claim}, so that they are {', '.join(sorted(set(files)))}"
        out.note(Fate.CHANGED, f"dataset_dir: {folder}", text)
    strategy = given.take("mix_strategy", "concat")
    mixing = {"interleave_under": "interleaveUnder", "interleave_over": "interleaveOver"}.get(str(strategy))
    if mixing:
        spec["mixing"] = mixing
        weights = data_sets.names(given.take("interleave_probs", ""))
        for each, weight in zip(spec["datasets"], weights, strict=False):
            each["weight"] = float(weight)
    cores = given.take("preprocessing_num_workers")
    if cores:
        put(spec, "prepare.cpu", str(cores))


def _rest(out: Imported, given: Settings) -> None:
    """A note for every setting that nothing has taken."""
    for argument, value in given.left():
        known = row(argument)
        if known is None:
            out.note(Fate.LEFT_OUT, f"{argument}: {value}", "LLaMA-Factory 0.9.5 and 0.9.6 have no such argument")
        elif known.fields and argument in values.OF_STAGES:
            out.note(Fate.NOT_NEEDED, f"{argument}: {value}", f"stage {out.job['spec']['stage']} does not use it")
        elif not known.lost:
            out.note(Fate.NOT_NEEDED, f"{argument}: {value}", values.reason(known))
        elif values.changes_something(value):
            out.note(Fate.LEFT_OUT, f"{argument}: {value}", values.reason(known))
        else:
            out.note(Fate.NOT_NEEDED, f"{argument}: {value}", "this is how it always is here")


def _name(stage: str, configuration: dict[str, Any]) -> str:
    """The last parts of output_dir, or stage and model."""
    folder = str(configuration.get("output_dir") or "")
    model = str(configuration.get("model_name_or_path") or "model").rstrip("/").rsplit("/", 1)[-1]
    text = "-".join(part for part in folder.split("/") if part not in (".", "..", "", "saves", "output", "tmp_dir"))
    text = re.sub(r"[^a-z0-9]+", "-", (text or f"{stage}-{model}").lower()).strip("-")
    text = text if text[:1].isalpha() else f"job-{text}"
    return text[:40].rstrip("-")
