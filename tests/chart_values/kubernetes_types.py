"""Parts of a pod and of a NetworkPolicy, as Kubernetes writes them.

Every object is closed: a wrong key is refused by name before anything is sent to the cluster.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
STRINGS: Schema = {"type": "array", "items": STRING}


def closed(properties: dict[str, Schema], *required: str) -> Schema:
    """An object with these keys and no others."""
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def each(item: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": item}


def choice(*words: str) -> Schema:
    """One of the words."""
    return {"type": "string", "enum": list(words)}


QUANTITY: Schema = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"}
_QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = closed(
    {
        "requests": _QUANTITIES,
        "limits": _QUANTITIES,
        "claims": each(closed({"name": STRING, "request": STRING}, "name")),
    }
)
TOLERATIONS = each(
    closed(
        {
            "key": STRING,
            "operator": choice("Exists", "Equal", "Lt", "Gt"),
            "value": STRING,
            "effect": choice("NoSchedule", "PreferNoSchedule", "NoExecute"),
            "tolerationSeconds": INTEGER,
        }
    )
)

_LABEL_TERM = closed(
    {"key": STRING, "operator": choice("In", "NotIn", "Exists", "DoesNotExist"), "values": STRINGS}, "key", "operator"
)
_LABEL_SELECTOR = closed(
    {"matchLabels": {"type": "object", "additionalProperties": STRING}, "matchExpressions": each(_LABEL_TERM)}
)
_NODE_TERM = closed(
    {"key": STRING, "operator": choice("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"), "values": STRINGS},
    "key",
    "operator",
)
_NODE_SELECTOR = closed({"matchExpressions": each(_NODE_TERM), "matchFields": each(_NODE_TERM)})
_POD_TERM = closed(
    {
        "labelSelector": _LABEL_SELECTOR,
        "matchLabelKeys": STRINGS,
        "mismatchLabelKeys": STRINGS,
        "namespaceSelector": _LABEL_SELECTOR,
        "namespaces": STRINGS,
        "topologyKey": STRING,
    },
    "topologyKey",
)
_WEIGHT: Schema = {"type": "integer", "minimum": 1, "maximum": 100}
REQUIRED, PREFERRED = (f"{word}DuringSchedulingIgnoredDuringExecution" for word in ("required", "preferred"))
_POD_AFFINITY = closed(
    {
        REQUIRED: each(_POD_TERM),
        PREFERRED: each(closed({"weight": _WEIGHT, "podAffinityTerm": _POD_TERM}, "weight", "podAffinityTerm")),
    }
)
AFFINITY = closed(
    {
        "nodeAffinity": closed(
            {
                REQUIRED: closed({"nodeSelectorTerms": each(_NODE_SELECTOR)}, "nodeSelectorTerms"),
                PREFERRED: each(closed({"weight": _WEIGHT, "preference": _NODE_SELECTOR}, "weight", "preference")),
            }
        ),
        "podAffinity": _POD_AFFINITY,
        "podAntiAffinity": _POD_AFFINITY,
    }
)
SPREAD = each(
    closed(
        {
            "maxSkew": {"type": "integer", "minimum": 1},
            "topologyKey": {"type": "string", "minLength": 1},
            "whenUnsatisfiable": choice("ScheduleAnyway", "DoNotSchedule"),
            "minDomains": {"type": "integer", "minimum": 1},
            "nodeAffinityPolicy": choice("Honor", "Ignore"),
            "nodeTaintsPolicy": choice("Honor", "Ignore"),
        },
        "maxSkew",
        "topologyKey",
        "whenUnsatisfiable",
    )
)

_BLOCK = closed({"cidr": STRING, "except": STRINGS}, "cidr")
PEERS = each(closed({"ipBlock": _BLOCK, "namespaceSelector": _LABEL_SELECTOR, "podSelector": _LABEL_SELECTOR}))
_PORT = closed({"port": {"type": ["string", "integer"]}, "endPort": INTEGER, "protocol": choice("TCP", "UDP", "SCTP")})
EGRESS = each(closed({"to": PEERS, "ports": each(_PORT)}))
