"""Copies of an artifact outside the workspace: in a bucket or a hub repository.

Called once the artifact is in the workspace. `MANIFEST` beside the files holds the artifact's digest, and tells
whose the place is: the same digest is done already, another one or files of somebody else are never written over.
On a hub one commit brings everything. A bucket knows no such thing: a claim comes first, the manifest last.
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
SHOWN = 5
OWN_OF_HUB = (".gitattributes",)
"""What a hub puts into a repository when it is made."""


def _never() -> None:
    """Nobody asks to stop: the grace period is for those who still train."""


def publish(uri: str, artifact: Path, digest: str, check_stop: Callable[[], None] = _never) -> str:
    """Copy a folder there; the final URI, for a hub with the commit. Idempotent.

    Raises InvalidSpec when something else is there, AccessDenied, NotFound, SourceUnreachable.
    """
    place = source.parse(uri)
    files = {p.relative_to(artifact).as_posix(): p for p in sorted(artifact.rglob("*")) if p.is_file()}
    content = json.dumps({"digest": digest, "files": sorted(files)}, indent=1).encode()
    if isinstance(place, S3Path):
        return retry.patiently(lambda: _to_bucket(uri, place, files, digest, content), check_stop)
    assert isinstance(place, HubPath)
    return retry.patiently(lambda: _to_hub(uri, place, files, digest, content), check_stop)


def _to_bucket(uri: str, place: S3Path, files: dict[str, Path], digest: str, content: bytes) -> str:
    from finetune_trainer.fetch import bucket

    prefix = f"{place.prefix}/" if place.prefix else ""
    with bucket.errors(uri):
        client = bucket.client()

        def read(name: str) -> bytes:
            answer = client.get_object(Bucket=place.bucket, Key=prefix + name)
            return bytes(answer["Body"].read())

        there = {key.removeprefix(prefix) for key in bucket.listing(client, place.bucket, place.prefix)}
        if MANIFEST in there:
            _same(uri, read(MANIFEST), digest)
            return uri
        if CLAIM in there:
            _same(uri, read(CLAIM), digest)
        _only_ours(uri, there, {*files, CLAIM} if CLAIM in there else set())
        if CLAIM not in there:
            client.put_object(Bucket=place.bucket, Key=prefix + CLAIM, Body=content, IfNoneMatch="*")
        for name, file in files.items():
            if name not in there or not _uploaded(client, place.bucket, prefix + name, file):
                extra = {"Metadata": {"sha256": _sha256(file)}}
                client.upload_file(str(file), place.bucket, prefix + name, ExtraArgs=extra)
        client.put_object(Bucket=place.bucket, Key=prefix + MANIFEST, Body=content)
        client.delete_object(Bucket=place.bucket, Key=prefix + CLAIM)
    return uri


def _uploaded(client: Any, bucket: str, key: str, file: Path) -> bool:
    facts = client.head_object(Bucket=bucket, Key=key)
    return bool(facts["ContentLength"] == file.stat().st_size and facts["Metadata"].get("sha256") == _sha256(file))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _to_hub(uri: str, place: HubPath, files: dict[str, Path], digest: str, content: bytes) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    from finetune_trainer.fetch import hub

    api = HfApi(endpoint=hub.endpoint())
    repository, branch = place.repository, place.revision or "main"
    with hub.errors(uri):
        # Made public it can be by its owner at any time; taken back it can't.
        if not api.repo_exists(repository):
            api.create_repo(repository, private=True, exist_ok=True)
        if branch != "main":
            api.create_branch(repository, branch=branch, exist_ok=True)
        head = api.repo_info(repository, revision=branch).sha
        there = set(api.list_repo_files(repository, revision=head))
        if MANIFEST in there:
            _same(uri, hub.read(repository, str(head), MANIFEST, uri), digest)
            return f"hf://{repository}@{head}"
        _only_ours(uri, there, set(OWN_OF_HUB))
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


def _same(uri: str, content: bytes, digest: str) -> None:
    try:
        found = str(json.loads(content)["digest"])
    except (ValueError, KeyError, TypeError):
        found = "something that can't be read"
    if found != digest:
        raise InvalidSpec(
            f"output.uri {uri} holds another artifact, {found[:19]}, and this one is {digest[:19]}: nothing is written"
            " over. Name another place, or remove what is there"
        )


def _only_ours(uri: str, there: set[str], ours: set[str]) -> None:
    foreign = sorted(there - ours)
    if foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise InvalidSpec(
            f"output.uri {uri} is not empty, and this job didn't fill it: it has {', '.join(foreign[:SHOWN])}{more}."
            " Name an empty place, or remove what is there"
        )
