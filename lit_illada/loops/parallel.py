"""Detection in several processes, for files of many texts."""

import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context

from lit_illada.errors import UserError
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.outcome import Outcome, outcome
from lit_illada.loops.records import Generation

_BATCH = 32  # texts per message between processes
_WORTH_A_POOL = 512  # texts from which starting processes saves time
_MOST = 8  # processes; beyond them, reading the file and receiving the outcomes takes as long as detecting
_AHEAD = 4  # batches per process that wait, so that memory stays bounded while the file is read


def outcomes_of(generations: Iterable[Generation], config: LoopConfig, num_processes: int) -> Iterator[Outcome]:
    """The outcomes in the order of the generations. Processes start at the first `next`, if there are enough texts.

    An error of reading or detecting is raised after the outcomes before it. Raises UserError if a process is killed.
    """
    remaining = iter(generations)
    first = list(islice(remaining, _WORTH_A_POOL))
    texts = chain(first, remaining)
    if num_processes == 1 or len(first) < _WORTH_A_POOL:
        yield from (outcome(text, config) for text in texts)
        return
    # fork, so that the processes import nothing again
    with ProcessPoolExecutor(num_processes, get_context("fork"), _ignore_interrupts) as pool:
        waiting: deque[Future[list[Outcome]]] = deque()
        try:
            while batch := list(islice(texts, _BATCH)):
                waiting.append(pool.submit(_outcomes, batch, config))
                if len(waiting) > _AHEAD * num_processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a process that detects loops was killed, often for too little memory: with `taskset -c 0` before the "
                "command there is one process only"
            ) from None
        finally:  # after an error or Ctrl-C nobody needs the batches that wait
            pool.shutdown(cancel_futures=True)


def num_usable_processes() -> int:
    """Usable cores, at most 8. 1 where forking is unsafe: outside Linux, and once torch has started threads."""
    if sys.platform != "linux" or "torch" in sys.modules:
        return 1
    return min(_MOST, len(os.sched_getaffinity(0)))


def _outcomes(batch: list[Generation], config: LoopConfig) -> list[Outcome]:
    return [outcome(generation, config) for generation in batch]


def _ignore_interrupts() -> None:
    # Ctrl-C reaches every process of the terminal; the parent ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
