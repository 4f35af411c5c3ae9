"""URIs of models, data and artifacts, of four schemes.

``pvc://claim/path``        a volume in the job's namespace; the operator mounts it read-only at ``/volumes/<claim>``
``hf://org/name[@revision][/path]``  a repository of a Hugging Face hub; fetched by the prepare pod
``s3://bucket/prefix``      an S3 bucket, of any provider; fetched by the prepare pod
``configmap://name/key``    small data; the operator mounts it at ``/configmaps/<name>``

This module only parses URIs. The operator never opens any of them.
"""

from typing import Annotated, NamedTuple

from pydantic import AfterValidator, StringConstraints, WithJsonSchema

from finetune_api.base import cel

PVC = r"^pvc://[a-z0-9]([-a-z0-9]*[a-z0-9])?(/[^/]+)+/?$"
HF = r"^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*(@[A-Za-z0-9][-._A-Za-z0-9]*)?(/[^/]+)*/?$"
S3 = r"^s3://[a-z0-9][-.a-z0-9]+(/[^/]+)*/?$"
CONFIGMAP = r"^configmap://[a-z0-9]([-.a-z0-9]*[a-z0-9])?/\.?[-_A-Za-z0-9][-._A-Za-z0-9]*$"
HF_REPOSITORY = r"^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*(@[A-Za-z0-9][-._A-Za-z0-9]*)?$"
COMMIT = r"^hf://[^@]+@[0-9a-f]{40}(/.*)?$"
"""A hub source whose revision is a commit, which cannot change."""


class PvcPath(NamedTuple):
    """A path on a PersistentVolumeClaim: ``path`` is relative to the root of the volume."""

    claim: str
    path: str


class HubPath(NamedTuple):
    """A file or directory of a hub repository. ``revision`` is None if the URI names none; ``path`` may be empty."""

    repository: str
    revision: str | None
    path: str


class S3Path(NamedTuple):
    """An object, or all objects below a prefix, which may be empty."""

    bucket: str
    prefix: str


class ConfigMapKey(NamedTuple):
    """A key of a ConfigMap."""

    name: str
    key: str


Location = PvcPath | HubPath | S3Path | ConfigMapKey


def parse(source: str) -> Location:
    """The parts of a URI that `DataSource`, `ModelSource` or `OutputUri` has validated."""
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
    """The claim to mount for a source, if it is a pvc:// URI."""
    location = parse(source)
    return location.claim if isinstance(location, PvcPath) else None


def config_map_of(source: str) -> ConfigMapKey | None:
    """The ConfigMap to mount for a source, if it is a configmap:// URI."""
    location = parse(source)
    return location if isinstance(location, ConfigMapKey) else None


def _no_dot_parts(source: str) -> str:
    if any(part in ("..", ".") for part in source.split("/")):
        raise ValueError(f"{source!r} has a '.' or '..' part: use the full path")
    return source


_NO_DOT_PARTS = cel(
    "!self.split('/').exists(p, p == '..' || p == '.')", "must not have '.' or '..' parts: use the full path"
)


def _any_of(*patterns: str) -> str:
    return "|".join(f"({pattern})" for pattern in patterns)


def _schema(patterns: str, example: str) -> WithJsonSchema:
    rules = [cel(f"self.matches(r'{patterns}')", f"must look like {example}"), _NO_DOT_PARTS]
    return WithJsonSchema({"type": "string", "maxLength": 1024, "x-kubernetes-validations": rules})


ModelSource = Annotated[
    str,
    StringConstraints(pattern=_any_of(PVC, HF, S3), max_length=1024),
    AfterValidator(_no_dot_parts),
    _schema(_any_of(PVC, HF, S3), "hf://org/name[@revision], s3://bucket/prefix or pvc://claim/path/in/the/volume"),
]
"""A directory in Hugging Face layout on a volume, on a hub or in a bucket."""

DataSource = Annotated[
    str,
    StringConstraints(pattern=_any_of(PVC, HF, S3, CONFIGMAP), max_length=1024),
    AfterValidator(_no_dot_parts),
    _schema(
        _any_of(PVC, HF, S3, CONFIGMAP),
        "hf://org/name[@revision][/path], s3://bucket/prefix, pvc://claim/path/in/the/volume or configmap://name/key",
    ),
]
"""A file or a directory of files on a volume, on a hub, in a bucket or in a ConfigMap."""

OutputUri = Annotated[
    str,
    StringConstraints(pattern=_any_of(HF_REPOSITORY, S3), max_length=1024),
    AfterValidator(_no_dot_parts),
    _schema(_any_of(HF_REPOSITORY, S3), "s3://bucket/prefix or hf://org/name[@branch]"),
]
"""Target of an artifact's copy: a bucket or a hub repository."""
