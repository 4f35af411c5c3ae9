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

from botocore.exceptions import ClientError
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
            check, part_size = _check(facts), 0
            if check is None and (in_parts := _check_in_parts(facts)):
                part_size = _part_size(client, {**where, "IfMatch": item["ETag"]}, size, in_parts[2])
                check = in_parts[:2] if part_size else None
            if start == size:
                yield Stream(start, iter(()), check, part_size)
                return
            part = {"Range": f"bytes={start}-"} if start else {}
            answer = client.get_object(**where, IfMatch=item["ETag"], **part)
            body = answer["Body"]
            try:
                begins = start if answer["ResponseMetadata"]["HTTPStatusCode"] == 206 else 0
                yield Stream(begins, _chunks(body, f"{uri}: {name}"), check, part_size)
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
    return ("md5", etag) if re.fullmatch(r"[0-9a-f]{32}", etag) and not _encrypted(facts) else None


def _encrypted(facts: dict[str, Any]) -> bool:
    return "kms" in str(facts.get("ServerSideEncryption", "")) or bool(facts.get("SSECustomerAlgorithm"))


def _check_in_parts(facts: dict[str, Any]) -> tuple[str, str, int] | None:
    """How an object that came in parts can be checked, if their sizes are known; and how many there are."""
    for header, kind in (("ChecksumSHA256", "sha256-parts"), ("ChecksumCRC32", "crc32-parts")):
        value, _, count = str(facts.get(header) or "").partition("-")
        if count.isdecimal():
            return kind, b64decode(value).hex(), int(count)
    value, _, count = str(facts.get("ETag", "")).strip('"').partition("-")
    if re.fullmatch(r"[0-9a-f]{32}", value) and count.isdecimal() and not _encrypted(facts):
        return "md5-parts", value, int(count)
    return None


def _part_size(client: Any, where: dict[str, Any], size: int, count: int) -> int:
    """Of all parts but the last; 0 where that can't be told, so nothing whole is taken for damaged. Programs upload
    in parts of one size: a few are asked for, as there may be thousands."""

    def ask(number: int) -> int:
        facts = client.head_object(**where, PartNumber=number)
        return int(facts["ContentLength"]) if facts.get("PartsCount") == count else 0

    try:
        first = ask(1)
        alike = all(ask(number) == first for number in {2, count - 1} if 1 < number < count)
        last = ask(count)
    except ClientError as error:
        if int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) in (400, 416, 501):
            return 0  # a provider that doesn't know parts
        raise
    return first if first and alike and last == size - (count - 1) * first else 0
