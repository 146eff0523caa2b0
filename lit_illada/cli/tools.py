"""Tools around training: `config`, `doctor`, `estimate`, `board`, `bench`, `completion`."""

from pathlib import Path

import click

from lit_illada.cli import completion
from lit_illada.cli.frame import file_to_write, guarded, overrides_argument
from lit_illada.errors import UserError
from lit_illada.runtime.terminal import print_content


@click.command(
    epilog="""\b
Examples:
  lit-illada config pretrain experiment=demo model.num_hidden_layers=8
  lit-illada config --explain optim.schedule.warmup_steps
  lit-illada config sft --explain trainer.precision
"""
)
@click.argument(
    "command",
    type=click.Choice(["pretrain", "sft", "align", "generate", "score", "data", "examples", "loops"]),
    required=False,
)
@click.option("--explain", "key", metavar="KEY", help="Print what a key means: type, default, allowed values, source.")
@overrides_argument
@guarded
def config(command: str | None, key: str | None, overrides: tuple[str, ...]) -> None:
    """Print the resolved config that COMMAND would run with."""
    if key is not None:
        from lit_illada.commands.explain import explain, show

        print_content(show(explain(key, command, overrides)), end="")
        return
    if command is None:
        raise UserError("name the command whose config to print, such as: lit-illada config pretrain")
    from lit_illada.config import load
    from lit_illada.schema import dump

    print_content(dump(load(command, overrides)), end="")


@click.command(epilog="\b\nExample:\n  lit-illada doctor --json doctor.json\n")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    callback=file_to_write,
    help="Also write the findings to this file.",
)
@guarded
def doctor(json_file: Path | None) -> None:
    """Check this machine and its packages; each problem is printed with the command that fixes it.

    The exit status is 1 only if something that every run needs is broken.
    """
    from lit_illada.runtime import packages

    if missing := packages.missing():
        packages.print_missing(missing, json_file)
        raise SystemExit(1)
    from lit_illada.commands.doctor import run_doctor

    if not run_doctor(json_file):
        raise SystemExit(1)


@click.command(
    epilog="""\b
Examples:
  lit-illada estimate pretrain experiment=demo
  lit-illada estimate pretrain model=1b model.vocab_size=32000 --gpu h100 --gpus 8 --tokens 1e11 --mfu 0.4
  lit-illada estimate sft runs/demo-20260101-120000 experiment=sft/demo
  lit-illada estimate sft +model=illada_8b adapter=lora --gpu h200 --gpus 1
  lit-illada estimate align +model=illada_8b alignment=espo adapter=lora --gpu h200 --gpus 8
"""
)
@click.argument("command", type=click.Choice(["pretrain", "sft", "align"]))
@click.argument(
    "overrides", nargs=-1, metavar="[CHECKPOINT] [KEY=VALUE]...", shell_complete=completion.complete_override
)
@click.option("--gpu", default="cpu", show_default=True, help="h200, h100, a100, or cpu, measured on this machine.")
@click.option("--gpus", type=int, help="Number of devices.  [default: the config's devices × nodes]")
@click.option("--tokens", type=float, help="Training tokens, such as 1e12.  [default: the config's]")
@click.option("--mfu", type=float, help="Fraction of the peak speed that is reached.  [default: 0.35, on a CPU 0.15]")
@guarded
def estimate(
    command: str, overrides: tuple[str, ...], gpu: str, gpus: int | None, tokens: float | None, mfu: float | None
) -> None:
    """Estimate what a training run needs: parameters, memory per device by part, FLOPs, days, disk.

    sft and align start from the model of CHECKPOINT, or from one without weights such as +model=illada_8b. For align,
    passes and time of rollout, scoring and update are printed for completions that fill their canvas.
    No GPU is needed. Memory counts tensors only; the CUDA context takes one or two GB more.
    """
    from lit_illada.commands.estimate import run_estimate

    base = None
    if overrides and ("=" not in overrides[0] or Path(overrides[0]).exists()):  # step=00000100.ckpt also contains one
        base, overrides = Path(overrides[0]), overrides[1:]
    run_estimate(command, overrides, gpu, gpus, tokens, mfu, base)


@click.command(epilog="\b\nExample:\n  lit-illada board runs --port 6006\n")
@click.argument("runs", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--port", type=click.IntRange(0, 65535), default=6006, show_default=True, help="0: any free port.")
@click.option("--host", default="localhost", show_default=True)
@guarded
def board(runs: Path, port: int, host: str) -> None:
    """Open TensorBoard on the runs folder."""
    from lit_illada.commands.board import serve

    serve(runs, host, port)


@click.command(
    epilog="""\b
Examples:
  lit-illada bench data loop --json bench.json
  lit-illada bench step --profile profile
  lit-illada bench gpu --dry-run
  lit-illada bench answers --checkpoint runs/sft-20260101-130000 --twin runs/sft-20260101-140000 --out decoding
  lit-illada bench startup --against v0.1.0
  lit-illada bench peers
"""
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    callback=file_to_write,
    help="Also write the figures to this file.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Diffusion run for `answers`: speed, and exact match on its held-out problems or, if pretrained, the bound.",
)
@click.option(
    "--twin",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Autoregressive checkpoint with the tokenizer of --checkpoint, to measure beside it.",
)
@click.option("--new-tokens", type=click.IntRange(min=1), help="Tokens per text of `answers` (default: the run's).")
@click.option(
    "--threshold",
    "thresholds",
    type=click.FloatRange(min=0, max=1, min_open=True),
    multiple=True,
    help="Confidence threshold of `answers` (default: 0.9, 0.7 and 0.5). Repeatable.",
)
@click.option("--repeats", type=click.IntRange(min=1), help="Measurements of every figure of `answers` (default: 5).")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the table of `answers` as CSV and JSON, with its commit and command.",
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the trace of a step for chrome://tracing, and its time by part and by operator.",
)
@click.option("--dry-run", is_flag=True, help="Run `gpu` at tiny sizes on the CPU.")
@click.option(
    "--peer",
    "own_peers",
    multiple=True,
    metavar="NAME=FILE",
    help="Program with the training step of another library, for `peers`; see lit_illada/bench/README.md. Repeatable.",
)
@click.option(
    "--against",
    metavar="REVISION",
    help="Commit, tag or branch: `startup` runs its commands with that code and with this in turn (needs git).",
)
@guarded
def bench(
    names: tuple[str, ...],
    json_file: Path | None,
    checkpoint: Path | None,
    twin: Path | None,
    new_tokens: int | None,
    thresholds: tuple[float, ...],
    repeats: int | None,
    out: Path | None,
    profile: Path | None,
    dry_run: bool,
    own_peers: tuple[str, ...],
    against: str | None,
) -> None:
    """Benchmark data loading, the training step, a plain reference step, adaptation, the loss's memory, the loop's
    overhead, generation, answers, loop detectors and start-up; `gpu` benchmarks everything that runs on a GPU, `peers`
    compares with other libraries, which it installs in .venv-peers.

    Without NAME, all benchmarks but peers run; gpu only with a CUDA device, instead of step. Figures are medians with
    their spread; ratios come from alternating runs.
    """
    from lit_illada.bench.run import AnswersOptions, run

    options = AnswersOptions(checkpoint, twin, new_tokens, thresholds, repeats, out)
    run(names, json_file, options, profile, dry_run, own_peers, against)


@click.command("completion", epilog="\b\nExample:\n  lit-illada completion bash >> ~/.bashrc\n")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that completes commands, options and config groups in SHELL."""
    print_content(completion.script(click.get_current_context().find_root().command, shell))
