"""Kubeconfig files: one for people and tests, one for each component; and the question whether one is ours.

Called by cluster.py and, for `is_ours`, by every test that is about to change a cluster: tests refuse one that they did
not make.
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
    """JSON, which every reader of YAML accepts; the certificates are inside, so the file can be copied."""

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
    """Does this context lead to a cluster that this package started? Judged by its authority, not by its name alone."""
    candidates = states.everything()
    if not candidates or (context is not None and not context.startswith(CONTEXT_PREFIX)):
        return False
    kubectl = next(
        (str(state.bin / "kubectl") for state in candidates if (state.bin / "kubectl").exists()),
        shutil.which("kubectl"),
    )
    if kubectl is None:
        return False
    command = [kubectl, "config", "view", "--raw", "--minify", "--output=json", f"--kubeconfig={kubeconfig}"]
    seen = subprocess.run(command + ([f"--context={context}"] if context else []), capture_output=True, text=True)
    if seen.returncode != 0:
        return False
    view = json.loads(seen.stdout)
    authority = base64.b64decode(view["clusters"][0]["cluster"].get("certificate-authority-data", ""))
    return view["current-context"].startswith(CONTEXT_PREFIX) and any(
        (state.pki / "ca.crt").exists() and (state.pki / "ca.crt").read_bytes() == authority for state in candidates
    )
