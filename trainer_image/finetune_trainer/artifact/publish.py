"""Copies an artifact to output.uri: a bucket or a hub repository.

Called when the artifact is in the workspace. `MANIFEST` beside the files has the digest of the artifact. With the same
digest the copy is done already. Another artifact, or files of somebody else, are never overwritten. On a hub a single
commit has everything. A bucket has no commits: a claim is written first, the manifest last.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api import source
from finetune_api.source import HubPath, S3Path

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.fetch import retry

MANIFEST = ".finetune-artifact.json"
CLAIM = ".finetune-unfinished.json"
FILES_SHOWN = 5
HUB_FILES = (".gitattributes",)
"""Files that a hub creates in a new repository."""


def _never_stop() -> None:
    """Checks nothing: for callers without SIGTERM handling."""


def publish(uri: str, artifact: Path, digest: str, check_stop: Callable[[], None] = _never_stop) -> str:
    """Copy the directory ``artifact`` to ``uri``. Returns the final URI, for a hub with the commit. Idempotent.

    Raises InvalidSpec when the destination has other files, AccessDenied, NotFound, SourceUnreachable.
    """
    destination = source.parse(uri)
    files = {file.relative_to(artifact).as_posix(): file for file in sorted(artifact.rglob("*")) if file.is_file()}
    content = json.dumps({"digest": digest, "files": sorted(files)}, indent=1).encode()
    if isinstance(destination, S3Path):
        return retry.with_retries(lambda: _to_bucket(uri, destination, files, digest, content), check_stop)
    assert isinstance(destination, HubPath)
    return retry.with_retries(lambda: _to_hub(uri, destination, files, digest, content), check_stop)


def _to_bucket(uri: str, destination: S3Path, files: dict[str, Path], digest: str, content: bytes) -> str:
    from finetune_trainer.fetch import s3_client

    prefix = f"{destination.prefix}/" if destination.prefix else ""
    with s3_client.translate_errors(uri):
        client = s3_client.client()

        def read(name: str) -> bytes:
            response = client.get_object(Bucket=destination.bucket, Key=prefix + name)
            return bytes(response["Body"].read())

        existing = {
            key.removeprefix(prefix) for key in s3_client.list_objects(client, destination.bucket, destination.prefix)
        }
        if MANIFEST in existing:
            _check_digest(uri, read(MANIFEST), digest)
            return uri
        if CLAIM in existing:
            _check_digest(uri, read(CLAIM), digest)
        _check_no_foreign_files(uri, existing, {*files, CLAIM} if CLAIM in existing else set())
        if CLAIM not in existing:
            client.put_object(Bucket=destination.bucket, Key=prefix + CLAIM, Body=content, IfNoneMatch="*")
        for name, file in files.items():
            if name not in existing or not _uploaded(client, destination.bucket, prefix + name, file):
                extra = {"Metadata": {"sha256": _sha256(file)}}
                client.upload_file(str(file), destination.bucket, prefix + name, ExtraArgs=extra)
        client.put_object(Bucket=destination.bucket, Key=prefix + MANIFEST, Body=content)
        client.delete_object(Bucket=destination.bucket, Key=prefix + CLAIM)
    return uri


def _uploaded(client: Any, bucket: str, key: str, file: Path) -> bool:
    head = client.head_object(Bucket=bucket, Key=key)
    return bool(head["ContentLength"] == file.stat().st_size and head["Metadata"].get("sha256") == _sha256(file))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _to_hub(uri: str, destination: HubPath, files: dict[str, Path], digest: str, content: bytes) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    from finetune_trainer.fetch import hub

    api = HfApi(endpoint=hub.endpoint())
    repository, branch = destination.repository, destination.revision or "main"
    with hub.translate_errors(uri):
        # The owner can make it public at any time, but cannot take back what was public.
        if not api.repo_exists(repository):
            api.create_repo(repository, private=True, exist_ok=True)
        if branch != "main":
            api.create_branch(repository, branch=branch, exist_ok=True)
        head = api.repo_info(repository, revision=branch).sha
        existing = set(api.list_repo_files(repository, revision=head))
        if MANIFEST in existing:
            _check_digest(uri, hub.read_file(repository, str(head), MANIFEST, uri), digest)
            return f"hf://{repository}@{head}"
        _check_no_foreign_files(uri, existing, set(HUB_FILES))
        operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
        operations.append(CommitOperationAdd(MANIFEST, content))
        commit = api.create_commit(
            repository,
            operations,
            commit_message=f"Fine-tuned model {digest[:19]}",
            commit_description=f"Digest of the artifact: {digest}",
            revision=branch,
            parent_commit=head,
        )
    return f"hf://{repository}@{commit.oid}"


def _check_digest(uri: str, content: bytes, digest: str) -> None:
    try:
        published = str(json.loads(content)["digest"])
    except (ValueError, KeyError, TypeError):
        published = "an unreadable manifest"
    if published != digest:
        raise InvalidSpec(
            f"output.uri {uri} has another artifact: {published[:19]}, this job's is {digest[:19]}. Nothing is"
            " overwritten. Use another URI, or remove the files there"
        )


def _check_no_foreign_files(uri: str, existing: set[str], ours: set[str]) -> None:
    foreign = sorted(existing - ours)
    if foreign:
        more = f" and {len(foreign) - FILES_SHOWN} more" if len(foreign) > FILES_SHOWN else ""
        raise InvalidSpec(
            f"output.uri {uri} has files that this job did not write: {', '.join(foreign[:FILES_SHOWN])}{more}."
            " Nothing is overwritten. Use an empty destination, or remove the files there"
        )
