"""What the trainer's container receives besides its own: environment, volumes and mounts."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from finetune_api.base import ApiModel, Rule
from finetune_api.kubernetes import ConfigKey, DnsLabel, DnsName, Size

RESERVED_MOUNTS = (
    "/workspace",
    "/volumes",
    "/configmaps",
    "/etc/finetune",
    "/tmp",
    "/dev",
    "/proc",
    "/sys",
    "/var/run/secrets/kubernetes.io",
)
RESERVED_ENV = "FINETUNE_"
RESERVED_VOLUME = "finetune-"

ENV_NAME = f"names that start with {RESERVED_ENV} are reserved for the trainer: choose another name"
VOLUME_NAME = f"names that start with {RESERVED_VOLUME} are reserved for the operator: choose another name"
MOUNT_FORM = "mountPath must be absolute, without empty, '.' and '..' parts: write it like /data/mine"
MOUNT_PATH = f"mountPath must not be at, below or above {', '.join(RESERVED_MOUNTS)}: choose another path"
SUB_PATH = "subPath must be relative, without '..' parts: write it like data/mine"

_PRINTED = r"[^\x00-\x1f\x7f]"
_RESERVED = [f"{path}/" for path in RESERVED_MOUNTS]


def one_of(*names: str) -> Rule:
    """Exactly one of the fields is set."""
    fields = ["".join([first, *(part.title() for part in rest)]) for first, *rest in (n.split("_") for n in names)]
    return Rule(
        "set exactly one of " + ", ".join(fields[:-1]) + " and " + fields[-1],
        " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields) + " == 1",
        lambda section: sum(getattr(section, name) is not None for name in names) == 1,
        structural=True,
    )


def directory(path: str) -> str:
    """The path with a slash at its end, so that equal directories are equal texts."""
    return path if path.endswith("/") else f"{path}/"


def directory_cel(path: str) -> str:
    """`directory` as CEL."""
    return f"({path}.endsWith('/') ? {path} : {path} + '/')"


class KeyRef(ApiModel):
    """A key of a Secret or ConfigMap in the job's namespace."""

    name: DnsName
    """Name of the Secret or ConfigMap."""
    key: ConfigKey
    """Key in the Secret or ConfigMap."""


class EnvVar(ApiModel):
    """An environment variable of the training container."""

    RULES = (
        one_of("value", "secret_key_ref", "config_map_key_ref"),
        Rule(
            ENV_NAME,
            f"!self.name.startsWith('{RESERVED_ENV}')",
            lambda variable: not variable.name.startswith(RESERVED_ENV),
        ),
    )

    name: Annotated[str, StringConstraints(pattern=r"^(\.?[-_A-Za-z]|\.[0-9])[-._A-Za-z0-9]*$", max_length=128)]
    """Name of the variable. Names that start with FINETUNE_ are reserved."""
    value: Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=4096)] | None = None
    """Value in plain text. Use secretKeyRef for anything secret."""
    secret_key_ref: KeyRef | None = None
    """Key of a Secret that holds the value."""
    config_map_key_ref: KeyRef | None = None
    """Key of a ConfigMap that holds the value."""


class ClaimVolume(ApiModel):
    """A PersistentVolumeClaim."""

    claim_name: DnsName
    """Name of the claim."""
    read_only: bool | None = None
    """Mount the claim read-only. Unset: false."""


class ConfigMapVolume(ApiModel):
    """A ConfigMap as files."""

    name: DnsName
    """Name of the ConfigMap."""


class SecretVolume(ApiModel):
    """A Secret as files."""

    secret_name: DnsName
    """Name of the Secret."""


class EmptyDirVolume(ApiModel):
    """Scratch space that lives as long as the pod."""

    medium: Literal["", "Memory"] | None = None
    """Memory: a tmpfs, which counts against the memory limit. Empty or unset: the node's disk."""
    size_limit: Size | None = None
    """Size above which the pod is evicted; in memory, at most resources.memory."""


class Volume(ApiModel):
    """An additional volume of the training pods."""

    RULES = (
        one_of("persistent_volume_claim", "config_map", "secret", "empty_dir"),
        Rule(
            VOLUME_NAME,
            f"!self.name.startsWith('{RESERVED_VOLUME}')",
            lambda volume: not volume.name.startswith(RESERVED_VOLUME),
        ),
    )

    name: DnsLabel
    """Name that volumeMounts refer to. Names that start with finetune- are reserved."""
    persistent_volume_claim: ClaimVolume | None = None
    """A PersistentVolumeClaim in the job's namespace."""
    config_map: ConfigMapVolume | None = None
    """A ConfigMap in the job's namespace."""
    secret: SecretVolume | None = None
    """A Secret in the job's namespace."""
    empty_dir: EmptyDirVolume | None = None
    """Scratch space that lives as long as the pod."""


def _is_plain(mount: "VolumeMount") -> bool:
    return not any(part in directory(mount.mount_path) for part in ("//", "/./", "/../"))


def _is_outside(mount: "VolumeMount") -> bool:
    path = directory(mount.mount_path)
    return not any(path.startswith(reserved) or reserved.startswith(path) for reserved in _RESERVED)


class VolumeMount(ApiModel):
    """Where a volume appears in the training container."""

    RULES = (
        Rule(
            MOUNT_FORM,
            f"!['//', '/./', '/../'].exists(p, {directory_cel('self.mountPath')}.contains(p))",
            _is_plain,
        ),
        Rule(
            MOUNT_PATH,
            f"[{directory_cel('self.mountPath')}].all(m, !{_RESERVED}.exists(p, m.startsWith(p) || p.startsWith(m)))",
            _is_outside,
        ),
        Rule(
            SUB_PATH,
            "!has(self.subPath) || !(self.subPath.startsWith('/') || ('/' + self.subPath + '/').contains('/../'))",
            lambda mount: not (sub := mount.sub_path) or not (sub.startswith("/") or "/../" in f"/{sub}/"),
        ),
    )

    name: DnsLabel
    """Name of an entry in resources.volumes."""
    mount_path: Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f:]+$", max_length=512)]
    """Absolute path, outside of the trainer's own directories."""
    sub_path: Annotated[str, StringConstraints(pattern=rf"^{_PRINTED}*$", max_length=512)] | None = None
    """File or directory in the volume, as a relative path. Unset: the root of the volume."""
    read_only: bool | None = None
    """Mount the volume read-only. Unset: false."""
