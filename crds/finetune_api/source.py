"""Where models and data come from, and where artifacts go: URIs of four kinds.

``pvc://claim/path``        a volume in the job's namespace; the operator mounts it read-only at ``/volumes/<claim>``
``hf://org/name[@revision][/path]``  a repository of a Hugging Face hub; fetched by the prepare pod
``s3://bucket/prefix``      an S3 bucket, of any provider; fetched by the prepare pod
``configmap://name/key``    small data; the operator mounts it at ``/configmaps/<name>``

Only names are parsed here. The operator never opens any of them.
"""

from typing import Annotated, NamedTuple

from pydantic import AfterValidator, StringConstraints, WithJsonSchema

from finetune_api.base import cel

PVC = r"^pvc://[a-z0-9]([-a-z0-9]*[a-z0-9])?(/[^/]+)+/?$"
HF = r"^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*(@[A-Za-z0-9][-._A-Za-z0-9]*)?(/[^/]+)*/?$"
S3 = r"^s3://[a-z0-9][-.a-z0-9]+(/[^/]+)*/?$"
CONFIGMAP = r"^configmap://[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[-._A-Za-z0-9]+$"
HF_REPOSITORY = r"^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*(@[A-Za-z0-9][-._A-Za-z0-9]*)?$"
COMMIT = r"^hf://[^@]+@[0-9a-f]{40}(/.*)?$"
"""A hub source whose revision can't move."""


class PvcPath(NamedTuple):
    """A place on a PersistentVolumeClaim: ``path`` is relative to the volume's root."""

    claim: str
    path: str


class HubPath(NamedTuple):
    """A file or folder of a hub repository. ``revision`` is None where none is named, ``path`` may be empty."""

    repository: str
    revision: str | None
    path: str


class S3Path(NamedTuple):
    """An object, or all objects below a prefix, which may be empty."""

    bucket: str
    prefix: str


class ConfigMapKey(NamedTuple):
    """One key of a ConfigMap."""

    name: str
    key: str


Place = PvcPath | HubPath | S3Path | ConfigMapKey


def parse(source: str) -> Place:
    """What a URI names; the argument has passed `DataSource`, `ModelSource` or `OutputUri`."""
    scheme, _, rest = source.partition("://")
    head, _, path = rest.partition("/")
    path = path.rstrip("/")
    if scheme == "pvc":
        return PvcPath(head, path)
    if scheme == "s3":
        return S3Path(head, path)
    if scheme == "configmap":
        return ConfigMapKey(head, path)
    name, _, inside = path.partition("/")
    name, _, revision = name.partition("@")
    return HubPath(f"{head}/{name}", revision or None, inside)


def claim_of(source: str) -> str | None:
    """The claim that has to be mounted for a source, if it is on one."""
    place = parse(source)
    return place.claim if isinstance(place, PvcPath) else None


def config_map_of(source: str) -> ConfigMapKey | None:
    """The ConfigMap that has to be mounted for a source, if it is in one."""
    place = parse(source)
    return place if isinstance(place, ConfigMapKey) else None


def _stays_inside(source: str) -> str:
    if any(part in ("..", ".") for part in source.split("/")):
        raise ValueError(f"{source!r} has a '.' or '..' part: name the file or folder by its full path")
    return source


_INSIDE = cel("!self.split('/').exists(p, p == '..' || p == '.')", "must not have '.' or '..' parts")


def _any_of(*patterns: str) -> str:
    return "|".join(f"({pattern})" for pattern in patterns)


def _looks(patterns: str, looks: str) -> WithJsonSchema:
    rules = [cel(f"self.matches(r'{patterns}')", f"must look like {looks}"), _INSIDE]
    return WithJsonSchema({"type": "string", "maxLength": 1024, "x-kubernetes-validations": rules})


ModelSource = Annotated[
    str,
    StringConstraints(pattern=_any_of(PVC, HF, S3), max_length=1024),
    AfterValidator(_stays_inside),
    _looks(_any_of(PVC, HF, S3), "hf://org/name[@revision], s3://bucket/prefix or pvc://claim/path/in/the/volume"),
]
"""A folder in Hugging Face layout on a volume, on a hub or in a bucket."""

DataSource = Annotated[
    str,
    StringConstraints(pattern=_any_of(PVC, HF, S3, CONFIGMAP), max_length=1024),
    AfterValidator(_stays_inside),
    _looks(
        _any_of(PVC, HF, S3, CONFIGMAP),
        "hf://org/name[@revision][/path], s3://bucket/prefix, pvc://claim/path/in/the/volume or configmap://name/key",
    ),
]
"""A file or a folder of files on a volume, on a hub, in a bucket or in a ConfigMap."""

OutputUri = Annotated[
    str,
    StringConstraints(pattern=_any_of(HF_REPOSITORY, S3), max_length=1024),
    AfterValidator(_stays_inside),
    _looks(_any_of(HF_REPOSITORY, S3), "s3://bucket/prefix or hf://org/name[@branch]"),
]
"""Where an artifact is copied to: a bucket or a hub repository."""
