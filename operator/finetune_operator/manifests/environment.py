"""The environment of the trainer's container: who it is, where hubs and buckets are, and the keys to them and to what
it calls while it trains.

Keys come from Secrets by reference: the operator never reads one. A variable that the user sets in spec.resources.env
goes before one of ours.
"""

from typing import Any

from finetune_api.contract import AttemptFacts
from finetune_api.resources import EnvVar
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.settings import Settings

Variable = dict[str, Any]

_S3_KEYS = {
    "AWS_ACCESS_KEY_ID": True,
    "AWS_SECRET_ACCESS_KEY": True,
    "AWS_SESSION_TOKEN": False,
    "AWS_ENDPOINT_URL": False,
    "AWS_REGION": False,
}
"""Keys of the Secret, and whether it must have them."""
_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Name and password, or a token."""


def environment(facts: AttemptFacts, spec: FineTuneJobSpec, image: str, settings: Settings) -> list[Variable]:
    """What the container is told by environment variables."""
    users = [_users(variable) for variable in spec.resources.env or []]
    taken = {variable["name"] for variable in users}
    ours = [
        {"name": "FINETUNE_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        _plain("FINETUNE_IMAGE", image),
        _plain("HOME", "/tmp"),
        _plain("TMPDIR", "/tmp"),
        _plain("HF_HOME", "/tmp/hf"),
        *_hub(facts, spec, settings),
        *_buckets(spec, settings),
        *(_services(spec) if facts.kind == "train" else ()),
    ]
    return [*(variable for variable in ours if variable["name"] not in taken), *users]


def _hub(facts: AttemptFacts, spec: FineTuneJobSpec, settings: Settings) -> list[Variable]:
    out = []
    if facts.kind == "train" and not (spec.output.uri or "").startswith("hf://"):
        # Everything was fetched before: a training that asks the hub would be one that can fail with it.
        out.append(_plain("HF_HUB_OFFLINE", "1"))
    if settings.hub_endpoint:
        out.append(_plain("HF_ENDPOINT", settings.hub_endpoint))
    if spec.secrets.hugging_face:
        out.append(_key("HF_TOKEN", spec.secrets.hugging_face, required=True))
    return out


def _buckets(spec: FineTuneJobSpec, settings: Settings) -> list[Variable]:
    out = [_plain("AWS_ENDPOINT_URL", settings.s3_endpoint)] if settings.s3_endpoint else []
    if spec.secrets.s3:
        # Of two variables of one name the later counts, if its key is there: a Secret may know its own endpoint.
        out += [_key(name, spec.secrets.s3, required=required) for name, required in _S3_KEYS.items()]
    return out


def _services(spec: FineTuneJobSpec) -> list[Variable]:
    """Keys to what is called while the job trains: the service that scores answers, and trackers."""
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


def _users(variable: EnvVar) -> Variable:
    if variable.value is not None:
        return _plain(variable.name, variable.value)
    if variable.secret_key_ref is not None:
        return {"name": variable.name, "valueFrom": {"secretKeyRef": variable.secret_key_ref.to_dict()}}
    assert variable.config_map_key_ref is not None, "exactly one, by the model"
    return {"name": variable.name, "valueFrom": {"configMapKeyRef": variable.config_map_key_ref.to_dict()}}
