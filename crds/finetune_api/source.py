"""Where models and data come from: ``pvc://claim/path``.

The trainer finds a claim mounted read-only at ``/volumes/<claim>``; the operator mounts every claim that a job names.
"""

from typing import Annotated, NamedTuple

from pydantic import AfterValidator, StringConstraints, WithJsonSchema

from finetune_api.base import cel

PVC = r"^pvc://[a-z0-9]([-a-z0-9]*[a-z0-9])?(/[^/]+)+/?$"


class PvcPath(NamedTuple):
    """A place on a PersistentVolumeClaim: ``path`` is relative to the volume's root."""

    claim: str
    path: str


def parse(source: str) -> PvcPath:
    """Split ``pvc://claim/path``; the argument has passed `Source`."""
    claim, _, path = source.removeprefix("pvc://").partition("/")
    return PvcPath(claim, path.rstrip("/"))


def _stays_inside(source: str) -> str:
    if any(part in ("..", ".") for part in source.split("/")):
        raise ValueError(f"{source!r} has a '.' or '..' part: name the file or folder by its full path in the volume")
    return source


Source = Annotated[
    str,
    StringConstraints(pattern=PVC, max_length=1024),
    AfterValidator(_stays_inside),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 1024,
            "x-kubernetes-validations": [
                cel(f"self.matches(r'{PVC}')", "must look like pvc://claim/path/in/the/volume"),
                cel("!self.split('/').exists(p, p == '..' || p == '.')", "must not have '.' or '..' parts"),
            ],
        }
    ),
]
"""``pvc://claim/path``: a file or folder on a PersistentVolumeClaim in the job's namespace."""
