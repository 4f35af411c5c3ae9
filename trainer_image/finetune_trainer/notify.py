"""``python -m finetune_trainer notify``: tell a webhook how a job ended.

A pod of its own runs this after the end, with the URL and an optional header from a Secret of the user. Neither appears
in a log: a URL may be as secret as a password. Redirects are not followed, because the header would go with them.
"""

import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from finetune_api.exit_codes import ExitCode

log = logging.getLogger(__name__)

URL, HEADER, PAYLOAD = "FINETUNE_NOTIFY_URL", "FINETUNE_NOTIFY_HEADER", "FINETUNE_NOTIFICATION"
TIMEOUT_SECONDS = 10.0
PAUSES = (1.0, 5.0, 15.0, 30.0)
"""Before the second and each later try."""
WORTH_ANOTHER_TRY = (408, 425, 429)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def main(
    environment: Mapping[str, str], pauses: Sequence[float] = PAUSES, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Post the payload; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    url, header = environment.get(URL, "").strip(), environment.get(HEADER, "").strip()
    name, colon, value = (part.strip() for part in header.partition(":"))
    if urlsplit(url).scheme not in ("http", "https"):
        log.error("The key url of the Secret is no http:// or https:// address.")
        return ExitCode.INVALID_SPEC
    if header and not (name and colon and value):
        log.error("The key header of the Secret must have the form 'Name: value'.")
        return ExitCode.INVALID_SPEC
    headers = {"Content-Type": "application/json", "User-Agent": "finetune-operator", **({name: value} if name else {})}
    body = environment.get(PAYLOAD, "{}").encode()
    for pause in (*pauses, None):
        code, words = _post(url, headers, body)
        if code in range(200, 300):
            log.info("The webhook has the notification.")
            return ExitCode.DONE
        if code in range(300, 500) and code not in WORTH_ANOTHER_TRY:
            log.error("The webhook refuses the notification: %s. Correct the Secret.", words)
            return ExitCode.ACCESS_DENIED
        log.warning("The webhook was not told: %s.", words)
        if pause is not None:
            sleep(pause)
    return ExitCode.SOURCE_UNREACHABLE


def _post(url: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    """The HTTP status, 0 without an answer; and words for the log without the URL."""
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        request = urllib.request.Request(url, body, headers, method="POST")
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return int(answer.status), f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return error.code, f"HTTP {error.code}"
    except urllib.error.URLError as error:
        # The reason of an operating system names no address; other texts may.
        reason = error.reason.strerror if isinstance(error.reason, OSError) else None
        return 0, reason or type(error.reason).__name__
    except (OSError, HTTPException, ValueError) as error:
        return 0, type(error).__name__
