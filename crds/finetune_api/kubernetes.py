"""Names, keys, labels and quantities as Kubernetes defines them.

A pod that the API server would refuse, or that would run otherwise than the user means, is refused as a FineTuneJob.
The bounds are those of Kubernetes 1.31, the oldest supported release. Newer releases relax some of them.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationInfo, WithJsonSchema
from pydantic.config import JsonDict

from finetune_api.base import Text, cel, validated
from finetune_api.lenient import LENIENT

_LABEL = "[a-z0-9]+(-+[a-z0-9]+)*"
_DOMAIN = r"[a-z0-9]+((-+|\.)[a-z0-9]+)*"
_KEY = r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = rf"^({_DOMAIN}/)?{_KEY}$"
_RESOURCE = rf"^{_DOMAIN}/{_KEY}$"
_DOMAIN_MAX = 253
_RESOURCE_DOMAIN_MAX = _DOMAIN_MAX - len("requests.")
"""A quota names the resource with this prefix."""
_OTHERS = ("finetune-operator.io", "kubernetes.io", "k8s.io", "x-k8s.io", "karpenter.sh")
_OTHERS_DOMAIN = "|".join(_OTHERS).replace(".", r"\.")
_OTHERS_KEY = rf"^((.*\.)?({_OTHERS_DOMAIN})/|(job-name|controller-uid)$)"

LABEL_KEY = (
    "must be a label key of at most 63 characters, such as disk, or with a domain before it, such as example.com/disk"
)
OTHERS_KEY = (
    f"keys of {', '.join(_OTHERS)} and their subdomains, job-name and controller-uid belong to the operator and to"
    " Kubernetes: choose another key"
)
RESOURCE_NAME = (
    "must be an extended resource, such as nvidia.com/gpu: a domain other than kubernetes.io and requests.*, '/' and at"
    " most 63 characters"
)
CPU = "must be a number of cores of at least 1m, with at most three decimals, such as 4, 0.5 or 500m"
SIZE = "must be at least 1Mi, with a unit: write 16Gi, not 16"

T = TypeVar("T")


def unless_lenient(check: Callable[[T], T]) -> AfterValidator:
    """A check that `ApiModel.read` leaves out, as it leaves out the rules of models."""

    def validate(value: T, info: ValidationInfo) -> T:
        return value if info.context is LENIENT else check(value)

    return AfterValidator(validate)


def _is_label_key(key: str) -> bool:
    return re.fullmatch(_LABEL_KEY, key) is not None and key.find("/") <= _DOMAIN_MAX


def _label_key_cel(key: str) -> str:
    return f"{key}.indexOf('/') <= {_DOMAIN_MAX} && {key}.matches(r'{_LABEL_KEY}')"


def _is_resource(name: str) -> bool:
    own = name.startswith("requests.") or "kubernetes.io/" in name
    return not own and re.fullmatch(_RESOURCE, name) is not None and name.find("/") <= _RESOURCE_DOMAIN_MAX


def _resource_cel(name: str) -> str:
    return (
        f"{name}.indexOf('/') <= {_RESOURCE_DOMAIN_MAX} && !{name}.startsWith('requests.')"
        f" && !{name}.contains('kubernetes.io/') && {name}.matches(r'{_RESOURCE}')"
    )


def _text(valid: Callable[[str], bool], message: str) -> AfterValidator:
    def check(value: str) -> str:
        if not valid(value):
            raise ValueError(message)
        return value

    return unless_lenient(check)


def _keys(valid: Callable[[str], bool], message: str) -> AfterValidator:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        if wrong := [key for key in value if not valid(key)]:
            raise ValueError(f"{', '.join(sorted(wrong))}: {message}")
        return value

    return unless_lenient(check)


def _schema(rule: str, message: str, **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", **more, **validated([cel(rule, message)])})


DnsLabel = Annotated[str, StringConstraints(pattern=f"^{_LABEL}$", max_length=63)]
DnsName = Annotated[str, StringConstraints(pattern=f"^{_DOMAIN}$", max_length=253)]
QueueName = Annotated[str, StringConstraints(pattern=f"^{_DOMAIN}$", max_length=63)]
"""Name of an object of Kueue that Jobs refer to by a label."""
ConfigKey = Annotated[str, StringConstraints(pattern=r"^\.?[-_A-Za-z0-9][-._A-Za-z0-9]*$", max_length=253)]
"""Key of a Secret or ConfigMap: a file name that does not start with '..'."""

_NAMES = r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*"
Image = Annotated[
    str,
    StringConstraints(
        pattern=rf"^([A-Za-z0-9][-.A-Za-z0-9]*(:[0-9]+)?/)?{_NAMES}(/{_NAMES})*(:[_A-Za-z0-9][-._A-Za-z0-9]{{0,127}})?"
        "(@sha256:[0-9a-f]{64})?$",
        max_length=512,
    ),
]
"""An image: registry, repository, tag and digest. The kubelet refuses anything else, for ever."""

LabelKey = Annotated[
    str,
    StringConstraints(max_length=317),
    _text(_is_label_key, LABEL_KEY),
    _schema(_label_key_cel("self"), LABEL_KEY, maxLength=317),
]
TaintKey = Annotated[
    str,
    StringConstraints(max_length=317),
    _text(lambda key: not key or _is_label_key(key), LABEL_KEY),
    _schema(f"self == '' || {_label_key_cel('self')}", LABEL_KEY, maxLength=317),
]
"""A label key, or empty: every key."""
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$", max_length=63)]

_LABEL_KEYS = cel(f"self.all(k, {_label_key_cel('k')})", LABEL_KEY)
_NO_OTHERS_KEYS = cel(f"!self.exists(k, k.matches(r'{_OTHERS_KEY}'))", OTHERS_KEY)


def _is_free(key: str) -> bool:
    return re.match(_OTHERS_KEY, key) is None


Labels = Annotated[
    dict[str, LabelValue],
    Field(max_length=32, json_schema_extra=validated([_LABEL_KEYS])),
    _keys(_is_label_key, LABEL_KEY),
]
PodLabels = Annotated[
    dict[str, LabelValue],
    Field(max_length=32, json_schema_extra=validated([_LABEL_KEYS, _NO_OTHERS_KEYS])),
    _keys(_is_label_key, LABEL_KEY),
    _keys(_is_free, OTHERS_KEY),
]
PodAnnotations = Annotated[
    dict[str, Text],
    Field(max_length=32, json_schema_extra=validated([_LABEL_KEYS, _NO_OTHERS_KEYS])),
    _keys(_is_label_key, LABEL_KEY),
    _keys(_is_free, OTHERS_KEY),
]

ResourceName = Annotated[
    str,
    StringConstraints(max_length=317),
    _text(_is_resource, RESOURCE_NAME),
    _schema(_resource_cel("self"), RESOURCE_NAME, maxLength=317),
]
Devices = Annotated[
    dict[str, Annotated[int, Field(ge=1, le=64)]],
    Field(max_length=8, json_schema_extra=validated([cel(f"self.all(k, {_resource_cel('k')})", RESOURCE_NAME)])),
    _keys(_is_resource, RESOURCE_NAME),
]


_NUMBER = r"[0-9]+(\.[0-9]+)?"
_QUANTITY = rf"^{_NUMBER}(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_CPU = r"^([0-9]+(\.[0-9]{1,3})?|[0-9]+m)$"
_SIZE = rf"^{_NUMBER}(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_LEAST = 2**20


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _is_cpu(text: str) -> bool:
    return re.fullmatch(_CPU, text) is not None and quantity(text) > 0


def _size(text: str) -> str:
    if re.fullmatch(_SIZE, text) is not None and quantity(text) >= _LEAST:
        return text
    bare = re.fullmatch("[0-9.]*[1-9][0-9.]*", text) is not None
    raise ValueError(f"{text} bytes; write {text}{'Gi' if len(text) < 4 else 'Mi'}" if bare else SIZE)


def _quantity(rule: JsonDict) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": _QUANTITY,
            "maxLength": 32,
            **validated([rule]),
        }
    )


Cpu = Annotated[
    str,
    BeforeValidator(_as_text),
    StringConstraints(pattern=_QUANTITY, max_length=32),
    _text(_is_cpu, CPU),
    _quantity(cel(f"type(self) == int ? self > 0 : self.matches(r'{_CPU}') && self.matches('[1-9]')", CPU)),
]
"""A quantity of CPUs, such as ``4`` or ``500m``."""
Size = Annotated[
    str,
    BeforeValidator(_as_text),
    StringConstraints(pattern=_QUANTITY, max_length=32),
    unless_lenient(_size),
    _quantity(
        cel(
            f"type(self) == int ? self >= {_LEAST} : self.matches(r'{_SIZE}')"
            " && quantity(self).compareTo(quantity('1Mi')) >= 0",
            SIZE,
        )
        # Without a unit. If it is empty, the API server prints the message of the rule.
        | {
            "messageExpression": "(type(self) == int ? self > 0 : self.matches('^[0-9.]*[1-9][0-9.]*$')) ?"
            " string(self) + ' bytes; write '"
            " + string(self) + (string(self).size() < 4 ? 'Gi' : 'Mi') : ''"
        }
    ),
]
"""A quantity of bytes, such as ``16Gi``."""

_UNITS = {"": 1.0, "m": 1e-3} | {
    unit: base**power
    for base, units in ((1000.0, ("k", "M", "G", "T", "P")), (1024.0, ("Ki", "Mi", "Gi", "Ti", "Pi")))
    for power, unit in enumerate(units, start=1)
}


def quantity(text: str) -> float:
    """The number that a Kubernetes quantity stands for: bytes for memory, cores for cpu."""
    number = text.rstrip("mkKMGTPi")
    return float(number) * _UNITS[text[len(number) :]]


def at_most(smaller: str, larger: str) -> str:
    """CEL: whether a quantity is at most another. A text that is no quantity is refused at its own place."""
    known = " && ".join(f"(type({text}) == int || isQuantity({text}))" for text in (smaller, larger))
    low, high = (f"(type({text}) == int ? quantity('0').add({text}) : quantity({text}))" for text in (smaller, larger))
    return f"!({known}) || {low}.compareTo({high}) <= 0"
