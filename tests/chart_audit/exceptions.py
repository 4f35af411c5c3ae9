"""Findings that stay, each with its reason. An exception without a finding is an error, too."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What a tool says of an object."""

    tool: str
    check: str
    object: str
    """<kind>/<name>, the name without that of the release."""


OPERATOR, PAGE, MODEL, JOB = "Deployment/", "Deployment/-ui", "Pod/-test-model", "Pod/-test-job"

_ALWAYS_PULL = (
    "An image by digest never changes, and a node that has it starts the pod while the registry is down."
    " image.pullPolicy can be Always."
)
_CPU_LIMIT = (
    "A CPU limit throttles a process that must renew its Lease in time, although the node is idle. resources.limits.cpu"
    " can set it."
)
_PAGE_CPU = "A CPU limit throttles a page while somebody waits for it. ui.resources.limits.cpu can set it."
_TEST = "A pod of `helm test` runs to its end and serves nothing."
_TOKEN = "The pod talks to the API server; that is its work."

EXCEPTIONS: dict[Finding, str] = {
    **{Finding("kube-score", "container-image-pull-policy", pod): _ALWAYS_PULL for pod in (OPERATOR, PAGE, MODEL, JOB)},
    **{Finding("kube-score", "container-resources", pod): _CPU_LIMIT for pod in (OPERATOR, MODEL, JOB)},
    **{
        Finding(*check, PAGE): _PAGE_CPU for check in (("kube-score", "container-resources"), ("checkov", "CKV_K8S_11"))
    },
    Finding("kube-score", "deployment-replicas", PAGE): (
        "A single replica: reports that are being fetched are in its memory. Jobs do not depend on the page."
    ),
    **{
        Finding("kube-score", "pod-networkpolicy", pod): f"{_TEST} Nobody connects to it, and it lives for a minute."
        for pod in (MODEL, JOB)
    },
    Finding("kube-score", "deployment-has-host-podantiaffinity", OPERATOR): (
        "topologySpreadConstraints spread the operators over nodes and zones, also during an upgrade."
    ),
    Finding("kube-score", "networkpolicy-targets-pod", "NetworkPolicy/-training"): (
        "The operator creates the training pods; the chart has none."
    ),
    **{Finding("checkov", "CKV_K8S_11", pod): _CPU_LIMIT for pod in (OPERATOR, MODEL, JOB)},
    **{Finding("checkov", "CKV_K8S_38", pod): _TOKEN for pod in (OPERATOR, JOB)},
    **{Finding("checkov", "CKV2_K8S_6", pod): f"{_TEST} Nobody connects to it." for pod in (MODEL, JOB)},
    **{Finding("checkov", check, pod): _TEST for check in ("CKV_K8S_8", "CKV_K8S_9") for pod in (MODEL, JOB)},
}
