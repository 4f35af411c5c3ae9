"""Presets: what an administrator sets for the jobs of a namespace, in its ConfigMap `finetune-presets`.

`defaults` are for what a job leaves out, `bounds` limit what it may ask for (docs/presets.md). This module reads them
and compares a spec with them. It raises ValueError with a message for the administrator.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from finetune_api import strict_yaml
from finetune_api.base import ApiModel
from finetune_api.chaining import reference_model
from finetune_api.kubernetes import (
    Cpu,
    Devices,
    DnsName,
    Image,
    Labels,
    PodAnnotations,
    PodLabels,
    QueueName,
    Size,
    quantity,
)
from finetune_api.output import NotifySpec
from finetune_api.placement import Toleration
from finetune_api.resources import PrepareSpec, ResourcesSpec
from finetune_api.spec import FineTuneJobSpec

CONFIG_MAP = "finetune-presets"
KEY = "presets.yaml"
PRESETS_BYTES = 8192
"""Most bytes of the text: the status of every job repeats what was taken from it."""

Prefix = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^\S+$")]
Prefixes = Annotated[list[Prefix], Field(max_length=64)]
Parts = dict[str, Any]
"""Some fields of a spec, as in YAML."""


class Defaults(ApiModel):
    """Values of fields that a job leaves out. Maps are filled in key by key, everything else as a whole."""

    image: Image | None = None
    """resources.image."""
    cpu_limit: Cpu | None = None
    """resources.cpuLimit and prepare.cpuLimit; the CPU request of a pod, if that is higher."""
    node_selector: Labels | None = None
    """resources.nodeSelector."""
    tolerations: list[Toleration] | None = Field(default=None, max_length=16)
    """resources.tolerations."""
    pod_labels: PodLabels | None = None
    """resources.podLabels."""
    pod_annotations: PodAnnotations | None = None
    """resources.podAnnotations."""
    priority_class_name: DnsName | None = None
    """resources.priorityClassName."""
    queue: QueueName | None = None
    """queue: the LocalQueue of Kueue that admits the training pods."""
    prepare_queue: QueueName | None = None
    """prepare.queue: the LocalQueue of Kueue that admits the pod that prepares."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31_536_000)
    """ttlSecondsAfterFinished."""
    notify: NotifySpec | None = None
    """notify, as a whole."""


class Bounds(ApiModel):
    """The most that a job may ask for. What is unset has no bound."""

    nodes: int | None = Field(default=None, ge=1)
    """resources.nodes."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """resources.gpusPerNode."""
    gpus: int | None = Field(default=None, ge=0)
    """resources.nodes times resources.gpusPerNode."""
    devices: Devices | None = None
    """resources.devices: number of each device. Devices that are not listed are refused, also if only GPUs have a
    bound: a device may be a GPU by another name."""
    cpu: Cpu | None = None
    """cpu and cpuLimit, of resources and of prepare."""
    memory: Size | None = None
    """memory, of resources and of prepare."""
    images: Prefixes | None = None
    """resources.image: images, repositories, or registries with a slash at their end."""
    sources: Prefixes | None = None
    """source and base of models, adapters and data sets: URIs, or what they begin with."""
    queues: list[QueueName] | None = Field(default=None, max_length=64)
    """queue and prepare.queue: the queues that a job may name. A job that names none gets that of the defaults."""
    trust_remote_code: bool | None = None
    """model.trustRemoteCode: false refuses it."""


class Presets(ApiModel):
    """The text of the ConfigMap."""

    defaults: Defaults = Defaults()
    """Values of fields that a job leaves out."""
    bounds: Bounds = Bounds()
    """The most that a job may ask for."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty_sections(cls, value: Any) -> Any:
        """A section of which every line is a comment is null in YAML."""
        return {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _defaults_are_within_the_bounds(self) -> Self:
        image, allowed = self.defaults.image, self.bounds.images
        if image is not None and not allows(allowed, image):
            raise ValueError(f"defaults.image is {image}, which bounds.images does not allow: change one of them")
        limit, most = self.defaults.cpu_limit, self.bounds.cpu
        if limit is not None and most is not None and not _at_most(limit, most):
            raise ValueError(f"defaults.cpuLimit is {limit}, but bounds.cpu is {most}: lower cpuLimit, or raise cpu")
        for name, queue in (("queue", self.defaults.queue), ("prepareQueue", self.defaults.prepare_queue)):
            if queue is not None and not _lists(self.bounds.queues, queue):
                raise ValueError(f"defaults.{name} is {queue}, which bounds.queues does not allow: change one of them")
        return self


def read(text: str) -> Presets:
    """The presets of a text. Raises ValueError."""
    if len(text.encode()) > PRESETS_BYTES:
        raise ValueError(f"the text has more than {PRESETS_BYTES} bytes: shorten it")
    try:
        document = strict_yaml.load(text)
    except RecursionError as error:
        raise ValueError("too many levels of brackets") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"no YAML: {_place_of(error)}") from error
    try:
        return Presets.model_validate({} if document is None else document)
    except ValidationError as error:
        raise ValueError("; ".join(_problem(each) for each in error.errors(include_url=False)[:5])) from error


def _place_of(error: Exception) -> str:
    """What is wrong with the YAML, and where; without the picture that PyYAML draws of the line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} at line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown field {path}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def allows(prefixes: Iterable[str] | None, value: str) -> bool:
    """Whether a list allows an image or a URI: it is listed, or continues an entry with a slash, a tag or a revision.
    None allows everything. The chart's policy decides alike."""
    if prefixes is None:
        return True
    return any(
        value == one or value.startswith((one if one.endswith("/") else f"{one}/", f"{one}:", f"{one}@"))
        for one in prefixes
    )


