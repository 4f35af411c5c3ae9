"""Where pods may run: the parts of Kubernetes' own pod API that a FineTuneJob offers, typed and bounded.

Field names and meanings are those of core/v1; there is no free-form pod patch, since whoever may create a FineTuneJob
must not gain more rights over pods than these fields give.
"""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ApiModel, DnsLabel, LabelKey, LabelValue, ShortText

Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]


class Toleration(ApiModel):
    """Lets pods run on nodes with a matching taint."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """Taint key; unset with operator Exists: every key."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How key and value are compared."""
    value: LabelValue | None = None
    """Taint value for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; unset: every effect."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=86_400)
    """For NoExecute: how long to stay; unset: for ever."""


class LabelRequirement(ApiModel):
    """One condition on a label."""

    key: LabelKey
    """Label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """Relation of the label's value to values."""
    values: list[LabelValue] | None = Field(default=None, max_length=32)
    """Values for In and NotIn, one number for Gt and Lt."""


class NodeSelectorTerm(ApiModel):
    """Conditions that must all hold for a node."""

    match_expressions: list[LabelRequirement] | None = Field(default=None, max_length=16)
    """On the node's labels."""
    match_fields: list[LabelRequirement] | None = Field(default=None, max_length=4)
    """On the node's fields (metadata.name)."""


class NodeSelector(ApiModel):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] = Field(min_length=1, max_length=8)
    """Alternatives."""


class PreferredNodes(ApiModel):
    """A weighted wish for nodes."""

    weight: int = Field(ge=1, le=100)
    """How much the wish counts."""
    preference: NodeSelectorTerm
    """The nodes wished for."""


class NodeAffinity(ApiModel):
    """Rules on the nodes' labels."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes that pods must run on."""
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodes] | None = Field(
        default=None, max_length=8
    )
    """Nodes that pods would rather run on."""


class LabelSelector(ApiModel):
    """Selects pods by label."""

    match_labels: Labels | None = None
    """Labels that must be equal."""
    match_expressions: list[LabelRequirement] | None = Field(default=None, max_length=16)
    """Conditions that must hold."""


class PodAffinityTerm(ApiModel):
    """Other pods, and the topology in which to be near to or far from them."""

    label_selector: LabelSelector | None = None
    """The other pods."""
    namespaces: list[DnsLabel] | None = Field(default=None, max_length=8)
    """Their namespaces; unset: the job's."""
    topology_key: LabelKey
    """Node label whose equal values mean the same place."""


class WeightedPodAffinityTerm(ApiModel):
    """A weighted wish about other pods."""

    weight: int = Field(ge=1, le=100)
    """How much the wish counts."""
    pod_affinity_term: PodAffinityTerm
    """The wish."""


class PodAffinity(ApiModel):
    """Rules on other pods."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] | None = Field(
        default=None, max_length=8
    )
    """Must hold."""
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] | None = Field(
        default=None, max_length=8
    )
    """Would be good."""


class Affinity(ApiModel):
    """As in a pod."""

    node_affinity: NodeAffinity | None = None
    """Rules on nodes."""
    pod_affinity: PodAffinity | None = None
    """Pods to be near to."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods to be far from."""


class KeyRef(ApiModel):
    """One key of a Secret or ConfigMap in the job's namespace."""

    name: ShortText
    """Name of the object."""
    key: ShortText
    """Key in it."""
