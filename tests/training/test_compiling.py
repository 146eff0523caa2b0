"""The choice of compilation."""

import logging
import shutil

import pytest
import torch

from lit_illada.build.models import _is_compiled
from lit_illada.config import load
from lit_illada.training.compiling import is_worth_compiling

CPU, LONG, SHORT = torch.device("cpu"), 1e18, 1e9


@pytest.mark.parametrize(
    ("flops", "tool", "expected", "reason"),
    [
        (LONG, "/bin/g++", True, "the blocks are compiled: it saves about"),
        (SHORT, "/bin/g++", False, "the blocks are not compiled: it saves about 0 s"),
        (LONG, None, False, "the blocks are not compiled: there is no C++ compiler"),
    ],
)
def test_long_runs_are_compiled_where_a_compiler_is_installed(monkeypatch, caplog, flops, tool, expected, reason):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(shutil, "which", lambda name: tool)
    assert is_worth_compiling(CPU, flops) is expected
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(reason)


def test_null_leaves_the_choice_to_the_length_of_the_run(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/g++")
    for choice, steps, expected in (
        ("null", 2, False),
        ("null", 10**8, True),
        ("true", 2, True),
        ("false", 10**8, False),
    ):
        overrides = [f"trainer.compile={choice}", f"trainer.max_steps={steps}", "trainer.accelerator=cpu"]
        overrides += ["optim.schedule.warmup_steps=1"]
        assert _is_compiled(load("pretrain", overrides).resolve(300)) is expected