def _lists(queues: Iterable[str] | None, queue: str) -> bool:
    """Whether a list has a queue. None has all."""
    return queues is None or queue in queues


def fill(defaults: Defaults, spec: Parts) -> Parts:
    """What a spec leaves out and the defaults have, at its place in the spec."""
    given = defaults.to_dict()
    limit, queue = given.pop("cpuLimit", None), given.pop("prepareQueue", None)
    whole = {name: given.pop(name, None) for name in ("ttlSecondsAfterFinished", "queue", "notify")}
    parts: Parts = {name: value for name, value in whole.items() if value is not None and spec.get(name) is None}
    models: tuple[tuple[str, type[ApiModel], Parts], ...] = (
        ("resources", ResourcesSpec, given),
        ("prepare", PrepareSpec, {"queue": queue} if queue is not None else {}),
    )
    for name, model, more in models:
        requested = str((spec.get(name) or {}).get("cpu", model.model_fields["cpu"].default))
        limits = {"cpuLimit": limit if _at_most(requested, limit) else requested} if limit is not None else {}
        parts[name] = {**more, **limits}
    return _left_out(parts, spec)


def filled_in(spec: Parts, parts: Parts) -> Parts:
    """The spec with these parts where it has nothing."""
    out = dict(spec)
    for name, part in parts.items():
        own = spec.get(name)
        if isinstance(own, dict) and isinstance(part, dict):
            out[name] = filled_in(own, part)
        elif own is None:
            out[name] = part
    return out


def _left_out(parts: Parts, own: Parts) -> Parts:
    out = {}
    for name, part in parts.items():
        known = own.get(name)
        rest = _left_out(part, known or {}) if isinstance(part, dict) else part if known is None else None
        if rest or rest == 0:
            out[name] = rest
    return out


def excesses(bounds: Bounds, spec: FineTuneJobSpec) -> Iterator[str]:
    """What a job asks for beyond the bounds: field, value and bound."""
    yield from editable_excesses(bounds, spec)
    for field, uri in sources(spec):
        if not allows(bounds.sources, uri):
            yield _unlisted(field, uri, bounds.sources, "sources")
    if bounds.trust_remote_code is False and spec.model.trust_remote_code:
        yield "spec.model.trustRemoteCode is true, which is not allowed (bounds.trustRemoteCode)"


def editable_excesses(bounds: Bounds, spec: FineTuneJobSpec) -> Iterator[str]:
    """Those in sections that may change while a job is suspended."""
    resources, prepare = spec.resources, spec.prepare
    total = resources.nodes * resources.gpus_per_node
    compared: list[tuple[str, str, str | int | None, str | int | None]] = [
        ("resources.nodes", "nodes", resources.nodes, bounds.nodes),
        ("resources.gpusPerNode", "gpusPerNode", resources.gpus_per_node, bounds.gpus_per_node),
        ("resources.nodes x spec.resources.gpusPerNode", "gpus", total, bounds.gpus),
        ("resources.cpu", "cpu", resources.cpu, bounds.cpu),
        ("resources.cpuLimit", "cpu", resources.cpu_limit, bounds.cpu),
        ("prepare.cpu", "cpu", prepare.cpu, bounds.cpu),
        ("prepare.cpuLimit", "cpu", prepare.cpu_limit, bounds.cpu),
        ("resources.memory", "memory", resources.memory, bounds.memory),
        ("prepare.memory", "memory", prepare.memory, bounds.memory),
    ]
    if not (bounds.devices is None and bounds.gpus is None and bounds.gpus_per_node is None):
        listed = bounds.devices or {}
        for device, number in (resources.devices or {}).items():
            compared.append((f"resources.devices of {device}", "devices", number, listed.get(device, 0)))
    for field, bound, value, most in compared:
        if value is not None and most is not None and not _at_most(value, most):
            yield f"spec.{field} is {value}, and at most {most} is allowed (bounds.{bound})"
    if resources.image is not None and not allows(bounds.images, resources.image):
        yield _unlisted("resources.image", resources.image, bounds.images, "images")
    for field, queue in (("queue", spec.queue), ("prepare.queue", prepare.queue)):
        if queue is not None and not _lists(bounds.queues, queue):
            yield _unlisted(field, queue, bounds.queues, "queues")


def sources(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """Field and URI of everything that a job reads. Artifacts of other jobs have no URI in the spec."""
    reference, reward = reference_model(spec), spec.ppo.reward_model if spec.ppo else None
    named = {
        "model.source": spec.model.source,
        "tuning.adapter.source": spec.tuning.adapter.source if spec.tuning.adapter else None,
        f"{spec.stage}.reference.source": reference.source if reference else None,
        f"{spec.stage}.reference.base": reference.base if reference else None,
        "ppo.rewardModel.source": reward.source if reward else None,
        "ppo.rewardModel.base": reward.base if reward else None,
    }
    yield from ((field, uri) for field, uri in named.items() if uri is not None)
    evaluated = spec.evaluation.datasets if spec.evaluation else None
    for name, datasets in (("datasets", spec.datasets), ("evaluation.datasets", evaluated or [])):
        yield from ((f"{name}[{position}].source", dataset.source) for position, dataset in enumerate(datasets))


def _unlisted(field: str, value: str, listed: Iterable[str] | None, bound: str) -> str:
    allowed = ", ".join(listed or ())
    what = f"and only {allowed} is allowed" if allowed else "and none is allowed"
    return f"spec.{field} is {value}, {what} (bounds.{bound})"


def _at_most(value: str | int, most: str | int) -> bool:
    """A text that is no quantity, which only another release lets pass, is not."""
    try:
        return quantity(str(value)) <= quantity(str(most))
    except (KeyError, ValueError):
        return False
