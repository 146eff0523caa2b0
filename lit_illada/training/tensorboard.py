"""What does TensorBoard get beside the curves? The charts' grouping, and the hyper-parameters to compare runs by."""

import math
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lit_illada.run_folder import flatten

_RATIO_BINS = [f"{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)]

# each entry is a regular expression over the tags
_LAYOUT = {
    "Held-out text": {
        "bound, nats a token": ["Multiline", ["val/nll_bound$", "val/unigram_entropy$"]],
        "bits a byte": ["Multiline", ["val/bits_per_byte$"]],
    },
    "Training": {
        "loss (never compare arms by it)": ["Multiline", ["train/loss$"]],
        "cross-entropy of masked tokens": ["Multiline", ["train/nll$"]],
        "gradient norm": ["Multiline", ["train/gradient_norm$"]],
        "learning rate": ["Multiline", ["train/learning_rate$"]],
    },
    "By mask ratio": {
        "validation cross-entropy": ["Multiline", ["val_nll_by_ratio/"]],
        "validation accuracy": ["Multiline", ["val_accuracy_by_ratio/"]],
        "training cross-entropy": ["Multiline", ["train_nll_by_ratio/"]],
        "training accuracy": ["Multiline", ["train_accuracy_by_ratio/"]],
    },
    "Speed": {
        "tokens a second": ["Multiline", ["perf/tokens_per_s$"]],
        "share of the hardware's peak (MFU)": ["Multiline", ["perf/mfu$"]],
    },
}
_METRICS = ("val/nll_bound", "val/bits_per_byte")
_SFT_METRICS = ("val/exact_match_easy", "val/exact_match_harder")
# what arms of an ablation may differ in; names and folders would only fill the table
_COMPARED = ("objective", "optim", "model", "seed", "trainer", "data", "sft_data", "adapter")


def begin_board(logger: TensorBoardLogger, config: dict[str, Any], labels: dict[str, Any] | None = None) -> None:
    """Write the layout and what the HParams tab compares runs by, their last metrics beside it.

    labels: what tells the run from the others of its sweep; None: it is in none, and its settings are written.
    """
    logger.experiment.add_custom_scalars(_LAYOUT)
    # not through the logger, which would begin every metric's curve with a value made up
    names = _METRICS + (_SFT_METRICS if "sft_data" in config else ())
    compared = labels or {key: config[key] for key in _COMPARED if key in config}
    for summary in hparams(flatten(compared), dict.fromkeys(names, math.nan)):
        logger.experiment._get_file_writer().add_summary(summary)
