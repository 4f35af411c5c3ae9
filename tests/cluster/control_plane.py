"""The command lines of etcd, API server, controller manager and scheduler.

Called by cluster.py. In the full cluster they run inside the first node. In the control-plane-only mode they are plain
processes on loopback, each with its own port, and any user can run them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.cluster import api, process
from tests.cluster.kubeconfig import write
from tests.cluster.state import State

SERVICE_SUBNET = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
POD_SUBNET = "10.244.0.0/16"
AGGREGATOR = "finetune-local:aggregator"
"""The name by which the API server shows itself to other servers of the API."""


@dataclass(frozen=True)
class Endpoint:
    """The addresses of the control plane. It runs in the namespaces of the process `holder`, if any."""

    address: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    holder: int | None = None

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.api_port}"


def start_etcd(state: State, at: Endpoint) -> None:
    pki, client = state.pki, f"https://127.0.0.1:{at.etcd_port}"
    argv = [
        state.program("etcd"),
        f"--data-dir={state.directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls=http://127.0.0.1:{at.etcd_peer_port}",
        # Certificates are needed, because other users of the machine can reach loopback too.
        f"--trusted-ca-file={pki / 'ca.crt'}",
        f"--cert-file={pki / 'etcd.crt'}",
        f"--key-file={pki / 'etcd.key'}",
        "--client-cert-auth",
        # The data is disposable. Without fsync, a start is faster and a shared disk has less load.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    process.ensure(state, "etcd", argv, holder=at.holder)


def start_api_server(state: State, at: Endpoint) -> None:
    pki = state.pki
    argv = [
        state.program("kube-apiserver"),
        f"--bind-address={at.address}",
        f"--secure-port={at.api_port}",
        f"--advertise-address={at.address}",
        f"--etcd-servers=https://127.0.0.1:{at.etcd_port}",
        f"--etcd-cafile={pki / 'ca.crt'}",
        f"--etcd-certfile={pki / 'etcd.crt'}",
        f"--etcd-keyfile={pki / 'etcd.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver.crt'}",
        f"--kubelet-client-key={pki / 'apiserver.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-cluster-ip-range={SERVICE_SUBNET}",
        # For other servers of the API, which take the user's name from a client with this certificate only.
        f"--requestheader-client-ca-file={pki / 'ca.crt'}",
        f"--requestheader-allowed-names={AGGREGATOR}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki / 'aggregator.crt'}",
        f"--proxy-client-key-file={pki / 'aggregator.key'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        # Tests change pods as a service mesh does. The policies are beta, which is off by default.
        "--feature-gates=MutatingAdmissionPolicy=true",
        "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
    ]
    if at.holder is None:
        # On loopback, the `kubernetes` Service has no address that it could point to.
        argv.append("--endpoint-reconciler-type=none")
    # Otherwise a quarter of its CPU goes into collecting garbage. Now it may take twice its half a gigabyte.
    env = {"GOGC": "300"}
    process.ensure(state, "kube-apiserver", argv, env=env, holder=at.holder, files=[pki / "apiserver.crt"])


def wait_for_api_server(state: State, at: Endpoint) -> None:
    process.wait_until(
        state,
        "the API server is ready",
        lambda: api.call(state, at.server, "GET", "/readyz")[0] == 200,
        needs=["etcd", "kube-apiserver"],
        timeout=120,
    )


def start_controller_manager(state: State, at: Endpoint) -> None:
    pki, kubeconfig = state.pki, write(state, state.config / "controller-manager", "controller-manager", at.server)
    argv = [
        state.program("kube-controller-manager"),
        f"--kubeconfig={kubeconfig}",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={pki / 'service-accounts.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
        f"--cluster-cidr={POD_SUBNET}",
        # By default it creates a folder of the machine.
        f"--flex-volume-plugin-dir={state.directory / 'volume-plugins'}",
        # Detect a lost node after 20 s instead of 50 s, because tests wait for it.
        "--node-monitor-grace-period=20s",
        "--node-monitor-period=2s",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        "--leader-elect=false",
        "--secure-port=0",
    ]
    process.ensure(state, "kube-controller-manager", argv, holder=at.holder, files=[kubeconfig])


def wait_for_controllers(state: State, at: Endpoint) -> None:
    """Pods can be created as soon as their default ServiceAccount exists."""
    process.wait_until(
        state,
        "the controller manager made the default ServiceAccount",
        lambda: api.call(state, at.server, "GET", "/api/v1/namespaces/default/serviceaccounts/default")[0] == 200,
        needs=["kube-apiserver", "kube-controller-manager"],
    )


def start_scheduler(state: State, at: Endpoint) -> None:
    kubeconfig = write(state, state.config / "scheduler", "scheduler", at.server)
    argv = [state.program("kube-scheduler"), f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]
    process.ensure(state, "kube-scheduler", argv, holder=at.holder, files=[kubeconfig])
