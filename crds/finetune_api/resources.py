"""spec.resources and spec.workspace: what the training pods get."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, DnsLabel, DnsName, Quantity, cel, validated
from finetune_api.placement import Affinity, KeyRef, Labels, Toleration

RESERVED_MOUNTS = ("/workspace", "/volumes", "/configmaps", "/etc/finetune", "/tmp", "/dev/shm")
RESERVED_ENV = "FINETUNE_"
RESERVED_VOLUME = "finetune-"

_ENV_RULES: list[JsonDict] = [
    cel(
        "(has(self.value) ? 1 : 0) + (has(self.secretKeyRef) ? 1 : 0) + (has(self.configMapKeyRef) ? 1 : 0) == 1",
        "set exactly one of value, secretKeyRef and configMapKeyRef",
    ),
    cel(f"!self.name.startsWith('{RESERVED_ENV}')", f"names that start with {RESERVED_ENV} belong to the trainer"),
]
_VOLUME_RULES: list[JsonDict] = [
    cel(
        "(has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.configMap) ? 1 : 0) + (has(self.secret) ? 1 : 0)"
        " + (has(self.emptyDir) ? 1 : 0) == 1",
        "set exactly one of persistentVolumeClaim, configMap, secret and emptyDir",
    ),
    cel(
        f"!self.name.startsWith('{RESERVED_VOLUME}')", f"names that start with {RESERVED_VOLUME} belong to the operator"
    ),
]
_MOUNT_RULES: list[JsonDict] = [
    cel(
        "!" + str(list(RESERVED_MOUNTS)) + ".exists(p, self.mountPath == p || self.mountPath.startsWith(p + '/'))",
        "must not be at or below " + ", ".join(RESERVED_MOUNTS),
    ),
]


def _exactly_one(section: ApiModel, *names: str) -> None:
    if sum(getattr(section, name) is not None for name in names) != 1:
        fields = [type(section).model_fields[name].alias or name for name in names]
        raise ValueError("set exactly one of " + ", ".join(fields[:-1]) + " and " + fields[-1])


class EnvVar(ApiModel):
    """One environment variable of the training container."""

    model_config = ConfigDict(json_schema_extra=validated(_ENV_RULES))

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Its value, in the open. For anything secret use secretKeyRef."""
    secret_key_ref: KeyRef | None = None
    """A key of a Secret."""
    config_map_key_ref: KeyRef | None = None
    """A key of a ConfigMap."""

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        _exactly_one(self, "value", "secret_key_ref", "config_map_key_ref")
        if self.name.startswith(RESERVED_ENV):
            raise ValueError(f"{self.name}: names that start with {RESERVED_ENV} belong to the trainer")
        return self


class ClaimVolume(ApiModel):
    """A PersistentVolumeClaim."""

    claim_name: DnsName
    """Name of the claim."""
    read_only: bool = False
    """Mount it read-only."""


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

    medium: Literal["", "Memory"] = ""
    """Memory: a tmpfs, counted against the memory limit."""
    size_limit: Quantity | None = None
    """Size at which the pod is evicted."""


class Volume(ApiModel):
    """One more volume for the training pods."""

    model_config = ConfigDict(json_schema_extra=validated(_VOLUME_RULES))

    name: DnsLabel
    """Name that volumeMounts refer to."""
    persistent_volume_claim: ClaimVolume | None = None
    """A claim in the job's namespace."""
    config_map: ConfigMapVolume | None = None
    """A ConfigMap in the job's namespace."""
    secret: SecretVolume | None = None
    """A Secret in the job's namespace."""
    empty_dir: EmptyDirVolume | None = None
    """Scratch space."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, "persistent_volume_claim", "config_map", "secret", "empty_dir")
        if self.name.startswith(RESERVED_VOLUME):
            raise ValueError(f"{self.name}: names that start with {RESERVED_VOLUME} belong to the operator")
        return self


class VolumeMount(ApiModel):
    """Where a volume appears in the training container."""

    model_config = ConfigDict(json_schema_extra=validated(_MOUNT_RULES))

    name: DnsLabel
    """Name of one of resources.volumes."""
    mount_path: Annotated[str, StringConstraints(pattern=r"^/[^:]+$", max_length=512)]
    """Absolute path, outside the trainer's own folders."""
    sub_path: Annotated[str, StringConstraints(max_length=512)] | None = None
    """Folder or file in the volume; unset: its root."""
    read_only: bool = False
    """Mount it read-only."""

    @model_validator(mode="after")
    def _outside_the_trainers_folders(self) -> Self:
        if any(self.mount_path == path or self.mount_path.startswith(path + "/") for path in RESERVED_MOUNTS):
            raise ValueError(f"{self.mount_path}: must not be at or below {', '.join(RESERVED_MOUNTS)}")
        return self


GPUS_TWICE = "devices are what a pod gets besides GPUs: say how many GPUs by gpusPerNode"

_RULES: list[JsonDict] = [
    cel(
        "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v,"
        " v.name == m.name))",
        "every volumeMount must name one of resources.volumes",
    ),
    cel("!has(self.devices) || !(self.gpuResource in self.devices)", GPUS_TWICE),
]


