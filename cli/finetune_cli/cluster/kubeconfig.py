"""The kubeconfig: which API server, which namespace, which credentials.

The files are read as kubectl reads them: those of $KUBECONFIG are merged, and the first file that defines a name wins.
Without a file, a pod's own service account is used.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_cli.problem import Exit, Problem

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NO_CLUSTER = (
    "No cluster is configured: neither $KUBECONFIG nor ~/.kube/config exists, and this is no pod. Get a kubeconfig from"
    " your cluster's administrator, and set KUBECONFIG to its path."
)


@dataclass(frozen=True)
class Settings:
    """One context of a kubeconfig. Paths are absolute."""

    server: str
    namespace: str
    context: str
    cluster: Mapping[str, Any] = field(default_factory=dict)
    user: Mapping[str, Any] = field(default_factory=dict)


def load(
    context: str | None = None,
    namespace: str | None = None,
    kubeconfig: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings of the named context, or of the current context. Raises Problem if it does not exist."""
    named = kubeconfig or environment.get("KUBECONFIG")
    home = Path(environment.get("HOME", "~")).expanduser()
    paths = [Path(part) for part in named.split(os.pathsep) if part] if named else [home / ".kube" / "config"]
    documents = [_read(path) for path in paths if path.exists()]
    if not documents:
        if named:
            raise Problem(
                f"The kubeconfig {named} does not exist. Set KUBECONFIG to the path of yours.", Exit.UNREACHABLE
            )
        return _of_pod(namespace, environment)
    current = context or next((text for each in documents if (text := each.get("current-context"))), None)
    if not current:
        raise Problem("The kubeconfig has no current context. Choose one: --context NAME", Exit.UNREACHABLE)
    contexts = _named(documents, "contexts", "context")
    if current not in contexts:
        raise Problem(f"The kubeconfig has no context {current}. It has: {', '.join(sorted(contexts)) or 'none'}")
    chosen = contexts[current]
    cluster = _named(documents, "clusters", "cluster").get(chosen.get("cluster", ""))
    if not cluster or not cluster.get("server"):
        raise Problem(f"The context {current} names the cluster {chosen.get('cluster')}, which has no server.")
    user = _named(documents, "users", "user").get(chosen.get("user", ""), {})
    return Settings(cluster["server"], namespace or chosen.get("namespace") or "default", current, cluster, user)


def _of_pod(namespace: str | None, environment: Mapping[str, str]) -> Settings:
    """A pod's own service account."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (SERVICE_ACCOUNT / "token").exists():
        raise Problem(NO_CLUSTER, Exit.UNREACHABLE)
    own = SERVICE_ACCOUNT / "namespace"
    return Settings(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        namespace=namespace or (own.read_text().strip() if own.exists() else "default"),
        context="in-cluster",
        cluster={"certificate-authority": str(SERVICE_ACCOUNT / "ca.crt")},
        user={"tokenFile": str(SERVICE_ACCOUNT / "token")},
    )


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except (OSError, yaml.YAMLError) as error:
        raise Problem(f"The kubeconfig {path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise Problem(f"The kubeconfig {path} is no mapping.")
    for kind, inner in (("clusters", "cluster"), ("users", "user")):
        for entry in document.get(kind) or ():
            _make_absolute(entry.get(inner) or {}, path.resolve().parent)
    return document


def _make_absolute(section: dict[str, Any], folder: Path) -> None:
    for key in ("certificate-authority", "client-certificate", "client-key", "tokenFile"):
        if section.get(key):
            section[key] = str(folder / section[key])
    command = (section.get("exec") or {}).get("command", "")
    if command.startswith("."):
        section["exec"]["command"] = str(folder / command)


def _named(documents: list[dict[str, Any]], kind: str, inner: str) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for document in documents:
        for entry in document.get(kind) or ():
            merged.setdefault(entry["name"], entry.get(inner) or {})
    return merged
