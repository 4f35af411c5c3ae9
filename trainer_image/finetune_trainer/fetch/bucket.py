"""The client of S3 and what its errors mean to a job's user.

Called by ``s3`` and ``publish``. Credentials come from where AWS's libraries look for them: environment, workload
identity, a file. AWS_ENDPOINT_URL names another provider. No message holds what a server said but its error's code.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.exceptions import ConnectionError as NoConnection

from finetune_trainer.errors import AccessDenied, NotFound, SourceUnreachable, TrainerError
from finetune_trainer.fetch.retry import Unsteady

DENIED = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AllAccessDisabled",
)
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the Secret named by secrets.s3"


def endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def client() -> Any:
    other = endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    settings: dict[str, Any] = {
        "retries": {"max_attempts": 2, "mode": "standard"},
        "connect_timeout": 10,
        "read_timeout": 60,
    }
    if other:
        # Bucket names as host names, and checksums behind the body, are things that only some providers know.
        settings |= {"s3": {"addressing_style": "path"}}
        settings |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    return boto3.session.Session().client("s3", region_name=region, endpoint_url=other, config=Config(**settings))


@contextmanager
def errors(uri: str) -> Iterator[None]:
    """Around calls to the bucket."""
    try:
        yield
    except ClientError as error:
        raise _answered(error, uri) from None
    except S3UploadFailedError as error:  # what the server answered is wrapped in it
        answer = error.__cause__ or error.__context__
        if isinstance(answer, ClientError):
            raise _answered(answer, uri) from None
        raise Unsteady(f"{uri}: {host()} didn't take a file ({type(answer or error).__name__})") from None
    except (NoCredentialsError, PartialCredentialsError):
        raise AccessDenied(f"{uri}: there are no credentials: set {KEYS}, or use workload identity") from None
    except NoConnection as error:
        raise Unsteady(f"{uri}: {host()} can't be reached ({type(error).__name__})") from None
    except BotoCoreError as error:
        raise Unsteady(f"{uri}: {host()} can't be asked ({type(error).__name__})") from None


def _answered(error: ClientError, uri: str) -> TrainerError:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return by_status(status, str(error.response.get("Error", {}).get("Code", "")), uri)


def by_status(status: int, code: str, uri: str) -> TrainerError:
    said = f"{host()} answers {status} {code}".rstrip()
    if code == "InvalidObjectState":
        return NotFound(f"{uri}: an object is archived ({said}): restore it first")
    if status in (401, 403) or code in DENIED:
        return AccessDenied(f"{uri}: {said}. Check {KEYS}, and what they are allowed in the bucket")
    if status == 404:
        return NotFound(f"{uri}: {said}: no such bucket or object")
    if status == 412:
        return Unsteady(f"{uri}: an object changed while it was fetched")
    if status in (301, 307, 400):
        return SourceUnreachable(
            f"{uri}: {said}. Check AWS_REGION and AWS_ENDPOINT_URL in the Secret named by secrets.s3"
        )
    return Unsteady(f"{uri}: {said}")


def host() -> str:
    parts = urlsplit(endpoint() or "https://s3.amazonaws.com")
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def listing(s3: Any, bucket: str, prefix: str) -> dict[str, dict[str, Any]]:
    """Key -> facts of the object ``prefix`` and of all below it; folders' own markers are no objects."""
    below = f"{prefix}/" if prefix else ""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    objects = (item for page in pages for item in page.get("Contents", []))
    return {
        str(item["Key"]): item
        for item in objects
        if (item["Key"] == prefix or item["Key"].startswith(below)) and not item["Key"].endswith("/")
    }
