"""A company's network: the trainer reaches hub and bucket by a proxy, and trusts a private certificate authority.

The environment of its processes is the operator's. The servers have names that only the proxy knows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from finetune_api.contract import AttemptFacts
from finetune_operator.manifests import outbound
from finetune_operator.settings import Settings

from tests.hub import Hub
from tests.private_network import PrivateNetwork
from tests.s3.server import ACCESS, S3, SECRET
from tests.trainer.support import tiny
from tests.trainer.support.pod import manifest

API_SERVER = "10.96.0.1"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[PrivateNetwork]:
    (tmp_path / "pki").mkdir()
    made = PrivateNetwork(tmp_path / "pki")
    yield made
    made.close()


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    server = Hub()
    server.add("team/base", {file.name: file.read_bytes() for file in model.iterdir() if file.is_file()})
    yield server
    server.close()


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[S3]:
    server = S3(tmp_path / "s3")
    server.client.create_bucket(Bucket="data")
    rows = tiny.save_rows(tmp_path / "rows.jsonl").read_bytes()
    server.client.put_object(Bucket="data", Key="rows.jsonl", Body=rows)
    yield server
    server.close()


def environment(network: PrivateNetwork) -> dict[str, str]:
    """What the operator and the kubelet give a pod."""
    settings = Settings(trainer_image="i", https_proxy=network.proxy, ca_config_map="corp-ca")
    facts = AttemptFacts(namespace="team", name="tune", uid="11111-uid", attempt=1, job_name="tune-11111-1")
    told = {variable["name"]: variable["value"] for variable in outbound.variables(facts, settings)}
    paths = {outbound.CA_FILE: str(network.ca), "$(KUBERNETES_SERVICE_HOST)": API_SERVER}
    for pod, here in paths.items():
        told = {name: value.replace(pod, here) for name, value in told.items()}
    return told


def run(root: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "finetune_trainer", command, "--job", str(root / "job.yaml")]
    arguments += ["--workspace", str(root / "workspace")]
    fixed = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(root / "hf")}
    keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    return subprocess.run(
        arguments,
        env={**os.environ, **fixed, **keys, **variables},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_job_is_prepared_through_a_proxy_with_a_private_authority(
    tmp_path: Path, network: PrivateNetwork, hub: Hub, bucket: S3
) -> None:
    job = manifest()
    job["spec"]["model"] = {"source": "hf://team/base@main"}
    job["spec"]["datasets"] = [{"source": "s3://data/rows.jsonl", "format": "openai"}]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    ended = run(
        tmp_path,
        "prepare",
        HF_ENDPOINT=network.add("hub.corp.example", hub.address),
        AWS_ENDPOINT_URL=network.add("s3.corp.example", bucket.address),
        **environment(network),
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "workspace" / "jobs" / "tune" / "reports" / "prepare.md").exists()
    assert set(network.connected) == {"hub.corp.example", "s3.corp.example"}


def test_the_authority_and_the_proxy_are_not_for_the_cluster_itself(network: PrivateNetwork) -> None:
    """As Python's own libraries understand NO_PROXY."""
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

    direct = {"no": environment(network)["NO_PROXY"]}
    for host in (API_SERVER, "tune-11111-1-1.tune-11111-1", "127.0.0.1", "mlflow.tools.svc", "x.y.svc.cluster.local"):
        assert proxy_bypass_environment(host, direct), host
    for host in ("hub.corp.example", "other-11111-1-1.other-11111-1", "10.96.0.11"):
        assert not proxy_bypass_environment(host, direct), host
