"""How do several processes write shards, so that none outlives the preparation or imports torch?

Plain child processes that take pickled jobs from their standard input: when the parent is killed, even by SIGKILL,
the input ends and so do they; and a user's script needs no `if __name__ == "__main__"` as multiprocessing would ask.
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
        self._children = [_start(tokenizer_folder) for _ in range(num_processes)]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="shard")

    def submit(self, job: ShardJob) -> Future[ShardRecord]:
        """The shard's record, later; UserError or OSError if the process met one."""
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
            with contextlib.suppress(OSError):  # the child is gone and its last job was never sent
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
                "lower data.num_processes or data.shard_tokens, and run it again to go on"
            ) from error
        finally:
            self._idle.put(child)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _start(tokenizer_folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "lit_illada.data.prepare.shard_pool", str(tokenizer_folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _serve(tokenizer_folder: str, jobs: BinaryIO, answers: BinaryIO) -> None:
    """The child's life: a job in, a record or an error out, until the jobs end."""
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
        except BrokenPipeError:  # the parent was killed; the shard is written and will be found
            os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
