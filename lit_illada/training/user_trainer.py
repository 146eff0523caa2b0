"""Reconciles a Trainer that the user built with the config that the module was built from.

The config defines the optimizer steps of a run: `batch_rows` rows over all ranks, `max_steps` of them. Settings left at
Lightning's defaults are derived from the config; those that contradict it raise UserError.
"""

import logging

from lightning.pytorch import Trainer

from lit_illada.errors import UserError
from lit_illada.training.distributed.parallel import num_data_ranks

log = logging.getLogger(__name__)


def reconcile(trainer: Trainer, max_steps: int) -> None:
    """Set accumulate_grad_batches and max_steps of a Trainer from the data module and the config.

    Args:
        trainer: a Trainer that is about to fit.
        max_steps: optimizer steps of the config.

    Raises:
        UserError: the Trainer sets another batch size, or more steps than the learning-rate schedule has.
    """
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise UserError(
            "Trainer(overfit_batches=…) is not supported, since rows are a stream: train on a "
            "small data set instead, such as data=text with one file"
        )
    _derive_accumulation(trainer)
    if trainer.max_steps == -1:
        trainer.fit_loop.epoch_loop.max_steps = max_steps
    elif trainer.max_steps > max_steps:
        raise UserError(
            f"Trainer(max_steps={trainer.max_steps}) is more than the config's trainer.max_steps={max_steps}, where "
            f"the learning rate's schedule ends: set trainer.max_steps={trainer.max_steps} in the config, or leave it "
            "out of the Trainer"
        )


def check_batch(trainer: Trainer, micro_batch_rows: int, batch_rows: int) -> None:
    """Raise UserError unless an optimizer step, over all ranks and micro-batches, has `batch_rows` rows."""
    ranks, accumulated = num_data_ranks(trainer), trainer.accumulate_grad_batches
    rows = micro_batch_rows * ranks * accumulated
    if rows == batch_rows:
        return
    raise UserError(
        f"an optimizer step would have {rows} rows ({micro_batch_rows} × accumulate_grad_batches={accumulated} × "
        f"{ranks} ranks) instead of the config's trainer.batch_rows={batch_rows}: give trainer.fit the data module "
        "(datamodule=...), from which the Trainer's accumulation is derived"
    )


def _derive_accumulation(trainer: Trainer) -> None:
    derived = getattr(getattr(trainer, "datamodule", None), "accumulation", None)
    given = trainer.accumulate_grad_batches
    if derived is None or given == derived:
        return
    if given != 1:
        raise UserError(
            f"Trainer(accumulate_grad_batches={given}), but the config's batch has {derived} micro-batches per rank "
            "(trainer.batch_rows / trainer.micro_batch_rows / devices): leave accumulate_grad_batches out, or change "
            "trainer.micro_batch_rows"
        )
    log.info("accumulate_grad_batches=%d, from trainer.batch_rows and trainer.micro_batch_rows", derived)
    trainer.accumulate_grad_batches = derived
