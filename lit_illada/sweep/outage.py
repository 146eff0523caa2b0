"""Retries of Slurm commands: its controller restarts now and then, while jobs keep running."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from lit_illada.errors import UserError

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Outage:
    """Tolerates failures of one kind of Slurm command for `limit_s` seconds. Logs once per outage."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """Answer of the question; None where it raised UserError. Raises that error after `limit_s` of failures."""
        try:
            answer = question()
        except UserError as error:
            now = time.monotonic()
            if self._since is None:
                self._since = now
                log.warning("%s; retrying for up to %g minutes", error, self._limit_s / 60)
            if now - self._since >= self._limit_s:
                raise
            return None
        self._since = None
        return answer
