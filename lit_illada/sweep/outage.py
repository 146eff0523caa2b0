"""How long is Slurm asked again when it does not answer? Its controller restarts now and then; jobs live on."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from lit_illada.errors import UserError

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Outage:
    """One question that may be left without an answer, again and again, for `limit_s` seconds; told once an outage."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """None where it met a UserError, which is raised once it has met nothing else for `limit_s`."""
        try:
            answer = question()
        except UserError as error:
            now = time.monotonic()
            if self._since is None:
                self._since = now
                log.warning("%s; asking again for up to %g minutes", error, self._limit_s / 60)
            if now - self._since >= self._limit_s:
                raise
            return None
        self._since = None
        return answer
