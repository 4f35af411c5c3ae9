"""Where pods may run: the parts of the pod API of Kubernetes that a FineTuneJob offers, typed and bounded.

Field names and meanings are those of core/v1. A free-form pod patch is missing on purpose: a user who may create a
FineTuneJob gains no rights over pods beyond these fields.
"""

import re
from typing import Literal

from pydantic import Field

from finetune_api.base import ApiModel, Rule
from finetune_api.kubernetes import DnsLabel, DnsName, LabelKey, Labels, LabelValue, TaintKey

TOLERATED_KEY = "a toleration without key needs operator Exists: set key, or operator Exists"
TOLERATED_VALUE = "operator Exists takes no value: remove value, or use operator Equal"
TOLERATED_SECONDS = "tolerationSeconds needs effect NoExecute: set effect, or remove tolerationSeconds"
VALUES = "operators In and NotIn need values, Exists and DoesNotExist take no values"
NODE_VALUES = f"{VALUES}, Gt and Lt take a single value, which is a whole number"
FIELD_VALUES = "matchFields need values with the name of a single node"
EMPTY_TERM = "an empty term matches no node: set matchExpressions or matchFields"
NO_SELECTOR = "a term without labelSelector matches no pod: set labelSelector"

ONE_LEVEL = "a topology needs exactly one of required and preferred: remove one of them"
ONE_CLAIM = "a resource claim needs exactly one of resourceClaimName and resourceClaimTemplateName: remove one of them"

_INTEGER = "[0-9]{1,18}"


class Toleration(ApiModel):
    """Lets pods run on nodes with a matching taint."""

    RULES = (
        Rule(
            TOLERATED_KEY,
            "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
            lambda toleration: toleration.key or toleration.operator == "Exists",
        ),
        Rule(
            TOLERATED_VALUE,
            "!has(self.value) || self.value == '' || !has(self.operator) || self.operator != 'Exists'",
            lambda toleration: not toleration.value or toleration.operator != "Exists",
        ),
        Rule(
            TOLERATED_SECONDS,
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
        ),
    )

    key: TaintKey | None = None
    """Taint key. Unset, with operator Exists: every key."""
    operator: Literal["Exists", "Equal"] | None = None
    """Equal: key and value must match. Exists: the key must match. Unset: Equal."""
    value: LabelValue | None = None
    """Taint value for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect. Unset: every effect."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=86_400)
    """Seconds that a pod stays on a tainted node (effect NoExecute). Unset: without limit."""


def _values_fit(requirement: "NodeRequirement | PodRequirement") -> bool:
    values = requirement.values or []
    if requirement.operator in ("Gt", "Lt"):
        return len(values) == 1 and re.fullmatch(_INTEGER, values[0]) is not None
    return bool(values) == (requirement.operator in ("In", "NotIn"))


_HAS_VALUES = "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)"


class NodeRequirement(ApiModel):
    """A condition on a label of a node."""

    RULES = (
        Rule(
            NODE_VALUES,
            "self.operator in ['Gt', 'Lt'] ? has(self.values) && size(self.values) == 1"
            f" && self.values[0].matches('^{_INTEGER}$') : {_HAS_VALUES}",
            _values_fit,
        ),
    )

    key: LabelKey
    """Label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """Relation between the label's value and values."""
    values: list[LabelValue] | None = Field(default=None, max_length=32)
    """Values for In and NotIn; a single whole number for Gt and Lt."""


class PodRequirement(ApiModel):
    """A condition on a label of a pod."""

    RULES = (Rule(VALUES, _HAS_VALUES, _values_fit),)

    key: LabelKey
    """Label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """Relation between the label's value and values."""
    values: list[LabelValue] | None = Field(default=None, max_length=32)
    """Values for In and NotIn."""


class FieldRequirement(ApiModel):
    """A condition on the name of a node."""

    RULES = (
        Rule(
            FIELD_VALUES,
            "has(self.values) && size(self.values) == 1",
            lambda requirement: len(requirement.values or []) == 1,
        ),
    )

    key: Literal["metadata.name"]
    """Always metadata.name."""
    operator: Literal["In", "NotIn"]
    """In: the node with this name. NotIn: every other node."""
    values: list[DnsName] | None = Field(default=None, max_length=32)
    """Name of a single node."""


