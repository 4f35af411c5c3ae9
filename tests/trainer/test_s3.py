"""A real S3 server: fetching and publishing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import AccessDenied, InvalidSpec, NotFound, SourceUnreachable
from finetune_trainer.fetch import Places, bucket, fetch, s3, store
from finetune_trainer.fetch.retry import Unsteady
from finetune_trainer.publish import CLAIM, publish

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
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "workspace" / "cache", {}, tmp_path, "run-1")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def test_what_was_published_is_fetched(server: S3, places: Places, artifact: Path) -> None:
    assert publish("s3://models/tuned", artifact, DIGEST) == "s3://models/tuned"
    assert publish("s3://models/tuned", artifact, DIGEST) == "s3://models/tuned"
    fetched = fetch("s3://models/tuned", "model", places)
    assert (fetched.path / "model.safetensors").read_bytes() == WEIGHTS
    assert fetch("s3://models/tuned", "model", places) == fetched


def test_another_artifact_is_not_written_over(server: S3, artifact: Path) -> None:
    publish("s3://models/mine", artifact, DIGEST)
    with pytest.raises(InvalidSpec, match=r"sha256:aaa.*sha256:bbb"):
        publish("s3://models/mine", artifact, OTHER)


def test_somebody_elses_files_are_not_written_over(server: S3, artifact: Path) -> None:
    server.client.put_object(Bucket="models", Key="theirs/config.json", Body=b"theirs")
    with pytest.raises(InvalidSpec, match=r"config\.json"):
        publish("s3://models/theirs", artifact, DIGEST)


def test_a_copy_that_was_broken_off_is_gone_on_with(
    server: S3, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bucket.client()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "client", lambda: real)
        patch.setattr(real, "upload_file", killed)
        with pytest.raises(KeyboardInterrupt):
            publish("s3://models/half", artifact, DIGEST)
    assert [item["Key"] for item in server.client.list_objects_v2(Bucket="models", Prefix="half/")["Contents"]] == [
        f"half/{CLAIM}"
    ]
    with pytest.raises(InvalidSpec):
        publish("s3://models/half", artifact, OTHER)
    assert publish("s3://models/half", artifact, DIGEST)


def test_a_cut_connection_goes_on_where_it_ended(server: S3, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    server.client.put_object(Bucket="models", Key="rows/a.jsonl", Body=WEIGHTS)
    monkeypatch.setattr(store, "wait", lambda *_: None)
    whole = s3._chunks
    starts: list[int] = []

    def cut(body: object, what: str) -> Iterator[bytes]:
        chunks = whole(body, what)
        yield next(chunks)
        if not starts:
            starts.append(1)
            raise Unsteady("the connection broke")
        yield from chunks

    monkeypatch.setattr(s3, "_chunks", cut)
    assert fetch("s3://models/rows/a.jsonl", "data", places).path.read_bytes() == WEIGHTS


def upload_in_parts(server: S3, key: str, sizes: list[int], algorithm: str) -> None:
    named = {"Bucket": "models", "Key": key}
    upload = {
        **named,
        "UploadId": server.client.create_multipart_upload(**named, ChecksumAlgorithm=algorithm)["UploadId"],
    }
    parts = []
    for number, size in enumerate(sizes, 1):
        body = bytes([number]) * size
        made = server.client.upload_part(**upload, PartNumber=number, Body=body, ChecksumAlgorithm=algorithm)
        told = {name: made[name] for name in ("ETag", f"Checksum{algorithm}")}
        parts.append({"PartNumber": number, **told})
    server.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})


MIB = 1 << 20


@pytest.mark.parametrize("algorithm", ["SHA256", "CRC32", "SHA1"])
def test_what_came_in_parts_is_checked_by_them(
    server: S3, places: Places, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """SHA1 is not looked at: the parts' MD5 stands in."""
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
            fetch(uri, "data", places)
    assert fetch(uri, "data", places).path.read_bytes() == content


def test_parts_of_different_sizes_are_not_taken_for_damage(server: S3, places: Places) -> None:
    upload_in_parts(server, "odd/a.jsonl", [5 * MIB, 6 * MIB, 100], "SHA256")
    assert fetch("s3://models/odd/a.jsonl", "data", places).path.stat().st_size == 11 * MIB + 100


def test_a_changed_object_is_another_version(server: S3, places: Places) -> None:
    server.client.put_object(Bucket="models", Key="moving/a.jsonl", Body=b"1")
    first = fetch("s3://models/moving", "data", places)
    server.client.put_object(Bucket="models", Key="moving/a.jsonl", Body=b"2")
    assert fetch("s3://models/moving", "data", places).digest != first.digest


def test_wrong_keys_and_wrong_names(server: S3, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("s3://models/none", "s3://nobucket/x"):
        with pytest.raises(NotFound, match="no such"):
            fetch(uri, "data", places)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(AccessDenied, match=r"secrets\.s3") as denied:
        fetch("s3://models/tuned", "model", places)
    assert "not-the-secret" not in str(denied.value)
