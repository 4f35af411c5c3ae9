"""``s3://``: objects of a bucket, of any provider.

Called by `dispatch`. The bucket is listed each time, because its objects may change. The version of a source is a
digest over keys, sizes and ETags.
"""

import hashlib
import re
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError
from finetune_api.source import S3Path

from finetune_trainer.errors import NotFound
from finetune_trainer.fetch import file_selection, s3_client, source_cache
from finetune_trainer.fetch.context import CheckStop, FetchContext, Fetched, Progress, Request
from finetune_trainer.fetch.remote_files import RemoteFile, RemoteSource, Stream, check_name, entry_folder
from finetune_trainer.fetch.retry import TransientError, with_retries

CHUNK = 1 << 20


def fetch(request: Request, place: S3Path, context: FetchContext, progress: Progress, check_stop: CheckStop) -> Fetched:
    """As `dispatch.fetch`."""
    with s3_client.translate_errors(request.uri):
        client = s3_client.client()
    remote = with_retries(lambda: _list_remote(request, place, client), check_stop)
    return source_cache.ensure(remote, context, progress, check_stop)


def _list_remote(request: Request, place: S3Path, client: Any) -> RemoteSource:
    """The objects of the request as the bucket has them now."""
    uri = request.uri
    with s3_client.translate_errors(uri):
        objects = s3_client.list_objects(client, place.bucket, place.prefix)
    if not objects:
        raise NotFound(f"{uri}: the bucket has no such object, and none below it. Check the bucket and the key")
    if place.prefix in objects:
        name = place.prefix.rpartition("/")[2]
        chosen, path = {place.prefix: name}, name
    else:
        prefix, path = f"{place.prefix}/" if place.prefix else "", ""
        names = [key.removeprefix(prefix) for key in objects]
        if request.kind == "data":
            selected = file_selection.data_files(names, uri, request.split, None, None)
        else:
            selected = {name: name for name in file_selection.model_files(names, uri, code=request.code)}
        chosen = {prefix + name: to for name, to in selected.items()}
    files = [_remote_file(uri, client, place.bucket, objects[key], name) for key, name in chosen.items()]
    content = "\n".join(f"{key}\t{objects[key]['Size']}\t{objects[key]['ETag']}" for key in sorted(chosen))
    version = hashlib.sha256(content.encode()).hexdigest()[:40]
    code = ["code"] if request.code else []
    requested = "\n".join([place.bucket, place.prefix, request.kind, request.split or "", *code])
    folder = f"s3/{entry_folder(f'{place.bucket}/{place.prefix}', requested)}"
    return RemoteSource(uri, folder, version, None, path, files)


def _remote_file(uri: str, client: Any, bucket: str, item: dict[str, Any], name: str) -> RemoteFile:
    where = {"Bucket": bucket, "Key": item["Key"]}
    size = int(item["Size"])

    @contextmanager
    def open_stream(start: int) -> Iterator[Stream]:
        with s3_client.translate_errors(f"{uri}: {name}"):
            head = client.head_object(**where, IfMatch=item["ETag"], ChecksumMode="ENABLED")
            checksum, part_size = _checksum(head), 0
            if checksum is None and (of_parts := _checksum_of_parts(head)):
                part_size = _part_size(client, {**where, "IfMatch": item["ETag"]}, size, of_parts[2])
                checksum = of_parts[:2] if part_size else None
            if start == size:
                yield Stream(start, iter(()), checksum, part_size)
                return
            byte_range = {"Range": f"bytes={start}-"} if start else {}
            response = client.get_object(**where, IfMatch=item["ETag"], **byte_range)
            body = response["Body"]
            try:
                begins = start if response["ResponseMetadata"]["HTTPStatusCode"] == 206 else 0
                yield Stream(begins, _chunks(body, f"{uri}: {name}"), checksum, part_size)
            finally:
                body.close()

    return RemoteFile(check_name(name, uri), size, open_stream)


def _chunks(body: Any, what: str) -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    try:
        while chunk := body.read(CHUNK):
            yield chunk
    except (HTTPError, OSError) as error:
        raise TransientError(f"{what}: the connection broke ({type(error).__name__})") from None


def _checksum(head: dict[str, Any]) -> tuple[str, str] | None:
    """(kind, value) of the whole object. An ETag is an MD5, except for objects uploaded in parts or encrypted with a
    key of their own."""
    whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    for header, kind in (("ChecksumSHA256", "sha256"), ("ChecksumCRC32", "crc32")):
        value = str(head.get(header) or "")
        if value and whole and "-" not in value:
            return kind, b64decode(value).hex()
    etag = str(head.get("ETag", "")).strip('"')
    return ("md5", etag) if re.fullmatch(r"[0-9a-f]{32}", etag) and not _encrypted(head) else None


def _encrypted(head: dict[str, Any]) -> bool:
    return "kms" in str(head.get("ServerSideEncryption", "")) or bool(head.get("SSECustomerAlgorithm"))


def _checksum_of_parts(head: dict[str, Any]) -> tuple[str, str, int] | None:
    """(kind, value, number of parts) of an object uploaded in parts. It is usable only when the part size is known."""
    for header, kind in (("ChecksumSHA256", "sha256-parts"), ("ChecksumCRC32", "crc32-parts")):
        value, _, count = str(head.get(header) or "").partition("-")
        if count.isdecimal():
            return kind, b64decode(value).hex(), int(count)
    value, _, count = str(head.get("ETag", "")).strip('"').partition("-")
    if re.fullmatch(r"[0-9a-f]{32}", value) and count.isdecimal() and not _encrypted(head):
        return "md5-parts", value, int(count)
    return None


def _part_size(client: Any, where: dict[str, Any], size: int, count: int) -> int:
    """Bytes in each part but the last. 0 when that is unknown; then the object is not checked, so that an intact
    object is never called damaged. Upload programs use parts of one size: a few parts are asked for, as there may be
    thousands.
    """

    def ask(number: int) -> int:
        head = client.head_object(**where, PartNumber=number)
        return int(head["ContentLength"]) if head.get("PartsCount") == count else 0

    try:
        first = ask(1)
        alike = all(ask(number) == first for number in {2, count - 1} if 1 < number < count)
        last = ask(count)
    except ClientError as error:
        if int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) in (400, 416, 501):
            return 0  # this provider does not know parts
        raise
    return first if first and alike and last == size - (count - 1) * first else 0
