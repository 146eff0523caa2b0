"""A pool of processes that write shards.

Plain child processes that read pickled jobs from standard input: when the parent is killed, even by SIGKILL, the input
ends and so do they. They import no torch, and a user's script needs no `if __name__ == "__main__"` as with
multiprocessing.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

from lit_illada.data.dataset.manifest import ShardRecord
from lit_illada.data.dataset.shards import ShardJob, write_shard
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError


class ShardPool:
    """Writes shards with `num_processes` processes; a context manager."""

    def __init__(self, tokenizer_folder: Path, num_processes: int) -> None:
        self.num_processes = num_processes
        self._children = [
            start_child("lit_illada.data.prepare.shard_pool", str(tokenizer_folder)) for _ in range(num_processes)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="shard")

    def submit(self, job: ShardJob) -> Future[ShardRecord]:
        """A future of the shard's record; it raises the UserError or OSError of the process."""
        return self._threads.submit(self._run, job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        failed = exception[0] is not None
        self._threads.shutdown(wait=not failed, cancel_futures=failed)
        for child in self._children:
            if failed:
                child.kill()
            assert child.stdin is not None
            with contextlib.suppress(OSError):  # the child has ended before its last job was sent
                child.stdin.close()
            child.wait()
        self._threads.shutdown(wait=True)
        for child in self._children:
            assert child.stdout is not None
            child.stdout.close()

    def _run(self, job: ShardJob) -> ShardRecord:
        child = self._idle.get()
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            pickle.dump(job, child.stdin, pickle.HIGHEST_PROTOCOL)
            child.stdin.flush()
            answer = pickle.load(child.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise UserError(
                f"the process writing {job.file.name} ended with code {child.wait()} (-9 is often too little memory): "
                "lower data.num_processes or data.shard_tokens, and run it again to resume"
            ) from error
        finally:
            self._idle.put(child)
        if isinstance(answer, Exception):
            raise answer
        return answer


def start_child(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts `python -m module` with pipes for pickled messages, and one thread, as the processes run in parallel."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _serve(tokenizer_folder: str, jobs: BinaryIO, answers: BinaryIO) -> None:
    """Runs in the child: for each job it reads, writes a record or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    tokenizer = Tokenizer.load(tokenizer_folder)
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        answer: ShardRecord | Exception
        try:
            answer = write_shard(job, tokenizer)
        except (OSError, UserError) as error:
            answer = error
        try:
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:  # the parent was killed; the next preparation reuses the shard
            os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
