"""What the progress bar reads of a run, and when."""

import io
from types import SimpleNamespace

import pytest

from lit_illada.runtime.console import Console
from lit_illada.training.callbacks.progress import ProgressBar


class Metrics(dict):
    """Metrics of a trainer that count how often one is read from the device."""

    num_read = 0

    def __getitem__(self, name):
        self.num_read += 1
        return super().__getitem__(name)


@pytest.mark.parametrize(("is_terminal", "num_read"), [(True, 2), (False, 0)])
def test_metrics_are_read_once_per_optimizer_step_and_only_for_a_terminal(is_terminal, num_read):
    output = io.StringIO()
    bar = ProgressBar(SimpleNamespace(tokens_per_s=1000.0), Console(file=output, force_terminal=is_terminal, width=120))
    trainer = SimpleNamespace(
        is_global_zero=True, global_step=3, max_steps=10, callbacks=[], callback_metrics=Metrics({"train/loss": 2.5})
    )
    bar.on_train_start(trainer, None)
    for step in (3, 3, 4, 4, 5):  # of an optimizer step all micro-batches but the last end before it
        trainer.global_step = step
        bar.on_train_batch_end(trainer)
    bar.teardown(trainer, None, "fit")
    assert trainer.callback_metrics.num_read == num_read
    assert ("5/10" in output.getvalue(), "loss 2.500" in output.getvalue()) == (is_terminal, is_terminal)


def test_without_a_terminal_a_validation_prints_one_plain_line():
    output = io.StringIO()
    bar = ProgressBar(SimpleNamespace(tokens_per_s=1000.0), Console(file=output, force_terminal=False, width=120))
    trainer = SimpleNamespace(
        is_global_zero=True, global_step=0, max_steps=10, callbacks=[], callback_metrics={"train/loss": 2.5},
        state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    bar.on_train_start(trainer, None)
    trainer.global_step = 5
    bar.on_validation_end(trainer, None)
    assert output.getvalue().startswith("step 5/10  loss 2.500  1,000 tokens/s")
