"""How the trainer's pods reach services outside the cluster: through a proxy, and with a private certificate authority.

These are settings of the installation at the moment at which an attempt's pods are created. They decide no result, so
they are not in the resolved job.
"""

from typing import Any

from finetune_api.contract import CONFIG_MAPS, AttemptFacts

from finetune_operator.settings import Settings

Object = dict[str, Any]

CA_VOLUME = "finetune-ca"
CA_FOLDER = f"{CONFIG_MAPS}/.ca"
"""No ConfigMap of a source has such a name, and users cannot mount anything here."""
CA_FILE = f"{CA_FOLDER}/ca.crt"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Where OpenSSL, Go and httpx, requests, curl and AWS's libraries look for the certificates that they trust."""
DIRECT = ("localhost", "127.0.0.1", "::1", "$(KUBERNETES_SERVICE_HOST)", ".svc", ".cluster.local")
"""Never through a proxy. The kubelet replaces the variable by the address of the API server."""


def variables(facts: AttemptFacts, settings: Settings) -> list[Object]:
    """The variables by which libraries find the proxy and the certificates."""
    named = {"HTTP_PROXY": settings.http_proxy, "HTTPS_PROXY": settings.https_proxy}
    if any(named.values()):
        # The ranks call each other <job>-<index>.<job>.
        named["NO_PROXY"] = ",".join([*DIRECT, f".{facts.job_name}", *settings.no_proxy])
    if settings.ca_config_map:
        named |= dict.fromkeys(CA_VARIABLES, CA_FILE)
    return [{"name": name, "value": value} for name, value in named.items() if value]


def volumes(settings: Settings) -> list[Object]:
    """The bundle of certificates. A key that is missing keeps the pod from starting, with a message of the kubelet."""
    if not settings.ca_config_map:
        return []
    items = [{"key": settings.ca_key, "path": "ca.crt"}]
    return [{"name": CA_VOLUME, "configMap": {"name": settings.ca_config_map, "items": items}}]


def mounts(settings: Settings) -> list[Object]:
    """The mount points of `volumes`."""
    return [{"name": CA_VOLUME, "mountPath": CA_FOLDER, "readOnly": True}] if settings.ca_config_map else []
