"""The S3 client, and its errors as errors for the user of a job.

Called by `s3` and by publishing. Credentials come from where AWS's libraries look for them: environment, workload
identity, a file. AWS_ENDPOINT_URL names another provider. Messages repeat only the error code of a server's response.
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
from finetune_trainer.fetch.retry import TransientError

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
        # Only some providers support bucket names as host names and checksums after the body.
        settings |= {"s3": {"addressing_style": "path"}}
        settings |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    return boto3.session.Session().client("s3", region_name=region, endpoint_url=other, config=Config(**settings))


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Around calls to the bucket: raises the errors of the library as errors for the user."""
    try:
        yield
    except ClientError as error:
        raise _error_of_response(error, uri) from None
    except S3UploadFailedError as error:  # it wraps the server's response
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ClientError):
            raise _error_of_response(cause, uri) from None
        raise TransientError(f"{uri}: {host()} did not accept a file ({type(cause or error).__name__})") from None
    except (NoCredentialsError, PartialCredentialsError):
        raise AccessDenied(f"{uri}: there are no credentials. Set {KEYS}, or use workload identity") from None
    except NoConnection as error:
        raise TransientError(f"{uri}: {host()} is unreachable ({type(error).__name__})") from None
    except BotoCoreError as error:
        raise TransientError(f"{uri}: the request to {host()} failed ({type(error).__name__})") from None


def _error_of_response(error: ClientError, uri: str) -> TrainerError:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return error_of_status(status, str(error.response.get("Error", {}).get("Code", "")), uri)


def error_of_status(status: int, code: str, uri: str) -> TrainerError:
    """The error for an HTTP status and S3's error code."""
    answer = f"{host()} answers {status} {code}".rstrip()
    if code == "InvalidObjectState":
        return NotFound(f"{uri}: an object is archived ({answer}). Restore it first")
    if status in (401, 403) or code in DENIED:
        return AccessDenied(f"{uri}: {answer}. Check {KEYS}, and their permissions in the bucket")
    if status == 404:
        return NotFound(f"{uri}: {answer}: no such bucket or object. Check the bucket and the key")
    if status == 412:
        return TransientError(f"{uri}: an object changed while it was fetched")
    if status in (301, 307, 400):
        return SourceUnreachable(
            f"{uri}: {answer}. Check AWS_REGION and AWS_ENDPOINT_URL in the Secret named by secrets.s3"
        )
    return TransientError(f"{uri}: {answer}")


def host() -> str:
    parts = urlsplit(endpoint() or "https://s3.amazonaws.com")
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def read_object(bucket: str, key: str, uri: str) -> bytes:
    """The content of a small object."""
    with translate_errors(f"{uri}: {key}"):
        content: bytes = client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


def list_objects(s3: Any, bucket: str, prefix: str) -> dict[str, dict[str, Any]]:
    """Key -> metadata of the object ``prefix`` and of all objects below it, without folder markers."""
    below = f"{prefix}/" if prefix else ""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    objects = (item for page in pages for item in page.get("Contents", []))
    return {
        str(item["Key"]): item
        for item in objects
        if (item["Key"] == prefix or item["Key"].startswith(below)) and not item["Key"].endswith("/")
    }
