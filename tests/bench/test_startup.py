"""The benchmark of start-up times runs every command in a process of its own."""

import pytest

from lit_illada.bench import startup


@pytest.mark.slow
def test_every_command_and_both_ways_of_running_a_sweep_are_measured():
    figures = startup.measure(repeats=1)
    ratios = {key: figures.pop(key) for key in ("separately_over_forked_cpu_s", "separately_over_forked_wall_s")}
    assert {"config_pretrain", "sweep_plan", "generate_one_token", "six_runs_forked"} < set(figures)
    assert all(figure["cpu_s"]["min"] > 0 for figure in figures.values())
    assert all(figure["min"] > 0 for figure in ratios.values())
