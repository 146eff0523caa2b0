"""Reads URLs from servers that may be slow, busy or unreachable for a while.

Transient failures (no connection, a time-out, a body cut short, 408, 429, 5xx) are retried after a pause that doubles,
with jitter so that the ranks of a job do not retry all at once; a 404 is final. Every pause is logged.
"""

import http.client
import logging
import random
import subprocess
import time
import urllib.error
import urllib.request

from webdataset.gopen import gopen

from lit_illada.errors import UserError

log = logging.getLogger(__name__)
FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_TIMEOUT_S = 60.0
_MAY_MEND = {408, 425, 429}


class NotFoundError(UserError):
    """There is nothing at an address whose server answers."""


def fetch(url: str, attempts: int, max_bytes: int | None = None) -> bytes:
    """The content of a URL (http, https; any other as webdataset opens it), tried up to `attempts` times.

    max_bytes: at most one byte more than this is read, so that callers see that there is more; None reads everything.
    Raises UserError after the last attempt, and NotFoundError at once.
    """
    jitter = random.Random()
    for attempt in range(1, attempts + 1):
        try:
            return _read(url, max_bytes)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise NotFoundError(f"{url} is not there (HTTP {error.code} {error.reason})") from error
            if error.code < 500 and error.code not in _MAY_MEND:
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
            if size is not None and len(content) < size and answer.length:  # read(size) ignores a body cut short
                raise http.client.IncompleteRead(content, answer.length)
            return content
    with gopen(url) as stream:
        return stream.read() if size is None else stream.read(size)
