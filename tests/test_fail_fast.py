"""Commands that read or refuse a config answer without importing torch."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "lightning", "torchmetrics", "scipy", "matplotlib", "tokenizers", "transformers", "webdataset"}
SCRIPT = f"""
import sys
from lit_illada.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    status = end.code
heavy = {HEAVY} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else status)
"""


@pytest.mark.parametrize(
    ("words", "status", "shown"),
    [
        (["config", "pretrain", "experiment=demo"], 0, "mask_ratio"),
        (["config", "sft"], 0, "sft_data"),
        (["config", "pretrain", "model.depth=8"], 1, "model.depth"),
        (["config", "generate", "generation.block_length=0"], 1, "block_length"),
        (["sweep", "list"], 0, "mask_ratio"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_heavy_module_is_imported(words, status, shown):
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert shown in done.stdout + done.stderr
