"""The types that a comment in values.yaml can name, each with values that are taken and values that are refused.

A new value needs an entry here only if its default does not say its type: an empty list, an empty dictionary, or a
string with a format of its own. The tests of the chart use the examples.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tests.chart_values import kubernetes_types as kubernetes
from tests.chart_values import presets_type
from tests.chart_values.kubernetes_types import Schema, choice, closed, each
from tests.chart_values.reader import Value, ValuesError


class Type(NamedTuple):
    """A JSON schema, and examples of it. The first good example is no default of a value."""

    schema: Schema
    good: list[Any]
    bad: list[Any]


def text(pattern: str, **more: Any) -> Schema:
    """A string with a format."""
    return {"type": "string", "pattern": pattern, **more}


_LABEL = r"([a-z0-9]([-a-z0-9]*[a-z0-9])?)"
_KEY = rf"^({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
_LABEL_VALUE = text(r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", maxLength=63)
_DNS_LABEL = text(rf"^{_LABEL}$", maxLength=63)
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
_CIDR = text(r"^([0-9]{1,3}(\.[0-9]{1,3}){3}/([0-9]|[12][0-9]|3[0-2])|[0-9a-fA-F:]*:[0-9a-fA-F:]*/[0-9]{1,3})$")


def _map(value: Schema) -> Schema:
    return {"type": "object", "patternProperties": {_KEY: value}, "additionalProperties": False}


TYPES: dict[str, Type] = {
    "labels": Type(_map(_LABEL_VALUE), [{"team": "ml"}], [{"team": "a b"}, {"-": "ml"}, {"team": 7}, ["team"]]),
    "annotations": Type(
        _map(kubernetes.STRING), [{"a.example/b": "any text"}], [{"a/b/c": "text"}, {"a": True}, "a=b"]
    ),
    "part of a name": Type(text(rf"^{_LABEL}?$", maxLength=50), ["tuner"], ["Tuner", "a.b", "a" * 51, 7]),
    "name": Type(text(rf"^({_LABEL}(\.{_LABEL})*)?$", maxLength=253), ["high", "a.b"], ["High", "a_b", "-a", 7]),
    "namespace": Type(text(rf"^{_LABEL}?$", maxLength=63), ["team-a"], ["Team", "a.b", "a" * 64, 7]),
    "names of namespaces": Type(
        {**each(_DNS_LABEL), "uniqueItems": True}, [["team-a", "team-b"]], ["team-a", ["a.b"], [""], ["a", "a"], [7]]
    ),
    "names of Secrets": Type(
        each(closed({"name": text(rf"^{_LABEL}(\.{_LABEL})*$", maxLength=253)}, "name")),
        [[{"name": "registry"}]],
        [["registry"], [{"name": ""}], [{}], [{"name": "a", "key": "b"}], {"name": "a"}],
    ),
    "image repository": Type(
        text(r"^[a-z0-9][a-zA-Z0-9._:/-]*$"), ["registry.example:5000/team/image"], ["", "a b", "a@sha256:b", 7]
    ),
    "image tag": Type(text(r"^[A-Za-z0-9_.-]{0,128}$"), ["v1.2"], ["a:b", "a" * 129, 7]),
    "image digest": Type(text(r"^(sha256:[0-9a-f]{64})?$"), ["sha256:" + "a" * 64], ["latest", "sha256:abc", 7]),
    "URL": Type(
        text(r"^(https?://[^\s]+)?$"), ["https://mirror.example"], ["mirror.example", "ftp://a", "https://a b", 7]
    ),
    "duration": Type(text(r"^[1-9][0-9]*(s|m)$"), ["15s"], ["15", "1.5m", "0s", "", 15]),
    "size": Type(text(r"^[1-9][0-9]*(Mi|Gi|Ti)$"), ["7Gi"], ["7", "7GB", "0Gi", "", 7]),
    "ports": Type({**each(_PORT), "minItems": 1}, [[8443]], [[], [0], [65536], ["https"], 443]),
    "address ranges": Type(
        each(_CIDR), [["10.0.0.1/32", "fd00::/8"]], [["10.0.0.1"], ["10.0.0.1/33"], ["host.example/32"], "10.0.0.1/32"]
    ),
    "resources of a container": Type(
        kubernetes.RESOURCES, [{"requests": {"cpu": "1"}}], [{"limit": {}}, {"requests": {"cpu": "one"}}, [1]]
    ),
    "tolerations of a pod": Type(
        kubernetes.TOLERATIONS,
        [[{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]],
        [[{"operator": "In"}], [{"key": "a", "effects": "NoSchedule"}], [{"tolerationSeconds": "1"}], {"key": "a"}],
    ),
    "affinity of a pod": Type(
        kubernetes.AFFINITY,
        [
            {"podAntiAffinity": {kubernetes.REQUIRED: [{"topologyKey": "zone"}]}},
            {"nodeAffinity": {kubernetes.REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": []}]}}},
        ],
        [
            {"nodeAffinty": {}},
            {"nodeAffinity": {kubernetes.REQUIRED: {"nodeSelectorTerm": []}}},
            {"podAffinity": {kubernetes.REQUIRED: [{"labelSelector": {}}]}},
            {"podAffinity": {kubernetes.PREFERRED: [{"weight": 0, "podAffinityTerm": {"topologyKey": "zone"}}]}},
        ],
    ),
    "topology spread constraints of a pod": Type(
        kubernetes.SPREAD,
        [[{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]],
        [
            [{"maxSkew": 1, "topologyKey": "rack"}],
            [{"maxSkew": 0, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
            [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "Never"}],
            [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}],
        ],
    ),
    "peers of a NetworkPolicy": Type(
        kubernetes.PEERS,
        [[{"namespaceSelector": {"matchLabels": {"team": "metrics"}}}]],
        [[{"namespace": "a"}], [{"ipBlock": {"except": []}}], [{"podSelector": {"team": "a"}}], {"podSelector": {}}],
    ),
    "egress rules of a NetworkPolicy": Type(
        kubernetes.EGRESS,
        [[{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 443, "protocol": "TCP"}]}]],
        [[{"from": []}], [{"ports": [443]}], [{"ports": [{"port": 443, "protocol": "HTTP"}]}], {"ports": []}],
    ),
}

PRESETS = presets_type.schema()
TYPES |= {
    "URL of a proxy": Type(
        text(r"^(https?://[^\s@]+)?$"), ["http://proxy.example:3128"], ["proxy.example", "http://me:secret@proxy", 7]
    ),
    "hosts": Type(each(text(r"^[^\s,]+$")), [[".corp.example", "10.0.0.0/8"]], ["a", ["a,b"], ["a b"], [7]]),
    "header": Type(text(r"^[A-Za-z0-9-]*$", maxLength=64), ["X-Forwarded-Access-Token"], ["a b", "a:b", "ü", 7]),
    "key of a ConfigMap": Type(text(r"^[-._a-zA-Z0-9]+$", maxLength=253), ["bundle.pem"], ["", "a/b", 7]),
    # The policy has them in its CEL: quotes and backslashes would end its strings.
    "beginnings of texts": Type(
        {**each(text(r"^[^\s'\"\\]+$", maxLength=512)), "maxItems": 64},
        [["pvc://", "registry.example/"]],
        ["pvc://", ["a'b"], ['a"b'], ["a\\b"], ["a b"], [""], [7]],
    ),
    "names": Type(
        {**each(text(r"^[-._A-Za-z0-9]+$", maxLength=253)), "maxItems": 64},
        [["first", "second"]],
        ["first", ["a'b"], [""], [7]],
    ),
    "presets": Type(
        PRESETS,
        [{"bounds": {"gpus": 8}, "defaults": {"nodeSelector": {"pool": "gpu"}}}],
        [{"bound": {}}, {"bounds": {"gpu": 8}}, {"bounds": {"gpus": -1}}, {"defaults": {"image": 7}}, []],
    ),
    "presets of namespaces": Type(
        {"type": "object", "patternProperties": {rf"^{_LABEL}$": PRESETS}, "additionalProperties": False},
        [{"team-a": {"bounds": {"gpus": 8}}}],
        [{"Team": {}}, {"team-a": {"bound": {}}}, []],
    ),
}

_RANGE = re.compile(r"integer from (-?\d+) to (\d+)")
_CHOICE = "one of "


def type_of(value: Value) -> Type:
    """The type that the comment names, or that the default shows. Raises ValuesError if neither says it."""
    if found := _RANGE.fullmatch(value.type):
        low, high = int(found[1]), int(found[2])
        other = low + 1 if value.default == low else low
        schema = {"type": "integer", "minimum": low, "maximum": high}
        return Type(schema, [other], [low - 1, high + 1, 1.5, "many", True])
    if value.type.startswith(_CHOICE):
        words = value.type.removeprefix(_CHOICE).split(", ")
        return Type(choice(*words), [word for word in words if word != value.default], ["another", "", 7])
    if value.type in TYPES:
        return TYPES[value.type]
    if value.type:
        raise ValuesError(
            f"{value.name} names the type {value.type!r}, which tests/chart_values/types.py lacks: add it"
        )
    return _shown_by(value)


def _shown_by(value: Value) -> Type:
    """The type of the default. An empty dictionary shows none."""
    default = value.default
    if isinstance(default, bool):
        return Type({"type": "boolean"}, [not default], ["yes-please", 1])
    if isinstance(default, int):
        return Type({"type": "integer"}, [default + 1], [1.5, "many", True])
    if isinstance(default, str):
        return Type(kubernetes.STRING, [f"{default}x"], [7, True, ["text"]])
    if isinstance(default, list) and all(isinstance(item, str) for item in default):
        return Type(each({"type": "string", "minLength": 1}), [[*default, "text"]], ["text", [7], [""]])
    raise ValuesError(
        f"the default of {value.name} does not show its type: write a line '# Type: ...' above it, with 'integer from A"
        f" to B', 'one of A, B', or one of {', '.join(TYPES)}"
    )
