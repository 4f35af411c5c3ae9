"""Kubeconfig files for people, tests and components, and the check whether a kubeconfig leads to our cluster.

Called by cluster.py. Every test that changes a cluster calls `is_ours`: tests refuse clusters that they did not create.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

from tests.cluster import state as states
from tests.cluster.state import CONTEXT_PREFIX, State, replace


def write(state: State, path: Path, identity: str, server: str) -> Path:
    """Write a kubeconfig as JSON, which is valid YAML. It contains the certificates, so the file can be copied."""

    def data(name: str) -> str:
        return base64.b64encode((state.pki / name).read_bytes()).decode()

    cluster = {"server": server, "certificate-authority-data": data("ca.crt")}
    user = {"client-certificate-data": data(f"{identity}.crt"), "client-key-data": data(f"{identity}.key")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": state.context, "cluster": cluster}],
        "users": [{"name": f"{state.context}-{identity}", "user": user}],
        "contexts": [
            {"name": state.context, "context": {"cluster": state.context, "user": f"{state.context}-{identity}"}}
        ],
        "current-context": state.context,
    }
    text = json.dumps(content, indent=2) + "\n"
    if not path.exists() or path.read_text() != text:
        replace(path, text)
    return path


def is_ours(kubeconfig: Path | str, context: str | None = None) -> bool:
    """Whether this context leads to a cluster that this package started. The certificate authority must match too."""
    candidates = states.all_clusters()
    if not candidates or (context is not None and not context.startswith(CONTEXT_PREFIX)):
        return False
    kubectl = next(
        (str(state.bin / "kubectl") for state in candidates if (state.bin / "kubectl").exists()),
        shutil.which("kubectl"),
    )
    if kubectl is None:
        return False
    command = [kubectl, "config", "view", "--raw", "--minify", "--output=json", f"--kubeconfig={kubeconfig}"]
    result = subprocess.run(command + ([f"--context={context}"] if context else []), capture_output=True, text=True)
    if result.returncode != 0:
        return False
    view = json.loads(result.stdout)
    authority = base64.b64decode(view["clusters"][0]["cluster"].get("certificate-authority-data", ""))
    return view["current-context"].startswith(CONTEXT_PREFIX) and any(
        (state.pki / "ca.crt").exists() and (state.pki / "ca.crt").read_bytes() == authority for state in candidates
    )
