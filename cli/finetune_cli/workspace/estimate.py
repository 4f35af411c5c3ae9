"""`finetune estimate --in-cluster`: the trainer's estimate of GPU memory in a pod, for a job that does not exist yet.

The pod reads the config.json of the model alone: from the hub or the bucket with the keys that the job names, or from
the claim. It reaches them as the newest pod of the operator in the namespace does.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any

from finetune_api.output import S3_KEYS

from finetune_cli import jobs, paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace import place
from finetune_cli.workspace.pod import Need, Place, manifest
from finetune_cli.workspace.session import running

SECONDS = 3600
CPU, MEMORY = "1", "2Gi"
PROGRAM = 'cat > /tmp/job.json && exec python -m finetune_trainer estimate --job /tmp/job.json --workspace /tmp "$@"'
MANAGED = f"{paths.GROUP}/managed=true"
WAYS = frozenset(
    {
        *("HF_ENDPOINT", "AWS_ENDPOINT_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
    }
)
"""Variables by which the installation says how its pods reach hubs and buckets."""
CERTIFICATES = "finetune-ca"
"""The volume with the certificates that they trust."""


def in_cluster(
    client: Client, job: Object, every: Sequence[Object], gpus: Iterable[int], image: str, timeout: float
) -> list[dict[str, Any]]:
    """The rows of the estimate. ``every``: the jobs of the namespace; ``image``: that of `image_for`."""
    own = alone(job, every)
    made = pod_of(client, own, image)
    words = [word for number in gpus for word in ("--gpus", str(number))]
    with (
        running(client, made, timeout) as pod,
        pod.run("sh", "-c", PROGRAM, "estimate", *words, stdin=True) as command,
    ):
        command.write(json.dumps(own).encode() + b"\n")
        command.end_input()
        lines = [line for line in command.lines() if line.startswith(b"[")]
    if not lines:
        raise Problem("The trainer printed no estimate.", Exit.FAILED)
    found: list[dict[str, Any]] = json.loads(lines[-1])
    return found


def image_for(job: Object, every: Iterable[Object], release: str = "") -> str:
    """The trainer image: that of the job, else of the release, else of the newest job that names no other. Raises
    Problem if none is known."""
    if named := _named(job):
        return named
    known = [each for each in every if (jobs.status(each).get("resolved") or {}).get("image") and not _named(each)]
    newest = max(known, key=lambda each: str(each["metadata"].get("creationTimestamp")), default=None)
    if not release and newest is None:
        raise Problem(
            "The trainer image is not known, because no job of this namespace has been accepted yet. Set"
            " spec.resources.image for the estimate, or run `finetune estimate` where the trainer is installed.",
            Exit.REFUSED,
        )
    return release or str(jobs.status(newest or {})["resolved"]["image"])


def alone(job: Object, every: Iterable[Object]) -> Object:
    """The job with the model that a chain starts from in place of other jobs: training does not change its sizes.
    Raises Problem for a job that does not exist."""
    by_name = {each["metadata"]["name"]: each for each in every}
    spec = _without_jobs(copy.deepcopy(job["spec"]), by_name)
    spec["model"].pop("trustRemoteCode", None)  # nothing of the model runs
    (spec.get("tuning") or {}).pop("adapter", None)  # the estimate counts an adapter of its own
    return {**job, "spec": spec}


def pod_of(client: Client, job: Object, image: str) -> Object:
    """The pod, which is like the operator's newest pod in what it reaches."""
    meta = job["metadata"]
    found = list(client.items(paths.pods(meta["namespace"]), labelSelector=MANAGED))
    last = max(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)
    newest: dict[str, Any] = last["spec"] if last else {}
    container: dict[str, Any] = next(
        (each for each in newest.get("containers") or () if each["name"] == paths.CONTAINER), {}
    )
    ways = [each for each in container.get("env") or () if each["name"] in WAYS and "value" in each]
    where = place.of_models(client, job)
    secrets = tuple(secret["name"] for secret in newest.get("imagePullSecrets") or ())
    need = Need(SECONDS, CPU, MEMORY, models=True, image=image, environment=(*ways, *_keys(job["spec"])))
    made = manifest(job, need, Place(where.claim, where.node, secrets))
    made["spec"]["volumes"] += [each for each in newest.get("volumes") or () if each["name"] == CERTIFICATES]
    made["spec"]["containers"][0]["volumeMounts"] += [
        each for each in container.get("volumeMounts") or () if each["name"] == CERTIFICATES
    ]
    return made


def _keys(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The variables of the job, and the keys that it names, by reference: nobody here reads a Secret."""
    secrets = spec.get("secrets") or {}
    found = [_key("HF_TOKEN", secrets["huggingFace"], True)] if secrets.get("huggingFace") else []
    if secrets.get("s3"):
        found += [_key(name, secrets["s3"], required) for name, required in S3_KEYS.items()]
    # Those of the job come last, so they win.
    found += [_own(variable) for variable in (spec.get("resources") or {}).get("env") or ()]
    hidden = ",".join(sorted(each["name"] for each in found if "secretKeyRef" in each.get("valueFrom", {})))
    return [*found, *([{"name": "FINETUNE_SECRET_VARIABLES", "value": hidden}] if hidden else [])]


def _own(variable: dict[str, Any]) -> dict[str, Any]:
    """A variable of spec.resources.env as a pod has it."""
    if "value" in variable:
        return {"name": variable["name"], "value": variable["value"]}
    return {"name": variable["name"], "valueFrom": {key: each for key, each in variable.items() if key != "name"}}


def _key(name: str, secret: str, required: bool) -> dict[str, Any]:
    reference = {"name": secret, "key": name, **({} if required else {"optional": True})}
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _named(job: Object) -> str:
    return str((job["spec"].get("resources") or {}).get("image") or "")


def _without_jobs(value: Any, by_name: dict[str, Object]) -> Any:
    if isinstance(value, list):
        return [_without_jobs(each, by_name) for each in value]
    if not isinstance(value, dict):
        return value
    out = {key: _without_jobs(each, by_name) for key, each in value.items() if key != "fromJob"}
    return {**out, "source": _source(str(value["fromJob"]), by_name)} if value.get("fromJob") else out


def _source(name: str, by_name: dict[str, Object]) -> str:
    """The model at the beginning of a chain."""
    seen = set[str]()
    while name in by_name and name not in seen:
        seen.add(name)
        model = by_name[name]["spec"]["model"]
        if model.get("source"):
            return str(model["source"])
        name = str(model.get("fromJob"))
    raise Problem(f"There is no job {name} whose model could be estimated.", Exit.NOT_FOUND)
