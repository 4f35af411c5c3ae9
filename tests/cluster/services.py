"""DNS and storage: CoreDNS and local-path-provisioner run as processes on node 1.

Called by cluster.py. Their API objects are in `manifests/`, and each `up` applies them.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.cluster import api, images, network, process
from tests.cluster.control_plane import Endpoint
from tests.cluster.kubeconfig import write
from tests.cluster.state import ClusterError, State, replace

MANIFESTS = Path(__file__).with_name("manifests")
DNS_HEALTH_PORT = 8181


def apply_manifests(state: State) -> None:
    apply = ["apply", "--server-side", "--force-conflicts", "--filename", str(MANIFESTS)]
    done = subprocess.run(
        [str(state.bin / "kubectl"), f"--kubeconfig={state.kubeconfig}", *apply], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise ClusterError(f"applying {MANIFESTS} failed:\n{done.stderr.strip()}")


def start_dns(state: State, at: Endpoint) -> None:
    kubeconfig = write(state, state.config / "dns", "dns", at.server)
    corefile, own = state.config / "Corefile", network.address(state, 1)
    # Names outside the cluster do not exist, and the server says so at once. Answers are cached only briefly, because
    # tests create and delete names all the time.
    replace(
        corefile,
        f"""cluster.local in-addr.arpa ip6.arpa {{
    bind {own}
    errors
    ready {own}:{DNS_HEALTH_PORT}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig} {state.context}
        pods insecure
        ttl 5
    }}
    cache 5 {{
        denial 1000 1
    }}
}}
. {{
    bind {own}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
""",
    )
    process.ensure(
        state,
        "coredns",
        [state.program("coredns"), "-conf", str(corefile)],
        holder=at.holder,
        files=[corefile, kubeconfig],
    )


def wait_for_dns(state: State) -> None:
    address = network.address(state, 1)
    process.wait_until(
        state, "CoreDNS is ready", lambda: api.answers(address, DNS_HEALTH_PORT, "/ready"), needs=["coredns"]
    )


def start_storage(state: State, at: Endpoint) -> None:
    kubeconfig = write(state, state.config / "storage", "storage", at.server)
    volumes, config = state.directory / "volumes", state.config / "storage.json"
    for name in ("shared", "node-1", "node-2"):
        (volumes / name).mkdir(parents=True, exist_ok=True)
    classes = {
        "standard": {"sharedFileSystemPath": str(volumes / "shared")},
        "standard-rwo": {
            "nodePathMap": [{"node": name, "paths": [str(volumes / name)]} for name in ("node-1", "node-2")]
        },
    }
    replace(config, json.dumps({"storageClassConfigs": classes}, indent=2))
    helper = state.config / "helperPod.yaml"
    container = {"name": "helper", "image": images.BUSYBOX, "imagePullPolicy": "IfNotPresent"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper"},
        "spec": {"enableServiceLinks": False, "containers": [container]},
    }
    replace(helper, json.dumps(pod, indent=2))
    argv = [
        state.program("local-path-provisioner"),
        "start",
        f"--config={config}",
        f"--helper-pod-file={helper}",
        f"--helper-image={images.BUSYBOX}",
        f"--kubeconfig={kubeconfig}",
        "--namespace=local-path-storage",
        "--service-account-name=local-path-helper",
        "--configmap-name=local-path-config",
    ]
    environment = {"CONFIG_MOUNT_PATH": str(state.config)}
    process.ensure(
        state, "local-path-provisioner", argv, holder=at.holder, files=[config, helper, kubeconfig], env=environment
    )
