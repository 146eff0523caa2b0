"""Entry point of `python -m lit_illada.cli`."""

from lit_illada.cli.root import main

main(prog_name="lit-illada")