class NodeSelectorTerm(ApiModel):
    """Conditions that must all hold for a node."""

    RULES = (
        Rule(
            EMPTY_TERM,
            "(has(self.matchExpressions) && size(self.matchExpressions) > 0)"
            " || (has(self.matchFields) && size(self.matchFields) > 0)",
            lambda term: term.match_expressions or term.match_fields,
        ),
    )

    match_expressions: list[NodeRequirement] | None = Field(default=None, max_length=16)
    """Conditions on the node's labels."""
    match_fields: list[FieldRequirement] | None = Field(default=None, max_length=4)
    """Conditions on the node's fields (metadata.name)."""


class NodeSelector(ApiModel):
    """Alternative terms for a node."""

    node_selector_terms: list[NodeSelectorTerm] = Field(min_length=1, max_length=8)
    """Alternative terms: a node must satisfy any of them."""


class PreferredNodes(ApiModel):
    """A weighted preference for nodes."""

    weight: int = Field(ge=1, le=100)
    """Weight of the preference."""
    preference: NodeSelectorTerm
    """Nodes that are preferred."""


class NodeAffinity(ApiModel):
    """Rules on nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes that pods must run on."""
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodes] | None = Field(
        default=None, max_length=8
    )
    """Nodes that the scheduler prefers."""


class LabelSelector(ApiModel):
    """Selects pods by label."""

    match_labels: Labels | None = None
    """Labels that a pod must have."""
    match_expressions: list[PodRequirement] | None = Field(default=None, max_length=16)
    """Conditions on a pod's labels."""


class PodAffinityTerm(ApiModel):
    """Other pods, and the topology domain that the rule is about."""

    RULES = (Rule(NO_SELECTOR, "has(self.labelSelector)", lambda term: term.label_selector is not None),)

    label_selector: LabelSelector | None = None
    """Pods that the rule is about; {} means all pods."""
    namespaces: list[DnsLabel] | None = Field(default=None, max_length=8)
    """Namespaces of these pods. Unset: the job's namespace."""
    topology_key: LabelKey
    """Node label whose equal values form a topology domain, such as kubernetes.io/hostname."""


class WeightedPodAffinityTerm(ApiModel):
    """A weighted preference about other pods."""

    weight: int = Field(ge=1, le=100)
    """Weight of the preference."""
    pod_affinity_term: PodAffinityTerm
    """Pods that the preference is about."""


class PodAffinity(ApiModel):
    """Rules on other pods."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] | None = Field(
        default=None, max_length=8
    )
    """Rules that must hold."""
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] | None = Field(
        default=None, max_length=8
    )
    """Rules that the scheduler prefers to satisfy."""


class Affinity(ApiModel):
    """Affinity, as in a pod."""

    node_affinity: NodeAffinity | None = None
    """Rules on nodes."""
    pod_affinity: PodAffinity | None = None
    """Pods to be near to."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods to be far from."""


class Topology(ApiModel):
    """Topology-aware scheduling of Kueue. Set exactly one field."""

    RULES = (
        Rule(
            ONE_LEVEL,
            "has(self.required) != has(self.preferred)",
            lambda topology: (topology.required is None) != (topology.preferred is None),
            structural=True,
        ),
    )

    required: LabelKey | None = None
    """Node label of a level of the topology. All pods run in a single domain of it, or wait until they can."""
    preferred: LabelKey | None = None
    """Node label of a level of the topology. All pods run in a single domain of it if they fit, else in few."""


class ResourceClaim(ApiModel):
    """Claim on devices, as in a pod."""

    RULES = (
        Rule(
            ONE_CLAIM,
            "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
            lambda claim: (claim.resource_claim_name is None) != (claim.resource_claim_template_name is None),
            structural=True,
        ),
    )

    name: DnsLabel
    """Name of the claim within the pod."""
    resource_claim_name: DnsName | None = None
    """ResourceClaim in the job's namespace, which all pods share."""
    resource_claim_template_name: DnsName | None = None
    """ResourceClaimTemplate in the job's namespace, of which each pod gets a claim of its own."""
    request: DnsLabel | None = None
    """Request of the claim whose devices the trainer gets. Unset: those of all requests."""
    gpus: bool | None = None
    """true: the claim brings the GPUs, gpusPerNode of them, so that the pods do not ask for gpuResource."""
