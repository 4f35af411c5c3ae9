"""spec.resources, spec.workspace and spec.prepare: resources and volumes of the pods."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Rule
from finetune_api.container import EnvVar, Volume, VolumeMount, directory, directory_cel, one_of
from finetune_api.kubernetes import (
    Cpu,
    Devices,
    DnsLabel,
    DnsName,
    Image,
    Labels,
    PodAnnotations,
    PodLabels,
    QueueName,
    ResourceName,
    Size,
    at_most,
    quantity,
)
from finetune_api.placement import Affinity, ResourceClaim, Toleration, Topology

UNKNOWN_VOLUME = "every volumeMount must name an entry in resources.volumes: add the volume, or change the name"
GPUS_TWICE = "devices must not name gpuResource: set the number of GPUs by gpusPerNode"
CPU_LIMIT = "cpuLimit must be at least cpu: raise cpuLimit, or lower cpu"
SHARED_MEMORY = "sharedMemory counts against memory and must not exceed it: lower sharedMemory, or raise memory"
MEMORY_VOLUMES = (
    "volumes with emptyDir.medium Memory count against memory: lower their emptyDir.sizeLimit to at most memory, or"
    " raise memory"
)
NEVER_DELETED = (
    "retain false needs claim, because the operator never deletes a claim of yours: use claim, or remove retain"
)


def twice(field: str, what: str) -> str:
    """The message about two entries of a list that must differ."""
    return f"{field} must not have the same {what} twice: remove an entry, or change it"


def _distinct(field: str, what: str, item: Callable[[Any], Iterable[str]], key: str, other: str) -> Rule:
    """`item` lists the keys in Python; `key` and `other` are the keys of entries a and b in CEL."""

    def holds(section: ApiModel) -> bool:
        keys = list(item(section))
        return len(keys) == len(set(keys))

    return Rule(
        twice(field, what),
        f"!has(self.{field}) || self.{field}.all(a, self.{field}.exists_one(b, {key} == {other}))",
        holds,
    )


_CPU_LIMIT = Rule(
    CPU_LIMIT,
    f"!has(self.cpuLimit) || {at_most('self.cpu', 'self.cpuLimit')}",
    lambda section: section.cpu_limit is None or quantity(section.cpu) <= quantity(section.cpu_limit),
)


def _mounts_have_volumes(section: "ResourcesSpec") -> bool:
    known = {volume.name for volume in section.volumes or []}
    return all(mount.name in known for mount in section.volume_mounts or [])


def _memory_volumes_fit(section: "ResourcesSpec") -> bool:
    scratch = [volume.empty_dir for volume in section.volumes or [] if volume.empty_dir is not None]
    limits = [one.size_limit for one in scratch if one.medium == "Memory" and one.size_limit is not None]
    return all(quantity(limit) <= quantity(section.memory) for limit in limits)


class ResourcesSpec(ApiModel):
    """Resources of each training pod, and the nodes it may run on."""

    RULES = (
        _CPU_LIMIT,
        Rule(
            SHARED_MEMORY,
            # The API server checks the default of resources, {}, before it fills in the defaults of its fields.
            f"!has(self.sharedMemory) || {at_most('self.sharedMemory', 'self.memory')}",
            lambda section: quantity(section.shared_memory) <= quantity(section.memory),
        ),
        Rule(
            GPUS_TWICE,
            "!has(self.devices) || !(self.gpuResource in self.devices)",
            lambda section: section.gpu_resource not in (section.devices or {}),
        ),
        _distinct(
            "resourceClaims",
            "name",
            lambda section: (c.name for c in section.resource_claims or ()),
            "a.name",
            "b.name",
        ),
        _distinct("imagePullSecrets", "name", lambda section: section.image_pull_secrets or (), "a", "b"),
        _distinct("env", "name", lambda section: (one.name for one in section.env or ()), "a.name", "b.name"),
        _distinct("volumes", "name", lambda section: (one.name for one in section.volumes or ()), "a.name", "b.name"),
        _distinct(
            "volumeMounts",
            "mountPath",
            lambda section: (directory(mount.mount_path) for mount in section.volume_mounts or ()),
            directory_cel("a.mountPath"),
            directory_cel("b.mountPath"),
        ),
        Rule(
            UNKNOWN_VOLUME,
            "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v,"
            " v.name == m.name))",
            _mounts_have_volumes,
        ),
        Rule(
            MEMORY_VOLUMES,
            "!has(self.volumes) || self.volumes.all(v, !has(v.emptyDir) || !has(v.emptyDir.medium)"
            " || v.emptyDir.medium != 'Memory' || !has(v.emptyDir.sizeLimit)"
            f" || {at_most('v.emptyDir.sizeLimit', 'self.memory')})",
            _memory_volumes_fit,
        ),
    )

    nodes: int = Field(default=1, ge=1, le=9999)
    """Pods that train together, each on its own node if there are enough nodes. More than 1 needs a ReadWriteMany
    workspace."""
    gpus_per_node: int = Field(default=1, ge=0, le=16)
    """GPUs of each pod, with a process per GPU. 0: train on the CPU."""
    gpu_resource: ResourceName = "nvidia.com/gpu"
    """Resource name of the cluster's GPUs. Change it for GPUs of another vendor, or for MIG slices."""
    gpu_memory: Size | None = None
    """Memory of a GPU, such as 80Gi, to compare the memory estimate with. Unset: from node labels, if the operator may
    read them."""
    devices: Devices | None = None
    """Other devices of each pod: resource name and number. Set it for RDMA, for example."""
    cpu: Cpu = "4"
    """CPU request of each pod in cores; a pod may also use idle CPUs of its node. Raise it if GPUs wait for data."""
    cpu_limit: Cpu | None = None
    """CPU limit of each pod in cores, at least cpu. Unset: no limit. Set it if a quota requires a limit."""
    memory: Size = "16Gi"
    """Memory request and limit of each pod; /dev/shm counts against it. Raise it if a pod ends with OutOfMemory."""
    shared_memory: Size = "1Gi"
    """Size of /dev/shm, which the processes of a pod share. Raise it if NCCL reports a lack of shared memory."""
    image: Image | None = None
    """Trainer image. Set it to use your own build. Unset: the image of the operator's release."""
    image_pull_secrets: list[DnsName] | None = Field(default=None, max_length=8)
    """Secrets for pulling the image, in addition to those of the installation."""
    pod_labels: PodLabels | None = None
    """Additional labels of all pods, also of those that prepare. Set it for tools that select pods, such as a mesh."""
    pod_annotations: PodAnnotations | None = None
    """Additional annotations of all pods, also of those that prepare. Set it for tools that read them."""
    node_selector: Labels | None = None
    """Labels that a node must have."""
    affinity: Affinity | None = None
    """Affinity to nodes and other pods, as in a pod."""
    tolerations: list[Toleration] | None = Field(default=None, max_length=16)
    """Taints that the pods tolerate. Set it if your GPU nodes have taints."""
    topology: Topology | None = None
    """How close together the queue places the training pods. It needs queue."""
    scheduler_name: DnsName | None = None
    """Scheduler of all pods. Set it for Volcano, KAI or another. Unset: the cluster's default."""
    resource_claims: list[ResourceClaim] | None = Field(default=None, max_length=8)
    """Claims of the training pods on devices (DRA, Kubernetes 1.34). Set it for devices that have no resource name."""
    priority_class_name: DnsName | None = None
    """PriorityClass of the pods. Set it to change which pods are preempted first."""
    service_account_name: DnsName | None = None
    """ServiceAccount of the pods, which must exist. Set it for workload identity. Unset: finetune-trainer, which the
    operator creates."""
    termination_grace_period_seconds: int = Field(default=120, ge=20, le=86_400)
    """Seconds that a pod has to save a checkpoint when it is drained or preempted. Raise it for large models."""
    env: list[EnvVar] | None = Field(default=None, max_length=64)
    """Additional environment variables of the training container."""
    volumes: list[Volume] | None = Field(default=None, max_length=16)
    """Additional volumes of the training pods."""
    volume_mounts: list[VolumeMount] | None = Field(default=None, max_length=32)
    """Where the additional volumes appear in the training container."""


