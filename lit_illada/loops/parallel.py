"""Detection in several processes, for files of many texts."""

import signal
import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Self

from lit_illada.errors import UserError
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.outcome import Outcome, outcome
from lit_illada.loops.records import Generation
from lit_illada.runtime.cores import usable_cores

_BATCH_TEXTS = 32
_MIN_TEXTS_FOR_PROCESSES = 512
_MAX_PROCESSES = 8  # with more, reading the file and receiving the outcomes takes as long as detecting


def outcomes_of(
    generations: Iterable[Generation], config: LoopConfig, num_processes: int
) -> Generator[Outcome, None, None]:
    """The outcomes in the order of the generations. Processes start at the first `next`, if there are enough texts.

    Closing the generator ends them. Texts are read ahead, so an error in the file is raised before the outcomes of the
    last texts before it. Raises UserError if a process is killed.
    """
    remaining = iter(generations)
    first = list(islice(remaining, _MIN_TEXTS_FOR_PROCESSES))
    texts = chain(first, remaining)
    if num_processes == 1 or len(first) < _MIN_TEXTS_FOR_PROCESSES:
        yield from (outcome(text, config) for text in texts)
        return
    workers: list[_Worker] = []
    try:
        for _ in range(num_processes):
            workers.append(_Worker.start(config, workers))
        # every process has one batch at a time, so that neither side can fill a pipe that the other does not read
        busy = [worker for worker in workers if worker.take(list(islice(texts, _BATCH_TEXTS)))]
        for worker in cycle(busy):
            outcomes = worker.receive()
            following = list(islice(texts, _BATCH_TEXTS))
            worker.take(following)
            yield from outcomes
            if not following:
                break
        # in order: the processes after the last one received from still have a batch
        position = busy.index(worker) + 1
        for worker in [*busy[position:], *busy[: position - 1]]:
            yield from worker.receive()
    finally:
        for worker in workers:
            worker.end()


def num_usable_processes() -> int:
    """Usable cores, at most 8. 1 where forking is unsafe: outside Linux, and once torch has started threads."""
    if sys.platform != "linux" or "torch" in sys.modules:
        return 1
    return min(_MAX_PROCESSES, len(usable_cores()))


@dataclass(frozen=True, eq=False)
class _Worker:
    """A forked process that detects loops in the batches it is sent.

    It ends when its connection closes, and so when the parent is killed: no other process has the parent's end.
    """

    process: BaseProcess
    connection: Connection

    @classmethod
    def start(cls, config: LoopConfig, others: Sequence[Self]) -> Self:
        # fork, so that the process imports nothing again
        context = get_context("fork")
        ours, theirs = context.Pipe()
        inherited = [ours, *(other.connection for other in others)]
        process = context.Process(target=_serve, args=(theirs, inherited, config), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def take(self, batch: list[Generation]) -> bool:
        """Send a batch; returns whether there is one."""
        if batch:
            try:
                self.connection.send(batch)
            except OSError:
                raise _killed() from None
        return bool(batch)

    def receive(self) -> list[Outcome]:
        """The outcomes of the batch that was sent, or its exception."""
        try:
            received: list[Outcome] | Exception = self.connection.recv()
        except (EOFError, OSError):
            raise _killed() from None
        if isinstance(received, Exception):
            raise received
        return received

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _killed() -> UserError:
    return UserError(
        "a process that detects loops was killed, often for too little memory: with `taskset -c 0` before the command "
        "there is one process only"
    )


def _serve(connection: Connection, inherited: Sequence[Connection], config: LoopConfig) -> None:
    # Ctrl-C reaches every process of the terminal; the parent ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in inherited:
        other.close()
    try:
        while True:
            batch: list[Generation] = connection.recv()
            try:
                connection.send([outcome(generation, config) for generation in batch])
            except OSError:
                raise
            except Exception as error:
                connection.send(error)
    except (EOFError, OSError):  # the parent has ended
        return
