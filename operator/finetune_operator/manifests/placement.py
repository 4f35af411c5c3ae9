"""Nodes that the pods of an attempt avoid."""

from typing import Any

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def avoiding(affinity: dict[str, Any] | None, nodes: list[str]) -> dict[str, Any]:
    """The affinity of the job, and none of the nodes. By name: the label kubernetes.io/hostname may be another. Terms
    are alternatives, so each of them gets the condition."""
    others = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    affinity = dict(affinity or {})
    of_nodes = dict(affinity.get("nodeAffinity") or {})
    terms = (of_nodes.get(REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    of_nodes[REQUIRED] = {
        "nodeSelectorTerms": [{**term, "matchFields": [*(term.get("matchFields") or []), *others]} for term in terms]
    }
    return {**affinity, "nodeAffinity": of_nodes}