ResourceName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$", max_length=253
    ),
]


class ResourcesSpec(ApiModel):
    """What each training pod gets, and where it may run."""

    model_config = ConfigDict(json_schema_extra=validated(_RULES))

    nodes: int = Field(default=1, ge=1, le=9999)
    """Pods that train together, each on a node of its own where there are enough. More than one need a workspace that
    several nodes can mount (ReadWriteMany)."""
    gpus_per_node: int = Field(default=1, ge=0, le=16)
    """GPUs of each pod, with one process each; 0: train on the CPU."""
    gpu_resource: ResourceName = "nvidia.com/gpu"
    """Resource name by which the cluster counts GPUs."""
    gpu_memory: Quantity | None = None
    """Memory of one GPU, as 80Gi, to hold the estimate of what the job needs against. Unset: what the labels of the
    nodes say, where the operator may read them; else the estimate is only reported."""
    devices: Annotated[dict[ResourceName, Annotated[int, Field(ge=1, le=64)]], Field(max_length=8)] | None = None
    """Other devices of each pod, by the names under which the cluster counts them, such as those of RDMA."""
    cpu: Quantity = "4"
    """CPU request of each pod; it may use more where the node has some to spare."""
    memory: Quantity = "16Gi"
    """Memory of each pod, request and limit; /dev/shm counts against it."""
    shared_memory: Quantity = "1Gi"
    """Size of /dev/shm, which processes of a pod share."""
    image: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$", max_length=512)] | None = None
    """Trainer image; unset: the operator's default for its release."""
    image_pull_secrets: list[DnsName] | None = Field(default=None, max_length=8)
    """Secrets for pulling the image, besides those of the installation."""
    node_selector: Labels | None = None
    """Labels that the nodes must have."""
    affinity: Affinity | None = None
    """Affinity, as in a pod."""
    tolerations: list[Toleration] | None = Field(default=None, max_length=16)
    """Taints that the pods tolerate."""
    priority_class_name: DnsName | None = None
    """PriorityClass of the pods."""
    service_account_name: DnsName | None = None
    """ServiceAccount of the pods (for workload identity). It must exist. Unset: finetune-trainer, which the operator
    makes."""
    termination_grace_period_seconds: int = Field(default=120, ge=20, le=86_400)
    """Time that a pod has to save its state when it is drained or preempted."""
    env: list[EnvVar] | None = Field(default=None, max_length=64)
    """More environment variables."""
    volumes: list[Volume] | None = Field(default=None, max_length=16)
    """More volumes."""
    volume_mounts: list[VolumeMount] | None = Field(default=None, max_length=32)
    """Where they are mounted."""

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> Self:
        known = {volume.name for volume in self.volumes or []}
        for mount in self.volume_mounts or []:
            if mount.name not in known:
                raise ValueError(f"volumeMount {mount.name!r} names none of resources.volumes: {sorted(known)}")
        return self

    @model_validator(mode="after")
    def _gpus_are_no_devices(self) -> Self:
        if self.gpu_resource in (self.devices or {}):
            raise ValueError(f"{self.gpu_resource}: {GPUS_TWICE}")
        return self


class ClaimSpec(ApiModel):
    """A PersistentVolumeClaim that the operator makes: <name of the job>-workspace."""

    size: Quantity
    """Room for what is fetched, the prepared data, checkpoints and the artifact."""
    storage_class_name: DnsName | None = None
    """StorageClass. Unset: the cluster's default."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    """Who may mount it at the same time: the pods of one node, of all nodes, or one pod."""


_WORKSPACE_RULES: list[JsonDict] = [
    cel("has(self.claimName) != has(self.claim)", "set exactly one of claimName and claim"),
    cel("has(self.claim) || self.retain", "retain: false needs claim: a claim of yours is never deleted"),
]


class WorkspaceSpec(ApiModel):
    """The volume on which fetched and prepared data, checkpoints, reports and the artifact are kept."""

    model_config = ConfigDict(json_schema_extra=validated(_WORKSPACE_RULES))

    claim_name: DnsLabel | None = None
    """A PersistentVolumeClaim in the job's namespace. Jobs that share it fetch and prepare the same things once."""
    claim: ClaimSpec | None = None
    """Have the operator make one."""
    retain: bool = True
    """Keep the claim that the operator made, and the model on it, when the job is deleted."""

    @model_validator(mode="after")
    def _one_claim(self) -> Self:
        _exactly_one(self, "claim_name", "claim")
        if self.claim is None and not self.retain:
            raise ValueError("retain: false needs claim: a claim of yours is never deleted")
        return self


class PrepareSpec(ApiModel):
    """The pod that fetches and checks the data before a GPU is held. It is placed like the training pods."""

    cpu: Quantity = "2"
    """CPU request; as many processes tokenize."""
    memory: Quantity = "4Gi"
    """Memory, request and limit."""
    node_selector: Labels | None = None
    """Labels that the node must have, instead of resources.nodeSelector: for workspaces that every node can mount."""
