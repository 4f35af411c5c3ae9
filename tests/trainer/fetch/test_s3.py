"""A real S3 server: fetching and publishing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.artifact.publish import CLAIM, publish
from finetune_trainer.errors import AccessDenied, InvalidSpec, NotFound, SourceUnreachable
from finetune_trainer.fetch import FetchContext, download, fetch, s3, s3_client
from finetune_trainer.fetch.model_config import fetch_config
from finetune_trainer.fetch.retry import TransientError

from tests.s3.server import ACCESS, S3, SECRET

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
WEIGHTS = bytes(range(256)) * 12_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    running = S3(tmp_path_factory.mktemp("s3"))
    running.client.create_bucket(Bucket="models")
    yield running
    running.close()


@pytest.fixture(autouse=True)
def environment(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ENDPOINT_URL", server.address), ("ACCESS_KEY_ID", ACCESS), ("SECRET_ACCESS_KEY", SECRET)):
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture
def context(tmp_path: Path) -> FetchContext:
    return FetchContext(tmp_path / "workspace" / "cache", {}, tmp_path, "run-1")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def test_a_published_artifact_can_be_fetched(server: S3, context: FetchContext, artifact: Path) -> None:
    assert publish("s3://models/tuned", artifact, DIGEST) == "s3://models/tuned"
    assert publish("s3://models/tuned", artifact, DIGEST) == "s3://models/tuned"
    fetched = fetch("s3://models/tuned", "model", context)
    assert (fetched.path / "model.safetensors").read_bytes() == WEIGHTS
    assert fetch("s3://models/tuned", "model", context) == fetched


def test_the_config_of_a_model_is_fetched_alone(artifact: Path, tmp_path: Path) -> None:
    publish("s3://models/configured", artifact, DIGEST)
    folder = tmp_path / "config"
    folder.mkdir()
    assert (fetch_config("s3://models/configured", {}, folder) / "config.json").read_text() == "{}"
    with pytest.raises(NotFound, match="s3://models/nothing"):
        fetch_config("s3://models/nothing", {}, folder)


def test_another_artifact_is_not_overwritten(server: S3, artifact: Path) -> None:
    publish("s3://models/mine", artifact, DIGEST)
    with pytest.raises(InvalidSpec, match=r"sha256:aaa.*sha256:bbb"):
        publish("s3://models/mine", artifact, OTHER)


def test_foreign_files_are_not_overwritten(server: S3, artifact: Path) -> None:
    server.client.put_object(Bucket="models", Key="theirs/config.json", Body=b"theirs")
    with pytest.raises(InvalidSpec, match=r"config\.json"):
        publish("s3://models/theirs", artifact, DIGEST)


def test_an_interrupted_upload_is_resumed(server: S3, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = s3_client.client()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(s3_client, "client", lambda: real)
        patch.setattr(real, "upload_file", killed)
        with pytest.raises(KeyboardInterrupt):
            publish("s3://models/half", artifact, DIGEST)
    assert [item["Key"] for item in server.client.list_objects_v2(Bucket="models", Prefix="half/")["Contents"]] == [
        f"half/{CLAIM}"
    ]
    with pytest.raises(InvalidSpec):
        publish("s3://models/half", artifact, OTHER)
    assert publish("s3://models/half", artifact, DIGEST)


def test_a_broken_connection_is_resumed(server: S3, context: FetchContext, monkeypatch: pytest.MonkeyPatch) -> None:
    server.client.put_object(Bucket="models", Key="rows/a.jsonl", Body=WEIGHTS)
    monkeypatch.setattr(download, "wait", lambda *_: None)
    whole = s3._chunks
    starts: list[int] = []

    def cut(body: object, what: str) -> Iterator[bytes]:
        chunks = whole(body, what)
        yield next(chunks)
        if not starts:
            starts.append(1)
            raise TransientError("the connection broke")
        yield from chunks

    monkeypatch.setattr(s3, "_chunks", cut)
    assert fetch("s3://models/rows/a.jsonl", "data", context).path.read_bytes() == WEIGHTS


def upload_in_parts(server: S3, key: str, sizes: list[int], algorithm: str) -> None:
    named = {"Bucket": "models", "Key": key}
    upload = {
        **named,
        "UploadId": server.client.create_multipart_upload(**named, ChecksumAlgorithm=algorithm)["UploadId"],
    }
    parts = []
    for number, size in enumerate(sizes, 1):
        body = bytes([number]) * size
        uploaded = server.client.upload_part(**upload, PartNumber=number, Body=body, ChecksumAlgorithm=algorithm)
        checksums = {name: uploaded[name] for name in ("ETag", f"Checksum{algorithm}")}
        parts.append({"PartNumber": number, **checksums})
    server.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})


MIB = 1 << 20


@pytest.mark.parametrize("algorithm", ["SHA256", "CRC32", "SHA1"])
def test_an_object_uploaded_in_parts_is_checked(
    server: S3, context: FetchContext, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """SHA1 is not supported, so the MD5 of the parts is used."""
    sizes = [5 * MIB, 5 * MIB, 5 * MIB, 100]
    upload_in_parts(server, f"parts/{algorithm}.jsonl", sizes, algorithm)
    uri = f"s3://models/parts/{algorithm}.jsonl"
    content = b"".join(bytes([number]) * size for number, size in enumerate(sizes, 1))
    whole = s3._chunks

    def damaged(body: object, what: str) -> Iterator[bytes]:
        first, *more = whole(body, what)
        yield from (bytes([first[0] ^ 1]) + first[1:], *more)

    with monkeypatch.context() as patch:
        patch.setattr(s3, "_chunks", damaged)
        with pytest.raises(SourceUnreachable, match=r"is damaged: expected (sha256|crc32|md5)-parts"):
            fetch(uri, "data", context)
    assert fetch(uri, "data", context).path.read_bytes() == content


def test_parts_of_different_sizes_are_not_reported_as_damage(server: S3, context: FetchContext) -> None:
    upload_in_parts(server, "odd/a.jsonl", [5 * MIB, 6 * MIB, 100], "SHA256")
    assert fetch("s3://models/odd/a.jsonl", "data", context).path.stat().st_size == 11 * MIB + 100


def test_a_changed_object_is_another_version(server: S3, context: FetchContext) -> None:
    server.client.put_object(Bucket="models", Key="moving/a.jsonl", Body=b"1")
    first = fetch("s3://models/moving", "data", context)
    server.client.put_object(Bucket="models", Key="moving/a.jsonl", Body=b"2")
    assert fetch("s3://models/moving", "data", context).digest != first.digest


def test_wrong_keys_and_wrong_names_are_reported(
    server: S3, context: FetchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri in ("s3://models/none", "s3://nobucket/x"):
        with pytest.raises(NotFound, match="no such"):
            fetch(uri, "data", context)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(AccessDenied, match=r"secrets\.s3") as denied:
        fetch("s3://models/tuned", "model", context)
    assert "not-the-secret" not in str(denied.value)
