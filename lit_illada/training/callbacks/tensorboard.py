"""TensorBoard content beside the curves: grouped charts, hyper-parameters, the unigram line and generated texts."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lit_illada.run_folder import flatten
from lit_illada.training.metrics import OVER_TOKENS

_RATIO_BINS = [f"{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)]

# each entry is a regular expression over the tags
_LAYOUT = {
    "Held-out text": {
        "bound, nats/token": ["Multiline", ["^val/nll_bound$"]],
        "bits per byte": ["Multiline", ["^val/bits_per_byte$"]],
        "exact match of answers": ["Multiline", ["^val/exact_match_(easy|harder)$"]],
    },
    "Over training tokens": {
        "bound, nats/token": ["Multiline", ["over_tokens/val/nll_bound$"]],
        "cross-entropy of masked tokens, nats/token": ["Multiline", ["over_tokens/train/nll$"]],
        "exact match of answers": ["Multiline", ["over_tokens/val/exact_match_"]],
    },
    "Training": {
        "loss (never compare arms by it)": ["Multiline", ["^train/loss$"]],
        "cross-entropy of masked tokens": ["Multiline", ["^train/nll$"]],
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
        "tokens/s": ["Multiline", ["perf/tokens_per_s$"]],
        "fraction of the hardware's peak (MFU)": ["Multiline", ["perf/mfu$"]],
    },
}
_ALIGN_LAYOUT = {
    "Held-out problems": {
        "accuracy, 95 % interval": ["Margin", ["val/accuracy", "val/accuracy_low", "val/accuracy_high"]],
        "change since the start, paired": [
            "Margin",
            ["val/accuracy_change", "val/accuracy_change_low", "val/accuracy_change_high"],
        ],
        "accuracy by difficulty": ["Multiline", ["^val/accuracy_(?!low$|high$|change)"]],
        "loops, and loops or no end": ["Multiline", ["^val/(loop|endless)_rate$"]],
        "tokens": ["Multiline", ["^val/length$"]],
    },
    "Rollouts": {
        "reward, 95 % interval": ["Margin", ["rollout/reward", "rollout/reward_low", "rollout/reward_high"]],
        "reward by term": ["Multiline", ["^rollout/reward_(?!low|high)[a-z_0-9]*(?<!_low)(?<!_high)$"]],
        "groups of equal rewards": ["Multiline", ["^rollout/flat_groups$"]],
        "loops, and loops or no end": ["Multiline", ["^rollout/(loop|endless)_rate$"]],
        "tokens": ["Multiline", ["^rollout/length$"]],
        "entropy, nats/token": ["Multiline", ["^rollout/entropy$"]],
    },
    "Updates": {
        "fraction clipped": ["Multiline", ["^train/clip_fraction$"]],
        "KL and log ratio": ["Multiline", ["^train/(kl|kl_old|log_ratio)$"]],
        "sampler against learner, nats/token": ["Multiline", ["^val/mismatch$"]],
        "gradient norm": ["Multiline", ["train/gradient_norm$"]],
        "loss (0 on average at the start)": ["Multiline", ["^train/loss$"]],
        "learning rate": ["Multiline", ["train/learning_rate$"]],
    },
    "Cost": {
        "forward passes per completion": ["Multiline", ["^perf/passes_"]],
        "FLOPs": ["Multiline", ["^perf/flops$"]],
    },
}
_METRICS = ("val/nll_bound", "val/bits_per_byte")
_ALIGN_METRICS = ("val/accuracy", "val/loop_rate")
_SFT_METRICS = ("val/exact_match_easy", "val/exact_match_harder")
# TensorBoard labels and colours curves by run, so the baseline of the bound is a separate run
UNIGRAM_RUN = "unigram frequencies of training"
# config groups in which runs are usefully compared; names and folders would only fill the table
_COMPARED = ("objective", "optim", "model", "seed", "trainer", "data", "sft_data", "adapter", "alignment", "task")


def begin_board(
    logger: TensorBoardLogger,
    config: dict[str, Any],
    labels: dict[str, Any] | None = None,
    *,
    unigram_cross_entropy: float,
    num_steps: int,
    num_tokens: int,
) -> None:
    """Write the layout of the charts, the hyper-parameters of the HParams tab and the unigram line of a new run.

    Args:
        labels: settings that distinguish the run within its sweep; None: it belongs to none, and its config is written.
        unigram_cross_entropy: of the validation text, nats/token; NaN draws no line.
        num_steps, num_tokens: length of the run, which the line spans.
    """
    is_align = "alignment" in config
    logger.experiment.add_custom_scalars(_ALIGN_LAYOUT if is_align else _LAYOUT)
    # not through the logger, which would start every metric's curve with a made-up value
    names = _ALIGN_METRICS if is_align else _METRICS + (_SFT_METRICS if "sft_data" in config else ())
    compared = labels or {key: config[key] for key in _COMPARED if key in config}
    experiment, *session = hparams(flatten(compared), dict.fromkeys(names, math.nan))
    first = "alignment." if is_align else "objective."
    _put_first(experiment, first if labels is None else "arm")
    for summary in (experiment, *session):
        logger.experiment._get_file_writer().add_summary(summary)
    _draw_unigram_line(logger, unigram_cross_entropy, num_steps, num_tokens)


def _put_first(experiment: Summary, prefix: str) -> None:
    """Show the hyper-parameters with this prefix first in the HParams tab.

    TensorBoard lists hyper-parameters marked as differing between runs first, and the others by name.
    """
    metadata = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(metadata.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name.startswith(prefix)
    metadata.content = content.SerializeToString()


def _draw_unigram_line(logger: TensorBoardLogger, cross_entropy: float, num_steps: int, num_tokens: int) -> None:
    """Draw the cross-entropy of the training data's token frequencies into the charts of the bound.

    It is a horizontal line of a separate run.
    """
    if math.isnan(cross_entropy):
        return
    folder = Path(logger.log_dir, UNIGRAM_RUN)
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before its first checkpoint
    with SummaryWriter(str(folder)) as writer:
        for tag, end in (("val/nll_bound", num_steps), (f"{OVER_TOKENS}/val/nll_bound", num_tokens)):
            for step in (0, end):
                writer.add_scalar(tag, cross_entropy, step)


def add_completion(loggers: Sequence[Logger], tag: str, prompt: str, completion: str, step: int) -> None:
    """Show a generated text in TensorBoard, below its prompt."""
    text = f"**Prompt**\n\n{_quoted(prompt)}\n\n**Completion**\n\n{_quoted(completion)}"
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text, step)


def _quoted(text: str) -> str:
    """The text as a Markdown code block."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (empty)"
