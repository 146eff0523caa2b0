"""Serves TensorBoard on a folder of runs."""

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from lit_illada.errors import UserError
from lit_illada.runtime.terminal import print_lines


def serve(runs: Path, host: str, port: int) -> NoReturn:
    """Replace this process by TensorBoard. Raises UserError for a folder without runs or a port that is taken."""
    if not any(runs.rglob("events.out.tfevents.*")):
        raise UserError(f"{runs}: no TensorBoard files in this folder; `lit-illada pretrain` writes them to runs/")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port"
            ) from error
    print_lines(f"TensorBoard on {runs}: http://{host}:{port}/  (Ctrl-C ends it)")
    # exec instead of a child process, so that a signal to the command ends the server
    options = ["--logdir", str(runs), "--host", host, "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *options])
