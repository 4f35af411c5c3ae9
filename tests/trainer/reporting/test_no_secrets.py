"""No secret of a job is in anything that the job leaves: its output, the termination message, each status that it
writes, and every file of its workspace. Neither as it is, nor as base64, nor URL-encoded.

Real launchers and ranks, with servers that repeat the credentials in their answers, and with a model whose own code
prints them.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest
from finetune_api.contract import AttemptFacts, resolve
from finetune_api.job import FineTuneJob
from finetune_trainer.runtime.redaction import MASK

from tests.trainer.support import tiny
from tests.trainer.support.fake_api import TOKEN, FakeApi

SECRETS = {
    "HF_TOKEN": "hf_canary7Zq+/?&of-the-hub",
    "AWS_ACCESS_KEY_ID": "AKIACANARYOFTHEBUCKET",
    "AWS_SECRET_ACCESS_KEY": "canary/of+the=bucket&s3cr3t",
    "WANDB_API_KEY": "0123456789abcdefcanary0123456789abcdef99",
    "MLFLOW_TRACKING_TOKEN": "canary-of-mlflow-81723+/",
    "TEAM_DSN": "postgres://ann:canary-of-the-team@db.example/rows",
}
"""By variable, all from Secrets. The last is one of the user's own (spec.resources.env)."""
REPEAT = """
import os, sys
from transformers import LlamaConfig

print("to stdout:", dict(os.environ), flush=True)
os.write(2, f"to stderr: {dict(os.environ)}".encode())

class OwnConfig(LlamaConfig):
    model_type = "own-of-tests"

    def __init__(self, **settings):
        raise RuntimeError(f"cannot work with {dict(os.environ)}")
"""


