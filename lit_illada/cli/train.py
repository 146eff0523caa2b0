"""Commands that train: `pretrain`, `sft` and `align`."""

from pathlib import Path

import click

from lit_illada.cli.frame import guarded, overrides_argument, refuse_early, refuse_resume_early
from lit_illada.errors import UserError


@click.command(
    epilog="""\b
Examples:
  lit-illada pretrain experiment=demo
  lit-illada pretrain data=text data.source.paths='[books/*.txt]' data.dir=data/books model=nano
  lit-illada pretrain experiment=demo objective/mask_ratio=cosine objective/weighting=flat
  lit-illada pretrain --resume runs/demo-20260101-120000 trainer.max_steps=2000
  lit-illada pretrain --init-from converted/llada data=prepared data.dir=data/docs
"""
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Resume this run folder from its last checkpoint.",
)
@click.option(
    "--init-from",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Initialise weights and model from a run, a converted folder or a checkpoint file.",
)
@overrides_argument
@guarded
def pretrain(resume: Path | None, init_from: Path | None, overrides: tuple[str, ...]) -> None:
    """Pretrain a model: prepare the data if needed, train, validate, save.

    Curves, samples, checkpoints and the resolved config go to a new folder under runs/. Ctrl-C saves and stops.
    """
    if init_from is not None:
        if resume is not None:
            raise UserError("give --resume or --init-from, not both: a resumed run loads its own weights")
        from lit_illada.overrides import quoted

        overrides = (*overrides, f"init_from={quoted(str(init_from))}")
    if resume is None:
        refuse_early("pretrain", overrides, init_from)
    else:
        refuse_resume_early("pretrain", resume, overrides)
    from lit_illada.commands.pretrain import run_pretrain

    run_pretrain(overrides, resume)


@click.command(
    epilog="""\b
Examples:
  lit-illada sft runs/demo-20260101-120000 experiment=sft/demo
  lit-illada sft runs/demo-20260101-120000 sft_data=messages sft_data.source.paths='[chats.jsonl]' epochs=3
  lit-illada sft converted/llada sft_data/rows=llada objective=llada_sft optim=llada_sft adapter=lora
  lit-illada sft --resume runs/sft-20260101-130000
"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Resume this run folder from its last checkpoint.",
)
@overrides_argument
@guarded
def sft(checkpoint: Path | None, resume: Path | None, overrides: tuple[str, ...]) -> None:
    """Fine-tune the model of CHECKPOINT (a run, a converted folder or their file) on instructions.

    Without files it trains on generated chained arithmetic. Every validation checks the answers to held-out problems,
    both as easy as the training problems and harder.
    """
    checkpoint, overrides = _checked("sft", checkpoint, resume, overrides)
    from lit_illada.commands.sft import run_sft

    run_sft(checkpoint, overrides, resume)


@click.command(
    epilog="""\b
Examples:
  lit-illada align runs/sft-20260101-130000 experiment=align/demo
  lit-illada align runs/sft-20260101-130000 alignment=d1 task=countdown prompts_per_step=16
  lit-illada align runs/sft-20260101-130000 alignment/estimator=elbo alignment.estimator.num_draws=4
  lit-illada align runs/sft-20260101-130000 alignment=vrpo preferences=pairs.jsonl
  lit-illada align runs/sft-20260101-130000 alignment.reward.terms='[{term: correct}, {term: loop, weight: 0.5}]'
  lit-illada align --resume runs/align-20260101-140000
"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Resume this run folder from its last checkpoint.",
)
@overrides_argument
@guarded
def align(checkpoint: Path | None, resume: Path | None, overrides: tuple[str, ...]) -> None:
    """Align the fine-tuned model of CHECKPOINT by reinforcement learning on a task, or by preference pairs.

    Each step samples alignment.group_size completions of prompts_per_step problems, rewards them by
    alignment.reward.terms and updates the model alignment.updates times. alignment=NAME chooses a published method;
    its parts (alignment/estimator, form, advantage, regulariser) can be replaced one by one. Validations report the
    accuracy on held-out problems, paired with the start. The model should already solve some of the problems, but not
    all: a prompt whose completions all get the same reward gives no gradient.
    """
    checkpoint, overrides = _checked("align", checkpoint, resume, overrides)
    from lit_illada.commands.align import run_align

    run_align(checkpoint, overrides, resume)


def _checked(
    command: str, checkpoint: Path | None, resume: Path | None, overrides: tuple[str, ...]
) -> tuple[Path | None, tuple[str, ...]]:
    """Return checkpoint and overrides of a run that starts from a checkpoint. Raises UserError early for mistakes."""
    if resume is not None:
        # with --resume there is no checkpoint: click took the first override for it
        overrides = overrides if checkpoint is None else (str(checkpoint), *overrides)
        refuse_resume_early(command, resume, overrides)
        return None, overrides
    if checkpoint is not None:
        refuse_early(command, overrides, checkpoint)
    return checkpoint, overrides
