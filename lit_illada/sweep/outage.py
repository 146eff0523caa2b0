"""Tolerates outages of the Slurm controller, which is restarted now and then while jobs continue to run."""

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

    def call(self, command: Callable[[], Answer]) -> Answer | None:
        """Result of a Slurm command; None if it raised UserError. Raises that error after `limit_s` of failures."""
        try:
            answer = command()
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
