"""The API as the API server holds it: what is refused, what may change, what is explained, what fits."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.consistency import (
    ADAPTER,
    ANSWERS_ONLY,
    BEST,
    GENERATED,
    MERGE,
    NEFTUNE,
    NEW_TOKENS,
    NO_PROMPT,
    NO_REWARD,
    NO_TEMPLATE,
    PACKED,
    PAIRED,
    ROLLOUT,
    SHAREABLE,
    STREAM,
    UNGROUPED,
    UNSHARED,
    WEIGHTS,
    WRAPPED,
    formats_message,
    section_message,
)
from finetune_api.contract import AttemptFacts, resolve
from finetune_api.crd import CRD_BYTES, crd, schema
from finetune_api.data import STOPPING, UNREAD, UNTAGGED
from finetune_api.job import FineTuneJob
from finetune_api.job_name import NAME_MAX
from finetune_api.model import ONE_MODEL, PINNED
from finetune_api.resources import GPUS_TWICE
from finetune_api.stages import FREE, GAMMA, LENGTHS, NO_REFERENCE, ONE_REFERENCE, ONE_REWARD, SMOOTHED
from finetune_api.status import MAX_ATTEMPTS
from finetune_api.training import CYCLIC, DECAY, FLOOR, GROUPED, PHASES, UNSHARED_STEPS
from finetune_api.tuning import ALL_LINEAR, CONTINUED, OWN_LORA
from finetune_api.tuning import HEAD as NO_HEAD
from finetune_operator.manifests.attempt import children
from finetune_operator.names import attempt_job
from finetune_operator.settings import Settings
from pydantic import ValidationError

from tests.cluster import Cluster
from tests.controlplane.scene import FTJ
from tests.kube import ApiError, Kube, Object

HEAD = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": FTJ}
SPEC_SCHEMA: Object = schema()["properties"]["spec"]
SPECS: list[Object] = list(yaml.safe_load_all((Path(__file__).parent / "full.yaml").read_text()))
FULL, WITH_CLAIM, FROZEN, RM, DPO, DPO_AFTER, DPO_ALONE, KTO, KTO_AFTER, PPO, PPO_AFTER, PPO_SERVED = SPECS
MUTABLE = {"backoffLimit", "startDeadlineSeconds", "checkpoints.keep"}
MOST_NODES = 9999

Part = dict[str, Any] | list[Any]
Steps = tuple[str | int, ...]


def fields(node: Object, at: str = "") -> Iterator[tuple[str, Object]]:
    """Every field below a schema's node, as a dotted path without list positions."""
    for name, sub in node.get("properties", {}).items():
        path = f"{at}.{name}".lstrip(".")
        yield path, sub
        yield from fields(sub, path)
    if isinstance(node.get("items"), dict):
        yield from fields(node["items"], at)


def places(value: Any, node: Object, steps: Steps = ()) -> Iterator[tuple[Steps, Object, bool]]:
    """Every field set in a value: how to get there, its schema, and whether it may be left out."""
    if "properties" in node:
        for name, sub in value.items():
            here = (*steps, name)
            yield here, node["properties"][name], name not in node.get("required", [])
            yield from places(sub, node["properties"][name], here)
    elif "items" in node:
        for position, item in enumerate(value):
            yield from places(item, node["items"], (*steps, position))


def path_of(steps: Steps) -> str:
    return ".".join(step for step in steps if isinstance(step, str))


def another(value: Any, node: Object) -> Any:
    """A valid value that is not this one; None where there is none."""
    if "enum" in node:
        return next((choice for choice in node["enum"] if choice != value), None)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return next((n for n in (value + 1, value - 1) if node.get("minimum", n) <= n <= node.get("maximum", n)), None)
    if isinstance(value, str):
        return "7" if node.get("x-kubernetes-int-or-string") else value + "x"
    if isinstance(value, dict) and "additionalProperties" in node:
        return {**value, "more": 1 if node["additionalProperties"]["type"] == "integer" else "x"}
    if isinstance(value, list) and isinstance(value[0], str):
        return [*value, "more"]
    return None


def changed(spec: Object, steps: Steps, value: Any) -> Object:
    """The spec with another value there; None: without it."""
    out = copy.deepcopy(spec)
    part: Any = out
    for step in steps[:-1]:
        part = part[step]
    if value is None:
        del part[steps[-1]]
    else:
        part[steps[-1]] = value
    return out


