"""The environment of the trainer's container: its identity, the endpoints of hubs and buckets, the way to them, and the
keys to them and to the services that it calls while it trains.

Keys come from Secrets by reference: the operator never reads a Secret. A variable in spec.resources.env overrides ours.
"""

from typing import Any

from finetune_api.container import EnvVar
from finetune_api.contract import AttemptFacts
from finetune_api.output import S3_KEYS
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.manifests import outbound
from finetune_operator.settings import Settings

Variable = dict[str, Any]

METRICS_PORT = 9464
_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""User name and password, or a token."""


def environment(facts: AttemptFacts, spec: FineTuneJobSpec, image: str, settings: Settings) -> list[Variable]:
    """The container's variables."""
    own = [_own(variable) for variable in spec.resources.env or []]
    names = {variable["name"] for variable in own}
    ours = [
        {"name": "FINETUNE_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        _plain("FINETUNE_IMAGE", image),
        _plain("HOME", "/tmp"),
        _plain("TMPDIR", "/tmp"),
        _plain("HF_HOME", "/tmp/hf"),
        *_metrics(facts, settings),
        *outbound.variables(facts, settings),
        *_hub(facts, spec, settings),
        *_buckets(spec, settings),
        *(_services(spec) if facts.kind == "train" else ()),
    ]
    all_of_them = [*(variable for variable in ours if variable["name"] not in names), *own]
    return [*all_of_them, *_names_of_secrets(all_of_them)]


def _names_of_secrets(variables: list[Variable]) -> list[Variable]:
    """The trainer removes the values of these variables from all that leaves its pod."""
    secret = {v["name"] for v in variables if "secretKeyRef" in v.get("valueFrom", {})}
    return [_plain("FINETUNE_SECRET_VARIABLES", ",".join(sorted(secret)))] if secret else []


def _metrics(facts: AttemptFacts, settings: Settings) -> list[Variable]:
    """Rank 0 serves its progress to Prometheus."""
    serves = settings.metrics_per_job == "pods" and facts.kind == "train"
    return [_plain("FINETUNE_METRICS_PORT", str(METRICS_PORT))] if serves else []


def _hub(facts: AttemptFacts, spec: FineTuneJobSpec, settings: Settings) -> list[Variable]:
    out = []
    if facts.kind == "train" and not (spec.output.uri or "").startswith("hf://"):
        # Everything is fetched already: training that calls the hub could fail when the hub does.
        out.append(_plain("HF_HUB_OFFLINE", "1"))
    if settings.hub_endpoint:
        out.append(_plain("HF_ENDPOINT", settings.hub_endpoint))
    if spec.secrets.hugging_face:
        out.append(_key("HF_TOKEN", spec.secrets.hugging_face, required=True))
    return out


def _buckets(spec: FineTuneJobSpec, settings: Settings) -> list[Variable]:
    out = [_plain("AWS_ENDPOINT_URL", settings.s3_endpoint)] if settings.s3_endpoint else []
    if spec.secrets.s3:
        # The later of two variables with the same name wins if its key exists: a Secret may have its own endpoint.
        out += [_key(name, spec.secrets.s3, required=required) for name, required in S3_KEYS.items()]
    return out


def _services(spec: FineTuneJobSpec) -> list[Variable]:
    """Keys to the services that a training calls: the reward service and the trackers."""
    scorer = spec.ppo.reward_model.http if spec.ppo else None
    wandb, mlflow = spec.reporting.wandb, spec.reporting.mlflow
    out = [_key("REWARD_TOKEN", scorer.secret, required=True)] if scorer and scorer.secret else []
    if wandb:
        out.append(_key("WANDB_API_KEY", wandb.secret, required=True))
    if mlflow and mlflow.secret:
        out += [_key(name, mlflow.secret, required=False) for name in _MLFLOW_KEYS]
    return out


def _plain(name: str, value: str) -> Variable:
    return {"name": name, "value": value}


def _key(name: str, secret: str, *, required: bool) -> Variable:
    reference: Variable = {"name": secret, "key": name}
    if not required:
        reference["optional"] = True
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _own(variable: EnvVar) -> Variable:
    if variable.value is not None:
        return _plain(variable.name, variable.value)
    if variable.secret_key_ref is not None:
        return {"name": variable.name, "valueFrom": {"secretKeyRef": variable.secret_key_ref.to_dict()}}
    assert variable.config_map_key_ref is not None, "exactly one is set, by the model"
    return {"name": variable.name, "valueFrom": {"configMapKeyRef": variable.config_map_key_ref.to_dict()}}
