"""Fetches URLs, with retries.

Transient failures (no connection, time-out, truncated body, 408, 425, 429, 5xx) are retried after a pause that doubles
up to a minute, with jitter so that the ranks of a job do not retry at the same time. Other failures, such as 404, are
final. Every pause is logged.
"""

import http.client
import logging
import random
import subprocess
import time
import urllib.error
import urllib.request

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import LazyModule

webdataset_gopen = LazyModule("webdataset.gopen")  # imports torch; needed for addresses such as s3:// only

log = logging.getLogger(__name__)
FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_TIMEOUT_S = 60.0
_TRANSIENT_STATUS = {408, 425, 429}  # besides all from 500 on


class NotFoundError(UserError):
    """The server answers that the address does not exist (HTTP 404 or 410)."""


def fetch(url: str, attempts: int, max_bytes: int | None = None) -> bytes:
    """The content of a URL (http, https, or any other that webdataset opens).

    attempts: maximum number of attempts.
    max_bytes: reads at most one byte more than this, so that the caller can detect longer content; None: reads all.
    Raises UserError after the last attempt or a final failure, NotFoundError for a missing address.
    """
    jitter = random.Random()
    for attempt in range(1, attempts + 1):
        try:
            return _read(url, max_bytes)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise NotFoundError(f"{url} does not exist (HTTP {error.code} {error.reason})") from error
            if error.code < 500 and error.code not in _TRANSIENT_STATUS:
                raise UserError(f"{url} is refused (HTTP {error.code} {error.reason}): check the address") from error
            problem = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException, subprocess.SubprocessError, ValueError) as error:
            problem = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        if attempt < attempts:
            pause_s = min(_LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * jitter.uniform(0.5, 1.0)
            log.warning("%s: %s; attempt %d of %d in %.1f s", url, problem, attempt + 1, attempts, pause_s)
            time.sleep(pause_s)
    tried = f", tried {attempts} times" if attempts > 1 else ""
    raise UserError(f"{url} could not be read ({problem}{tried}): check the address and the network")


def _read(url: str, max_bytes: int | None) -> bytes:
    size = None if max_bytes is None else max_bytes + 1
    if url.startswith(("http://", "https://")):
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            content = answer.read(size)
            if size is not None and len(content) < size and answer.length:  # read(size) accepts a truncated body
                raise http.client.IncompleteRead(content, answer.length)
            return content
    with webdataset_gopen.gopen(url) as stream:
        return stream.read() if size is None else stream.read(size)
