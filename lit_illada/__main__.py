"""`python -m lit_illada`, and so `torchrun -m lit_illada`."""

from lit_illada.cli.root import main

main(prog_name="lit-illada")