class Repeater(BaseHTTPRequestHandler):
    """Refuses every call, and repeats what it was called with."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = f"refused: {self.path} {dict(self.headers)}"
        self.send_response(403, said.replace("\n", " ")[:500])
        self.send_header("X-Error-Message", said.replace("\n", " "))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(json.dumps({"error": said, "message": said}).encode())

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def repeater() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Repeater)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def written_as(secret: str) -> list[bytes]:
    """As it is, in JSON, URL-encoded, and inside base64 at each of the three places where it may begin there."""
    raw = secret.encode()
    forms = {secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).decode()
        # The first and the last characters also depend on what stands around the secret.
        inner = encoded[-(-before * 8 // 6) if before else 0 : (before + len(raw)) * 8 // 6]
        forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    return [form.encode() for form in forms]


def found_in(texts: dict[str, bytes], secrets: dict[str, str]) -> list[str]:
    """Which secret is where."""
    forms = {name: written_as(value) for name, value in secrets.items()}
    return [
        f"{name} in {at}" for name in secrets for at, text in texts.items() if any(form in text for form in forms[name])
    ]


class Pod:
    """One attempt at a job in ``root``; afterwards ``code``, and ``left``: every text that it left, by place."""

    def __init__(self, root: Path, repeater: str, spec: dict[str, Any], **environment: str) -> None:
        self.etc, workspace = root / "etc", root / "workspace"
        for folder in (self.etc, workspace, root / "tmp"):
            folder.mkdir()
        manifest = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "tiny"}}
        job = resolve(FineTuneJob.model_validate({**manifest, "spec": spec}), allow_cpu=True, allow_remote_code=True)
        facts = AttemptFacts(namespace="team", name="tiny", uid="12345-uid", attempt=1, job_name="tiny-12345-1")
        (self.etc / "job.json").write_text(json.dumps(job.to_dict()))
        (self.etc / "attempt.json").write_text(json.dumps(facts.to_dict()))
        termination = self.etc / "termination-log"
        termination.touch()
        api = FakeApi(root / "api")
        settings = {
            "job": str(self.etc / "job.json"),
            "workspace": str(workspace),
            "volumes": {name: str(root / name) for name in ("models", "data")},
            "url": api.server.url,
            "credentials": str(api.server.credentials),
            "termination": str(termination),
        }
        given = {**SECRETS, "FINETUNE_SECRET_VARIABLES": ",".join(SECRETS), **environment}
        own = {
            "TMPDIR": str(root / "tmp"),
            "HOME": str(root / "tmp"),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "0",
        }
        places = {"HF_ENDPOINT": repeater, "AWS_ENDPOINT_URL": repeater, "WANDB_MODE": "offline"}
        script = Path(__file__).parents[1] / "support" / "real_launch.py"
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(settings)],
            env={**os.environ, **own, **places, **given},
            capture_output=True,
            timeout=300,
        )
        api.close()
        self.code, self.output = done.returncode, (done.stdout + done.stderr).decode()
        files = [file for file in workspace.rglob("*") if file.is_file()]
        self.files = {str(file.relative_to(root)): file.read_bytes() for file in files}
        told = {"termination message": termination.read_bytes(), "status": json.dumps(api.applied).encode()}
        self.left = {"output": done.stdout + done.stderr, **told, **self.files}
        assert api.applied, self.output

    def check(self, **more: str) -> None:
        """The scan."""
        assert found_in(self.left, {**SECRETS, "account": TOKEN, **more}) == []


def spec(**sections: Any) -> dict[str, Any]:
    return {
        "stage": "sft",
        "model": {"source": "pvc://models/model"},
        "datasets": [{"source": "pvc://data/rows.jsonl", "format": "openai"}],
        "workspace": {"claimName": "kept"},
        "training": {"maxSteps": 2, "globalBatchSize": 4, "microBatchSize": 4, "cutoffLength": 128},
        **sections,
    }


@pytest.mark.parametrize("value", SECRETS.values(), ids=list(SECRETS))
def test_the_scan_finds_a_secret_however_it_is_written(value: str) -> None:
    """Else the tests below could not fail."""
    for before in ("", "a", "ab"):
        for text in (f"{before}{value} after", json.dumps({"a": before + value})):
            assert found_in({"file": text.encode()}, {"it": value})
            assert found_in({"file": base64.b64encode(text.encode())}, {"it": value})
    assert found_in({"file": f"https://x/?key={quote(value, safe='')}&a".encode()}, {"it": value})


def test_a_job_that_succeeds(root: Path, repeater: str) -> None:
    """With all trackers: one that refuses, one whose client writes to files."""
    reporting = {
        "tensorboard": True,
        "wandb": {"project": "tiny", "secret": "keys"},
        "mlflow": {"trackingUri": repeater, "experiment": "tiny", "secret": "keys"},
    }
    pod = Pod(root, repeater, spec(reporting=reporting))
    assert pod.code == 0, pod.output
    assert any(name.endswith("artifact/provenance.json") for name in pod.files)
    assert "MLflow gets no more curves" in pod.output
    pod.check()


@pytest.mark.parametrize(
    ("sections", "code", "words"),
    [
        ({"model": {"source": "hf://team/model"}}, 77, "the token is not accepted"),
        ({"datasets": [{"source": "s3://rows/a.jsonl", "format": "openai"}]}, 77, "answers 403"),
    ],
    ids=["hub", "bucket"],
)
def test_a_server_that_repeats_the_credentials(
    root: Path, repeater: str, sections: dict[str, Any], code: int, words: str
) -> None:
    pod = Pod(root, repeater, spec(**sections))
    assert pod.code == code, pod.output
    assert words in json.loads(pod.left["termination message"])["message"]
    pod.check()


def test_a_token_that_cannot_be_sent(root: Path, repeater: str) -> None:
    """Python's HTTP client repeats the header in its error."""
    broken = "canary-of-mlflow\n-in-two-lines"
    reporting = {"mlflow": {"trackingUri": repeater, "experiment": "tiny", "secret": "keys"}}
    pod = Pod(root, repeater, spec(reporting=reporting), MLFLOW_TRACKING_TOKEN=broken)
    assert pod.code == 0, pod.output
    assert "MLFLOW_TRACKING_TOKEN contains a line break" in pod.output
    pod.check(broken=broken, line=broken.splitlines()[0])


def test_a_models_own_code_that_prints_its_environment(root: Path, repeater: str) -> None:
    """Then it fails with the environment in its error, which the traceback and the termination message repeat."""
    (root / "models").unlink()
    folder = tiny.save_model(root / "models" / "model")
    (folder / "configuration_own.py").write_text(REPEAT)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own-of-tests", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    pod = Pod(root, repeater, spec(model={"source": "pvc://models/model", "trustRemoteCode": True}))
    assert pod.code == 64, pod.output
    assert MASK in pod.output
    assert "to stdout: " in pod.output
    assert "to stderr: " in pod.output
    assert "cannot work with" in json.loads(pod.left["termination message"])["message"]
    pod.check()