def updates(kube: Kube, namespace: str, spec: Object) -> Callable[[Object], str]:
    """Creates a job with the spec; the returned function tries to change it: what the server says, '' if it's fine."""
    stored = kube.create({**HEAD, "metadata": {"name": "job"}, "spec": spec}, namespace)

    def attempt(wanted: Object) -> str:
        path = f"apis/{HEAD['apiVersion']}/namespaces/{namespace}/finetunejobs/job"
        try:
            kube.call("PUT", path, {**stored, "spec": wanted}, dryRun="All", fieldValidation="Strict")
        except ApiError as error:
            return error.message
        return ""

    return attempt


def test_full_is_full() -> None:
    """The tests below change every field that there is."""
    named = {path_of(steps) for spec in SPECS for steps, _, _ in places(spec, SPEC_SCHEMA)}
    assert named == {path for path, _ in fields(SPEC_SCHEMA)}
    for spec in SPECS:
        read = FineTuneJob.model_validate({**HEAD, "metadata": {"name": "job"}, "spec": spec}).spec
        assert json.loads(read.model_dump_json(by_alias=True, exclude_unset=True)) == spec


@pytest.mark.parametrize("spec", SPECS, ids=[f"{at}-{spec['stage']}" for at, spec in enumerate(SPECS)])
def test_fields_changed_or_removed_are_refused_unless_mutable(kube: Kube, namespace: str, spec: Object) -> None:
    attempt, wrong, tried = updates(kube, namespace, spec), [], set()
    for steps, node, optional in places(spec, SPEC_SCHEMA):
        value: Any = spec
        for step in steps:
            value = value[step]
        other = another(value, node)
        wanted = [] if other is None else [("changed", other)]
        # What is left out at its default comes back.
        wanted += [("removed", None)] if optional and node.get("default") != value else []
        for how, new in wanted:
            said, path = attempt(changed(spec, steps, new)), path_of(steps)
            tried.add(path)
            refused = "cannot be changed: delete the job" in said
            if refused == (path in MUTABLE) or (said and not refused):
                wrong.append(f"{path} {how}: {said or 'accepted'}")
    assert not wrong, "\n".join(wrong)
    # A section that must be there has no other value of its own: its fields are tried. So it is with an enum of one.
    untried = {path_of(steps) for steps, _, _ in places(spec, SPEC_SCHEMA)} - tried
    assert untried == {path for path in untried if any(other.startswith(f"{path}.") for other in tried)}


def test_fields_added_are_refused(kube: Kube, namespace: str, manifest: Object) -> None:
    """To a job that says only what it must. (A per-field rule would not see a section come.)"""
    least = {key: FULL[key] for key in SPEC_SCHEMA["required"]} | {"training": {"maxSteps": 100}}
    least["datasets"] = [{"source": "pvc://models/rows.jsonl", "format": "alpaca"}]
    attempt, wrong = updates(kube, namespace, least), []
    for section in (set(FULL) - set(least)) | {"training.learningRate", "training.microBatchSize"}:
        if section in MUTABLE:
            continue
        steps = tuple(section.split("."))
        part: Any = FULL
        for step in steps:
            part = part[step]
        if "cannot be changed" not in (said := attempt(changed(least, steps, part))):
            wrong.append(f"{section} added: {said or 'accepted'}")
    assert not wrong, "\n".join(wrong)


