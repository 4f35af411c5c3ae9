"""Publishing to a bucket that is busy or refuses uploads. The client is boto3's."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from finetune_trainer.artifact.publish import MANIFEST, publish
from finetune_trainer.errors import AccessDenied
from finetune_trainer.fetch import retry, s3_client

DIGEST = "sha256:" + "a" * 64


class Raw(io.BytesIO):
    """A body like urllib3's."""

    def stream(self, **_: object) -> Iterator[bytes]:
        yield self.read()


class Server:
    """Accepts every object, but answers the first uploads of the weights with ``refusals``."""

    def __init__(self) -> None:
        self.objects: dict[str, str] = {}
        self.refusals: list[tuple[int, str]] = []

    def __call__(self, request: Any, **_: object) -> AWSResponse:
        name = request.url.split("?")[0].rpartition("/")[2]
        if request.method == "GET" and name in self.objects:
            return self._answer(request, 200, self.objects[name])
        if request.method == "GET":
            contents = "".join(f"<Contents><Key>tuned/{key}</Key></Contents>" for key in self.objects)
            return self._answer(request, 200, f"<ListBucketResult>{contents}</ListBucketResult>")
        if request.method == "PUT":
            if name == "model.safetensors" and self.refusals:
                status, code = self.refusals.pop(0)
                return self._answer(request, status, f"<Error><Code>{code}</Code></Error>")
            body = request.body if isinstance(request.body, bytes) else request.body.read()
            self.objects[name] = body.decode()
        if request.method == "DELETE":
            del self.objects[name]
        return self._answer(request, 200, "")

    @staticmethod
    def _answer(request: Any, status: int, body: str) -> AWSResponse:
        return AWSResponse(request.url, status, {}, Raw(body.encode()))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    client = boto3.client(
        "s3",
        endpoint_url="http://bucket.example",
        aws_access_key_id="tester",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
        ),
    )
    made = Server()
    client.meta.events.register("before-send.s3", made)
    monkeypatch.setattr(s3_client, "client", lambda: client)
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0))
    return made


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(5000))
    return tmp_path


def test_a_busy_server_is_retried(server: Server, artifact: Path) -> None:
    server.refusals = [(503, "SlowDown")]
    assert publish("s3://models/tuned", artifact, DIGEST) == "s3://models/tuned"
    assert sorted(server.objects) == [MANIFEST, "model.safetensors"]


@pytest.mark.parametrize("answer", [(403, "AccessDenied"), (400, "ExpiredToken")])
def test_a_refusal_names_the_keys_and_is_not_retried(server: Server, artifact: Path, answer: tuple[int, str]) -> None:
    server.refusals = [answer]
    with pytest.raises(AccessDenied, match=f"{answer[1]}.*AWS_ACCESS_KEY_ID"):
        publish("s3://models/tuned", artifact, DIGEST)
    assert MANIFEST not in server.objects
