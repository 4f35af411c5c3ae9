"""``s3://``: objects of a bucket, of any provider.

Called by ``source``. The bucket is asked each time, for its objects may change; the version of what it has is a digest
over keys, sizes and ETags.
"""

import hashlib
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune_api.source import S3Path

from finetune_trainer.errors import NotFound
from finetune_trainer.fetch import bucket, select, store
from finetune_trainer.fetch.places import Fetched, Kind, Places
from finetune_trainer.fetch.remote import Remote, RemoteFile, Stream, check_name, short
from finetune_trainer.fetch.retry import Unsteady, patiently

CHUNK = 1 << 20


def fetch(
    uri: str,
    place: S3Path,
    kind: Kind,
    places: Places,
    split: str | None,
    code: bool,
    progress: Callable[[int, int], None],
    check_stop: Callable[[], None],
) -> Fetched:
    """As `source.fetch`."""
    with bucket.errors(uri):
        client = bucket.client()
    remote = patiently(lambda: _remote(uri, place, kind, client, split, code), check_stop)
    return store.keep(remote, places, progress, check_stop)


def _remote(uri: str, place: S3Path, kind: Kind, client: Any, split: str | None, code: bool) -> Remote:
    with bucket.errors(uri):
        objects = bucket.listing(client, place.bucket, place.prefix)
    if not objects:
        raise NotFound(f"{uri}: the bucket has no such object, and none below it")
    if place.prefix in objects:
        name = place.prefix.rpartition("/")[2]
        chosen, path = {place.prefix: name}, name
    else:
        prefix, path = f"{place.prefix}/" if place.prefix else "", ""
        names = [key.removeprefix(prefix) for key in objects]
        if kind == "data":
            selected = select.data_files(names, uri, split, None, None)
        else:
            selected = {name: name for name in select.model_files(names, uri, code=code)}
        chosen = {prefix + name: to for name, to in selected.items()}
    files = [_remote_file(uri, client, place.bucket, objects[key], name) for key, name in chosen.items()]
    content = "\n".join(f"{key}\t{objects[key]['Size']}\t{objects[key]['ETag']}" for key in sorted(chosen))
    version = hashlib.sha256(content.encode()).hexdigest()[:40]
    asked = "\n".join([place.bucket, place.prefix, kind, split or "", *(["code"] if code else [])])
    return Remote(uri, f"s3/{short(f'{place.bucket}/{place.prefix}', asked)}", version, None, path, files)


def _remote_file(uri: str, client: Any, name_of_bucket: str, item: dict[str, Any], name: str) -> RemoteFile:
    where = {"Bucket": name_of_bucket, "Key": item["Key"]}
    size = int(item["Size"])

    @contextmanager
    def opened(start: int) -> Iterator[Stream]:
        with bucket.errors(f"{uri}: {name}"):
            facts = client.head_object(**where, IfMatch=item["ETag"], ChecksumMode="ENABLED")
            check = _check(facts)
            if start == size:
                yield Stream(start, iter(()), check)
                return
            part = {"Range": f"bytes={start}-"} if start else {}
            answer = client.get_object(**where, IfMatch=item["ETag"], **part)
            body = answer["Body"]
            try:
                begins = start if answer["ResponseMetadata"]["HTTPStatusCode"] == 206 else 0
                yield Stream(begins, _chunks(body, f"{uri}: {name}"), check)
            finally:
                body.close()

    return RemoteFile(check_name(name, uri), size, opened)


def _chunks(body: Any, what: str) -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    try:
        while chunk := body.read(CHUNK):
            yield chunk
    except (HTTPError, OSError) as error:
        raise Unsteady(f"{what}: the connection broke ({type(error).__name__})") from None


def _check(facts: dict[str, Any]) -> tuple[str, str] | None:
    """How the object can be checked. An ETag is an MD5 unless the object came in parts or is encrypted by a key of its
    own."""
    whole = facts.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    for header, kind in (("ChecksumSHA256", "sha256"), ("ChecksumCRC32", "crc32")):
        value = str(facts.get(header) or "")
        if value and whole and "-" not in value:
            return kind, b64decode(value).hex()
    etag = str(facts.get("ETag", "")).strip('"')
    encrypted = "kms" in str(facts.get("ServerSideEncryption", "")) or facts.get("SSECustomerAlgorithm")
    return ("md5", etag) if re.fullmatch(r"[0-9a-f]{32}", etag) and not encrypted else None