class ClaimSpec(ApiModel):
    """A PersistentVolumeClaim that the operator creates, named <job>-workspace."""

    size: Size
    """Size of the volume, such as 100Gi: room for fetched files, prepared data, checkpoints and the artifact."""
    storage_class_name: DnsName | None = None
    """StorageClass of the claim. Unset: the cluster's default."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    """ReadWriteOnce: pods of a single node may mount the volume. ReadWriteMany: pods of all nodes. ReadWriteOncePod: a
    single pod."""


class WorkspaceSpec(ApiModel):
    """Volume for fetched and prepared data, checkpoints, reports and the artifact. Set exactly one of claimName and
    claim."""

    RULES = (
        one_of("claim_name", "claim"),
        Rule(
            NEVER_DELETED,
            "has(self.claim) || self.retain",
            lambda workspace: workspace.claim is not None or workspace.retain,
        ),
    )

    claim_name: DnsLabel | None = None
    """Existing PersistentVolumeClaim in the job's namespace. Jobs that share a claim fetch and prepare the same data
    once."""
    claim: ClaimSpec | None = None
    """PersistentVolumeClaim that the operator creates for this job."""
    retain: bool = True
    """Keep the claim that the operator created, with the artifact, when the job is deleted. Turn it off for trials."""


class PrepareSpec(ApiModel):
    """Resources of the pod that fetches and checks the data. It runs where the training pods may run."""

    RULES = (_CPU_LIMIT,)

    cpu: Cpu = "2"
    """CPU request in cores, and the number of processes that tokenize. Raise it for large data sets."""
    cpu_limit: Cpu | None = None
    """CPU limit in cores, at least cpu. Unset: no limit. Set it if a quota requires a limit."""
    memory: Size = "4Gi"
    """Memory request and limit. Raise it if the pod ends with OutOfMemory."""
    queue: QueueName | None = None
    """Kueue LocalQueue that admits this pod. Set it if Kueue manages all Jobs of the cluster. Unset: it starts at
    once."""
    node_selector: Labels | None = None
    """Labels that the node must have, instead of resources.nodeSelector. Set it if every node can mount the
    workspace."""
