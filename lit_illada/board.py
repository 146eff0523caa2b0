"""TensorBoard on the runs: how its charts are grouped, and how it is served."""

import socket
import subprocess
import sys
from pathlib import Path

from lit_illada.errors import UserError

_RATIO_BINS = [f"{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)]

LAYOUT = {
    "Held-out text": {
        "bound, nats a token": ["Multiline", ["val/nll_bound", "val/unigram_entropy"]],
        "bits a byte": ["Multiline", ["val/bits_per_byte"]],
    },
    "Training": {
        "loss (never compare arms by it)": ["Multiline", ["train/loss"]],
        "cross-entropy of masked tokens": ["Multiline", ["train/nll"]],
        "gradient norm": ["Multiline", ["train/gradient_norm"]],
        "learning rate": ["Multiline", ["train/learning_rate"]],
    },
    "By mask ratio": {
        "validation cross-entropy": ["Multiline", [f"val_nll_by_ratio/{name}" for name in _RATIO_BINS]],
        "validation accuracy": ["Multiline", [f"val_accuracy_by_ratio/{name}" for name in _RATIO_BINS]],
    },
    "Speed": {
        "tokens a second": ["Multiline", ["perf/tokens_per_s"]],
        "share of the hardware's peak (MFU)": ["Multiline", ["perf/mfu"]],
    },
}


def serve(runs: Path, host: str, port: int) -> None:
    """Serve until interrupted. Raises UserError for a folder without runs or a port that is taken."""
    if not any(runs.rglob("events.out.tfevents.*")):
        raise UserError(f"{runs}: no curves there; `lit-illada pretrain` writes them to runs/")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port"
            ) from error
    print(f"TensorBoard on {runs}: http://{host}:{port}/  (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", host, "--port", str(port)]
    try:
        subprocess.run(command, check=False)
    except KeyboardInterrupt:
        print()
