"""Builds the data module of each kind of training."""

from lit_illada.alignment.datamodule import AlignDataModule
from lit_illada.alignment.prompts import check_lengths, preference_prompts, task_prompts
from lit_illada.config import AlignConfig, PretrainConfig, SFTConfig
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.sft_datamodule import SFTDataModule
from lit_illada.data.tokenizer import Tokenizer


def build_datamodule(config: PretrainConfig) -> PackedDataModule:
    """Build the data module of a pretraining run; the data set is prepared or opened later."""
    trainer = config.trainer
    return PackedDataModule(
        config.data,
        seed=config.seed,
        batch_rows=trainer.batch_rows,
        micro_batch_rows=trainer.micro_batch_rows,
        total_steps=trainer.max_steps,
        validation_rows=trainer.val_rows,
    )


def build_sft_datamodule(config: SFTConfig, tokenizer: Tokenizer) -> SFTDataModule:
    """Build the data module of a fine-tuning run. tokenizer: that of the model."""
    trainer = config.trainer
    return SFTDataModule(
        config.sft_data,
        tokenizer,
        seed=config.seed,
        batch_rows=trainer.batch_rows,
        micro_batch_rows=trainer.micro_batch_rows,
        total_steps=trainer.max_steps,
        validation_rows=trainer.val_rows,
    )


def build_align_datamodule(config: AlignConfig, tokenizer: Tokenizer) -> AlignDataModule:
    """Build the data module of a resolved alignment config. tokenizer: that of the model.

    Raises UserError for a task without problems, unusable pairs and prompts that are too long.
    """
    template = ChatTemplate(config.template, tokenizer)
    trainer = config.trainer
    if config.preferences is None:
        prompts = task_prompts(config.task, config.problems, template, trainer.val_rows)
    else:
        prompts = preference_prompts(config.preferences, template, trainer.val_rows)
    longest = config.model.max_position_embeddings
    check_lengths([*prompts.train, *prompts.held_out], config.generation.max_new_tokens, longest)
    return AlignDataModule(
        prompts,
        tokenizer,
        seed=config.seed,
        group_size=config.alignment.group_size,
        updates=config.alignment.updates,
        batch_rows=trainer.batch_rows,
        micro_batch_rows=trainer.micro_batch_rows,
        total_steps=trainer.max_steps,
        rollout_rows=config.rollout_rows,
    )