def kubectl(control_plane: Cluster, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    program = str(control_plane.bin / "kubectl")
    return subprocess.run([program, *arguments], input=given, capture_output=True, text=True, env=control_plane.env)


def _without_model(manifest: Object) -> None:
    del manifest["spec"]["model"]


MISTAKES: dict[str, tuple[Callable[[Object], Any], str]] = {
    "unknown stage": (lambda m: m["spec"].update(stage="sfft"), r'spec\.stage.*"sfft".*supported values: "pt", "sft"'),
    "negative rank": (
        lambda m: m["spec"]["tuning"]["lora"].update(rank=-4),
        r"spec\.tuning\.lora\.rank.*-4.*greater than or equal to 1",
    ),
    "no model": (_without_model, r"spec\.model: Required value"),
    "unknown field": (
        lambda m: m["spec"]["training"].update(learningrate=1),
        r'unknown field "spec\.training\.learningrate"',
    ),
    "dot in the name": (
        lambda m: m["metadata"].update(name="qwen2.5-sft"),
        r"at most 40 lower-case letters.*have no dots: it becomes a host name",
    ),
    "no such format": (
        lambda m: m["spec"]["datasets"][0].update(format="csv"),
        r'spec\.datasets\[0\]\.format.*"csv".*"alpaca", "sharegpt", "openai", "text"',
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_kubectl_apply_refuses_mistakes_and_says_what_is_allowed(
    control_plane: Cluster, kube: Kube, namespace: str, manifest: Object, mistake: str
) -> None:
    make, words = MISTAKES[mistake]
    make(manifest)
    said = kubectl(control_plane, "apply", "-n", namespace, "-f", "-", given=yaml.safe_dump(manifest))
    assert said.returncode != 0
    assert re.search(words, said.stderr, re.DOTALL), said.stderr
    assert not kube.list(FTJ, namespace)


def test_kubectl_applies_and_shows_a_job(control_plane: Cluster, namespace: str, manifest: Object) -> None:
    """By its short name, with the columns of the README; and the same file again changes nothing."""
    given = yaml.safe_dump(manifest)
    assert kubectl(control_plane, "apply", "-n", namespace, "-f", "-", given=given).stdout.endswith(" created\n")
    assert kubectl(control_plane, "apply", "-n", namespace, "-f", "-", given=given).stdout.endswith(" unchanged\n")
    shown = kubectl(control_plane, "get", "ftj", "-n", namespace, "-o", "wide").stdout.splitlines()
    columns = [
        "NAME",
        "STAGE",
        "MODEL",
        "PHASE",
        "PROGRESS",
        "LOSS",
        "ETA",
        "AGE",
        "FROM",
        "ATTEMPT",
        "REASON",
        "MESSAGE",
        "ARTIFACT",
    ]
    assert shown[0].split() == columns
    assert shown[1].split()[:3] == [manifest["metadata"]["name"], "sft", manifest["spec"]["model"]["source"]]


def test_kubectl_explains_every_field(control_plane: Cluster, kube: Kube) -> None:
    del kube  # there for the CRD
    explained = kubectl(control_plane, "explain", "finetunejob.spec", "--recursive").stdout
    found, stack = set(), [""] * 32
    for line in explained.splitlines():
        if match := re.match(r"( +)(\w+)\t<", line):
            depth = len(match[1]) // 2
            stack[depth] = match[2]
            found.add(".".join(stack[1 : depth + 1]))
    assert found == {path for path, _ in fields(SPEC_SCHEMA)}
    mute = [path for path, node in fields(schema()) if not node.get("description") and path != "metadata"]
    assert not mute


def rules(node: Object, at: str = "") -> Iterator[tuple[str, str]]:
    """(where, message) of every CEL rule that is not about change."""
    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"]:
            yield at, rule["message"]
    for name, sub in node.get("properties", {}).items():
        yield from rules(sub, f"{at}.{name}".lstrip("."))
    if isinstance(node.get("items"), dict):
        yield from rules(node["items"], at)


INSIDE = "must not have '.' or '..' parts"
MODEL = "must look like hf://org/name[@revision], s3://bucket/prefix or pvc://claim/path/in/the/volume"
DATA = (
    "must look like hf://org/name[@revision][/path], s3://bucket/prefix, pvc://claim/path/in/the/volume or"
    " configmap://name/key"
)
OUTPUT = "must look like s3://bucket/prefix or hf://org/name[@branch]"
UNPINNED = "hf://org/base@main"
VIOLATIONS: dict[tuple[str, str], tuple[Steps, Any]] = {
    ("spec.model.source", MODEL): (("model", "source"), "configmap://name/key"),
    ("spec.model.source", INSIDE): (("model", "source"), "pvc://models/../etc"),
    ("spec.model", PINNED): (("model", "source"), UNPINNED),
    ("spec.model", ONE_MODEL): (("model", "fromJob"), "first"),
    ("spec.datasets.source", DATA): (("datasets", 0, "source"), "/data/rows.jsonl"),
    ("spec.datasets.source", INSIDE): (("datasets", 0, "source"), "pvc://models/./rows.jsonl"),
    ("spec.evaluation.datasets.source", DATA): (("evaluation", "datasets", 0, "source"), "ftp://host/rows.jsonl"),
    ("spec.evaluation.datasets.source", INSIDE): (("evaluation", "datasets", 0, "source"), "s3://bucket/../rows"),
    ("spec.datasets", UNREAD): (("datasets", 0, "columns", "text"), "body"),
    ("spec.datasets", UNTAGGED): (("datasets", 0, "tags"), {"role": "who"}),
    ("spec.evaluation.datasets", UNREAD): (("evaluation", "datasets", 1, "columns", "prompt"), "question"),
    ("spec.evaluation.datasets", UNTAGGED): (("evaluation", "datasets", 0, "tags"), {"role": "who"}),
    ("spec.evaluation", "set exactly one of datasets and splitFraction"): (("evaluation", "splitFraction"), 0.1),
    ("spec.evaluation", STOPPING): (("evaluation", "everySteps"), None),
    ("spec.template", "trainOnPrompt trains everything: maskHistory contradicts it"): (
        ("template", "maskHistory"),
        True,
    ),
    ("spec.output.uri", OUTPUT): (("output", "uri"), "pvc://models/artifact"),
    ("spec.output.uri", INSIDE): (("output", "uri"), "s3://bucket/./artifact"),
    ("spec.workspace", "set exactly one of claimName and claim"): (("workspace", "claim"), {"size": "1Gi"}),
    ("spec.workspace", "retain: false needs claim: a claim of yours is never deleted"): (
        ("workspace", "retain"),
        False,
    ),
    ("spec", formats_message("sft")): (("datasets", 0, "format"), "text"),
    ("spec", formats_message("pt")): (("stage",), "pt"),
    ("spec", formats_message("rm")): (("stage",), "rm"),
    ("spec", formats_message("dpo")): (("datasets", 0, "format"), "kto"),
    ("spec", formats_message("kto")): (("datasets", 0, "format"), "openai"),
    ("spec", formats_message("ppo")): (("datasets", 0, "format"), "kto"),
    ("spec", section_message("rm")): (("rm",), {}),
    ("spec", section_message("dpo")): (("dpo",), {}),
    ("spec", section_message("kto")): (("kto",), {}),
    ("spec", section_message("ppo")): (("ppo",), {"rewardModel": {"fromJob": "scores"}}),
    ("spec", NO_REWARD): (("ppo",), None),
    ("spec", WEIGHTS): (("mixing",), "concatenate"),
    ("spec", NO_TEMPLATE): (("stage",), "pt"),
    ("spec", ANSWERS_ONLY): (("template", "maskHistory"), True),
    ("spec", PACKED): (("training", "packing"), "bfd"),
    ("spec", WRAPPED): (("training", "packing"), "wrapped"),
    ("spec", STREAM): (("training", "groupByLength"), True),
    ("spec", UNGROUPED): (("training", "groupByLength"), True),
    ("spec", NEFTUNE): (("training", "neftuneNoiseAlpha"), 5),
    ("spec", GENERATED): (("evaluation",), {"splitFraction": 0.1, "generate": {}}),
    ("spec", BEST): (("output",), {"weights": "best"}),
    ("spec", NEW_TOKENS): (("model", "newTokens"), ["one"]),
    ("spec", PAIRED): (("training", "globalBatchSize"), 1),
    ("spec", ADAPTER): (("tuning", "adapter"), {"source": "pvc://models/adapter", "mode": "merge"}),
    ("spec", MERGE): (("tuning", "method"), "full"),
    ("spec", ROLLOUT): (("ppo", "rolloutBatchSize"), 50),
    ("spec", NO_PROMPT): (("ppo", "maxNewTokens"), 4096),
    ("spec", SHAREABLE): (("workspace",), {"claim": {"size": "1Gi"}}),
    ("spec", UNSHARED): (("tuning",), {"method": "qlora"}),
    ("spec.dpo", SMOOTHED): (("dpo", "labelSmoothing"), 0.1),
    ("spec.dpo", LENGTHS): (("dpo", "loss"), "ipo"),
    ("spec.dpo", GAMMA): (("dpo", "loss"), "sigmoid"),
    ("spec.dpo", NO_REFERENCE): (("dpo", "loss"), "orpo"),
    ("spec.dpo.reference", ONE_REFERENCE): (("dpo", "reference", "fromJob"), "first"),
    ("spec.dpo.reference.source", MODEL): (("dpo", "reference", "source"), "configmap://name/key"),
    ("spec.dpo.reference.source", INSIDE): (("dpo", "reference", "source"), "pvc://models/../etc"),
    ("spec.kto.reference", ONE_REFERENCE): (("kto", "reference", "fromJob"), "first"),
    ("spec.kto.reference.source", MODEL): (("kto", "reference", "source"), "configmap://name/key"),
    ("spec.kto.reference.source", INSIDE): (("kto", "reference", "source"), "pvc://models/../etc"),
    ("spec.ppo", FREE): (("ppo", "klCoefficient"), 0),
    ("spec.ppo.reference", ONE_REFERENCE): (("ppo", "reference"), {}),
    ("spec.ppo.reference.source", MODEL): (("ppo", "reference", "source"), "configmap://name/key"),
    ("spec.ppo.reference.source", INSIDE): (("ppo", "reference", "source"), "pvc://models/../etc"),
    ("spec.ppo.rewardModel", ONE_REWARD): (("ppo", "rewardModel", "source"), "pvc://models/reward"),
    ("spec.ppo.rewardModel.source", MODEL): (("ppo", "rewardModel"), {"source": "configmap://name/key"}),
    ("spec.ppo.rewardModel.source", INSIDE): (("ppo", "rewardModel"), {"source": "pvc://models/../etc"}),
    ("spec.tuning", "lora settings need method lora or qlora"): (("tuning", "method"), "full"),
    ("spec.tuning", "quantization needs method qlora"): (("tuning", "quantization"), {"bits": 4}),
    ("spec.tuning", "freeze settings need method freeze"): (("tuning", "freeze"), {"layers": 1}),
    ("spec.tuning", CONTINUED): (("tuning",), {"method": "full", "adapter": {"source": "s3://bucket/adapter"}}),
    ("spec.tuning", OWN_LORA): (("tuning", "adapter", "mode"), "continue"),
    ("spec.tuning", "DoRA does not work on an 8 bit base: use quantization.bits 4"): (
        ("tuning",),
        {"method": "qlora", "lora": {"dora": True}, "quantization": {"bits": 8}},
    ),
    ("spec.tuning", "pissa changes the base, which qlora has quantised: use method lora, or init default"): (
        ("tuning", "method"),
        "qlora",
    ),
    ("spec.tuning.lora", ALL_LINEAR): (("tuning", "lora", "targets"), ["all-linear", "q_proj"]),
    ("spec.tuning.lora", NO_HEAD): (("tuning", "lora", "targets"), ["lm_head"]),
    ("spec.tuning.freeze", "0 layers leave nothing to train"): (
        ("tuning",),
        {"method": "freeze", "freeze": {"layers": 0}},
    ),
    ("spec.tuning.adapter.source", MODEL): (("tuning", "adapter", "source"), "configmap://name/key"),
    ("spec.tuning.adapter.source", INSIDE): (("tuning", "adapter", "source"), "pvc://models/../etc"),
    ("spec.training", "say how long to train: set exactly one of epochs and maxSteps"): (("training", "epochs"), 2),
    ("spec.training", "microBatchSize must divide globalBatchSize"): (("training", "microBatchSize"), 5),
    ("spec.training", GROUPED): (("training", "groupByLength"), True),
    ("spec.training", FLOOR): (("training", "scheduler"), "linear"),
    ("spec.training", UNSHARED_STEPS): (("training", "optimizer"), "adafactor"),
    ("spec.training", DECAY): (("training", "scheduler"), "cosine_with_min_lr"),
    ("spec.training", PHASES): (("training", "warmupRatio"), 0.8),
    ("spec.training", CYCLIC): (("training", "schedulerCycles"), 3),
    ("spec.resources", GPUS_TWICE): (("resources", "devices"), {"example.com/gpu": 1}),
    ("spec.resources", "every volumeMount must name one of resources.volumes"): (
        ("resources", "volumeMounts", 0, "name"),
        "other",
    ),
    ("spec.resources.env", "set exactly one of value, secretKeyRef and configMapKeyRef"): (
        ("resources", "env", 1, "value"),
        "both",
    ),
    ("spec.resources.env", "names that start with FINETUNE_ belong to the trainer"): (
        ("resources", "env", 0, "name"),
        "FINETUNE_POD_UID",
    ),
    ("spec.resources.volumes", "set exactly one of persistentVolumeClaim, configMap, secret and emptyDir"): (
        ("resources", "volumes", 0, "emptyDir"),
        {},
    ),
    ("spec.resources.volumes", "names that start with finetune- belong to the operator"): (
        ("resources", "volumes", 0, "name"),
        "finetune-shm",
    ),
    (
        "spec.resources.volumeMounts",
        "must not be at or below /workspace, /volumes, /configmaps, /etc/finetune, /tmp, /dev/shm",
    ): (
        ("resources", "volumeMounts", 0, "mountPath"),
        "/workspace/mine",
    ),
}
BROKEN_FROM = {
    formats_message("dpo"): DPO,
    formats_message("kto"): KTO,
    formats_message("ppo"): PPO,
    NO_REWARD: PPO,
    ANSWERS_ONLY: RM,
    PACKED: DPO,
    STREAM: WITH_CLAIM,
    UNGROUPED: KTO,
    NEFTUNE: DPO,
    GENERATED: RM,
    BEST: RM,
    NEW_TOKENS: RM,
    PAIRED: KTO,
    ADAPTER: DPO,
    ROLLOUT: PPO,
    NO_PROMPT: PPO,
    SMOOTHED: DPO,
    NO_REFERENCE: DPO,
    GAMMA: DPO_ALONE,
    FREE: PPO_SERVED,
    "spec.dpo": DPO,
    "spec.kto": KTO,
    "spec.ppo": PPO,
}
"""Where it takes another spec than the first to break a rule, or those of a section, by one change."""


def test_every_rule_is_tried() -> None:
    """The name's rule is tried with `kubectl apply`."""
    assert {rule for rule in rules(schema()) if rule[0]} == set(VIOLATIONS)


@pytest.mark.parametrize("rule", VIOLATIONS, ids=lambda rule: f"{rule[0]}: {rule[1]}")
def test_a_rule_is_kept_by_the_server_and_on_a_laptop(kube: Kube, rule: tuple[str, str]) -> None:
    where, message = rule
    section = ".".join(where.split(".")[:2])
    spec = changed(BROKEN_FROM.get(message, BROKEN_FROM.get(section, FULL)), *VIOLATIONS[rule])
    broken = {**HEAD, "metadata": {"name": "job", "namespace": "default"}, "spec": spec}
    with pytest.raises(ApiError) as refused:
        kube.create(broken, dry_run=True)
    assert message in refused.value.message
    assert re.search(where.replace(".", r"(\[\d\])?\."), refused.value.message)
    with pytest.raises(ValidationError):
        FineTuneJob.model_validate(broken)


@pytest.mark.parametrize("name", ["Upper", "7b-sft", "qwen2.5", "under_score", "end-", "a" * (NAME_MAX + 1)])
def test_names_are_the_same_to_the_server_and_on_a_laptop(kube: Kube, name: str) -> None:
    broken = {**HEAD, "metadata": {"name": name, "namespace": "default"}, "spec": FULL}
    with pytest.raises(ApiError):
        kube.create(broken, dry_run=True)
    with pytest.raises(ValidationError):
        FineTuneJob.model_validate(broken)


def test_the_longest_names_fit_every_child(kube: Kube, namespace: str) -> None:
    """A name of 40 characters, attempt 999, the last of 9999 nodes: nothing is refused, and nothing is cut."""
    name = "a" * NAME_MAX
    stored = kube.create({**HEAD, "metadata": {"name": name}, "spec": FULL}, namespace)
    job = FineTuneJob.model_validate({**HEAD, "metadata": stored["metadata"], "spec": FULL})
    uid = stored["metadata"]["uid"]
    facts = AttemptFacts(
        namespace=namespace,
        name=name,
        uid=uid,
        attempt=MAX_ATTEMPTS,
        job_name=attempt_job("train", name, uid, MAX_ATTEMPTS),
    )
    resolved = resolve(job, allow_remote_code=True)
    resolved = resolved.model_copy(update={"runtime": resolved.runtime.model_copy(update={"nodes": MOST_NODES})})
    spec = job.spec.model_copy(
        update={"resources": job.spec.resources.model_copy(update={"service_account_name": None})}
    )
    made = children(facts, spec, resolved, "trainer:1", Settings(trainer_image="trainer:1"))
    assert [child["kind"] for child in made] == ["ServiceAccount", "RoleBinding", "Service", "Job"]
    for child in made:
        kube.create(child, dry_run=True)
    batch = made[-1]
    prefix = f"{batch['metadata']['name']}-{MOST_NODES - 1}-"
    assert len(prefix) <= 58, "the Job controller cuts pod names there"
    pod = batch["spec"]["template"]
    pod["metadata"]["name"] = f"{prefix}x7k2p"
    pod["spec"] |= {"hostname": prefix.rstrip("-"), "serviceAccountName": "default"}
    del pod["spec"]["priorityClassName"]
    kube.create({"apiVersion": "v1", "kind": "Pod", **pod}, namespace, dry_run=True)


def test_the_crd_is_small_enough_to_be_applied(kube: Kube) -> None:
    assert len(json.dumps(crd())) < CRD_BYTES
    served = kube.get("CustomResourceDefinition", "finetunejobs.finetune-operator.io")
    assert len(json.dumps(served["spec"])) < CRD_BYTES
