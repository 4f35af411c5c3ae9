"""The resolved job as status.resolved.job keeps it: its JSON, compressed by zlib, in base64.

Each attempt receives it as it was at acceptance, whatever release of the operator creates the attempt.
"""

import base64
import binascii
import zlib

from finetune_api.contract import RESOLVED_JOB_BYTES
from finetune_api.status import STORED_JOB_CHARACTERS


def store(document: str) -> str:
    """The document as the status keeps it. Raises ValueError with a message for the user if it is too large."""
    stored = base64.b64encode(zlib.compress(document.encode(), 9)).decode()
    if len(stored) > STORED_JOB_CHARACTERS:
        raise ValueError(
            f"The resolved job has {len(stored):,} characters once it is compressed; at most {STORED_JOB_CHARACTERS:,}"
            " fit into the job's status. Name fewer datasets, or shorten their settings."
        )
    return stored


def load(stored: str) -> str:
    """The document. Raises ValueError if this is no stored document."""
    inflate = zlib.decompressobj()
    try:
        document = inflate.decompress(base64.b64decode(stored, validate=True), RESOLVED_JOB_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"no stored job: {error}") from error
    if not inflate.eof:
        raise ValueError(f"no stored job: it is cut, or longer than {RESOLVED_JOB_BYTES} bytes")
    return document.decode()
