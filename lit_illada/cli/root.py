"""The command group `lit-illada`; its commands are listed in the order of a typical workflow."""

import io
import logging
import os
import sys
from typing import Any

import click

from lit_illada import __version__
from lit_illada.cli import completion
from lit_illada.cli.data import data
from lit_illada.cli.launch import launch
from lit_illada.cli.loops import loops
from lit_illada.cli.sweep import sweep
from lit_illada.cli.tools import bench, board, completion_command, config, doctor, estimate
from lit_illada.cli.train import align, pretrain, sft
from lit_illada.cli.use import convert, generate, score
from lit_illada.runtime import ranks
from lit_illada.runtime.terminal import PrintableFormatter, printable

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Commands(click.Group):
    """Adds a hint to unknown options that are config keys, such as `--lr`, and escapes text quoted in errors."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if isinstance(error, click.NoSuchOption):
                error.message += _key_hint(error)  # type: ignore[misc]
            error.message = printable(error.message, keeps_lines=True)  # type: ignore[misc]
            raise


def _key_hint(error: click.NoSuchOption) -> str:
    """Hint about KEY=VALUE, for a command that has overrides."""
    if error.ctx is None or not any(parameter.name == "overrides" for parameter in error.ctx.command.params):
        return ""
    return completion.key_hint(error.ctx, error.option_name)


@click.group(cls=_Commands, context_settings=_CONTEXT, epilog="Start with:  lit-illada pretrain experiment=demo")
@click.version_option(__version__, prog_name="lit-illada")
@click.option("--debug", is_flag=True, help="Show tracebacks of user errors and debug logs.")
def main(debug: bool) -> None:
    """Pretrain, ablate and understand masked-diffusion language models (iLLaDA, LLaDA).

    Every command composes its config from the YAML files in conf/; write KEY=VALUE to override any value
    (model.num_hidden_layers=8) or to choose another file of a group (model=100m, objective/mask_ratio=cosine).
    """
    # in a locale without Unicode, box characters and Greek letters are written as escapes instead of failing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="backslashreplace")
    # only rank 0 logs
    usual = logging.INFO if ranks.rank() == 0 else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else usual, handlers=[handler])
    # these libraries log details for their own developers at INFO
    for name in ("fsspec", "torch", "filelock", "matplotlib", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # oneDNN caches kernels of 1024 shapes by default: a gigabyte when every batch has another width
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


for _command in (
    pretrain, sft, align, launch, generate, score, sweep, loops, convert, data, config, doctor, estimate, board, bench,
    completion_command,
):  # fmt: skip
    main.add_command(_command)
