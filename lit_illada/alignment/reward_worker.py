"""Computes rewards in a child process, so that a term that hangs can be ended. No torch.

A time limit inside the process would not stop a call into C, such as 9**9**9. The child is a fork: terms and checks
need not be importable, as those of a user's own file are not. It ends with its parent, whose end of the pipe it closes.
"""

import logging
import math
import multiprocessing
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

from lit_illada.alignment.rewards import Answered, Check, OnFailure, RewardConfig
from lit_illada.errors import UserError
from lit_illada.runtime.terminal import one_line

log = logging.getLogger(__name__)
_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True)
class Rewards:
    """Rewards of completions, in their order."""

    total: list[float]
    """Weighted sum of the terms; a failed one counts 0."""
    by_term: dict[str, list[float | None]]
    """Values without weight by name of the term; None: it failed."""
    failures: Counter[str]
    """Number of failures by name of the term."""
    messages: list[str]
    """One line per failure."""


class RewardWorker:
    """Computes rewards under a time limit; a context manager."""

    def __init__(self, config: RewardConfig, check: Check) -> None:
        self.config = config
        self._check = check
        self._process: Any = None
        self._connection: Connection | None = None

    def __call__(self, answered: Sequence[Answered]) -> Rewards:
        """Raises UserError at the first failure if `on_failure` is stop."""
        names = self.config.names
        by_term: dict[str, list[float | None]] = {name: [] for name in names}
        failures: Counter[str] = Counter()
        messages: list[str] = []
        total = []
        for number, one in enumerate(answered):
            values = []
            for index, name in enumerate(names):
                value, error = self._value(one, index)
                by_term[name].append(value)
                values.append(value or 0.0)
                if error is None:
                    continue
                message = one_line(f"reward {name}, completion {number}: {error}")
                if self.config.on_failure is OnFailure.STOP:
                    raise UserError(f"{message}: fix the term, or set alignment.reward.on_failure=zero")
                failures[name] += 1
                messages.append(message)
            total.append(sum(each.weight * value for each, value in zip(self.config.terms, values, strict=True)))
        for name, count in failures.items():
            log.warning("reward %s failed for %d of %d completions", name, count, len(answered))
        return Rewards(total, by_term, failures, messages)

    def _value(self, answered: Answered, index: int) -> tuple[float | None, str | None]:
        """(value, None), or (None, reason of the failure)."""
        connection = self._connection or self._start()
        try:
            connection.send((answered, index))
            if connection.poll(self.config.time_limit_s):
                return connection.recv()
        except (EOFError, ConnectionError):
            self.close()
            return None, "ended the process that computes rewards"
        except BaseException:  # such as Ctrl-C: a later reply would be taken for that of another completion
            self.close()
            raise
        self.close()
        return None, f"exceeds the time limit of {self.config.time_limit_s:g} s"

    def _start(self) -> Connection:
        context = multiprocessing.get_context(_METHOD)
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._connection, self.config, self._check)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()
        self._connection.recv()  # started: from here on the time limit counts
        return self._connection

    def close(self) -> None:
        """Ends the child process; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(connection: Connection, parents_end: Connection, config: RewardConfig, check: Check) -> None:
    """Answer (completion, index of the term) by (value, None) or (None, error) until the parent is gone."""
    parents_end.close()
    # Ctrl-C reaches the whole process group: the parent decides when to end; its own handlers are not for the child
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection.send(None)
    while True:
        try:
            answered, index = connection.recv()
        except (EOFError, OSError):
            return
        try:
            value = float(config.terms[index].term(answered, check))
            reply = (value, None) if math.isfinite(value) else (None, f"gives {value}, not a finite number")
        except Exception as error:  # a user's term may raise anything
            reply = (None, f"raises {type(error).__name__}: {error}")
        connection.send(reply)
