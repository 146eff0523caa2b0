"""Divided preparation by several processes of one machine, each with a part of the files.

Plain child processes, as in `shard_pool`: they import no torch, and a user's script needs no `__main__` guard.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from lit_illada.data.config import DataConfig
from lit_illada.data.corpora.sources import files_of
from lit_illada.data.dataset.manifest import Manifest
from lit_illada.data.prepare.division import Part
from lit_illada.data.prepare.shard_pool import start_child
from lit_illada.data.prepare.steps import Step, begin, run_step
from lit_illada.errors import UserError


def prepare_by_parts(
    config: DataConfig, workers: int, *, overwrite: bool = False, on_step: Callable[[Step], None] = lambda step: None
) -> Manifest:
    """Like `prepare`, to the same bytes, with the files divided among at most `workers` processes that also read them.

    There are at most as many processes as files, since a file belongs to one part.
    """
    manifest = begin(config, overwrite=overwrite)
    workers = min(workers, len(files_of(config.source)))
    for step in Step if manifest is None else ():
        on_step(step)
        if step in (Step.scan, Step.write):
            # the parts already run in parallel, so each of them tokenises with one process
            _all_parts(step, replace(config, num_processes=1), workers)
        else:
            manifest = run_step(step, config, Part(0, workers))
    assert manifest is not None
    return manifest


def _all_parts(step: Step, config: DataConfig, workers: int) -> None:
    children = [start_child("lit_illada.data.prepare.step_workers") for _ in range(workers)]
    try:
        for index, child in enumerate(children):
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the child has ended, which `_check` reports
                pickle.dump((step, config, Part(index, workers)), child.stdin)
                child.stdin.flush()
        for index, child in enumerate(children):
            _check(child, Part(index, workers))
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
            child.stdout.close()


def _check(child: "subprocess.Popen[bytes]", part: Part) -> None:
    assert child.stdout is not None
    answer = child.stdout.read()
    if child.wait() or not answer:
        raise UserError(
            f"the process of part {part.index}/{part.count} ended with code {child.returncode} (-9 is often too little "
            "memory): use fewer --workers, and run it again to resume"
        )
    error = pickle.loads(answer)
    if error is not None:
        raise error


def _serve() -> None:
    """Runs in the child: reads a step and a part, writes None or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    step, config, part = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    error: Exception | None = None
    try:
        run_step(step, config, part)
    except (OSError, UserError) as raised:
        error = raised
    pickle.dump(error, sys.stdout.buffer)


def _end_with_the_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # blocks until the parent ends
    os._exit(1)


if __name__ == "__main__":
    _serve()
