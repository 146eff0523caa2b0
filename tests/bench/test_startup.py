"""The benchmark of start-up times runs every command in a process of its own."""

from contextlib import nullcontext

import pytest

from lit_illada.bench import startup


@pytest.mark.slow
def test_every_command_and_both_ways_of_running_a_sweep_are_measured():
    figures = startup.measure(repeats=1)
    ratios = {key: figures.pop(key) for key in ("separately_over_forked_cpu_s", "separately_over_forked_wall_s")}
    assert {"config_pretrain", "sweep_plan", "generate_one_token", "six_runs_forked"} < set(figures)
    assert all(figure["cpu_s"]["min"] > 0 for figure in figures.values())
    assert all(figure["min"] > 0 for figure in ratios.values())


@pytest.mark.slow
def test_the_commands_of_other_code_are_compared_and_those_it_lacks_are_named(monkeypatch, tmp_path):
    package = tmp_path / "lit_illada"
    package.mkdir()
    (package / "__init__.py").touch()
    # `refusal` alone ends as it should
    (package / "cli.py").write_text("import sys; sys.exit('model.no_such_key=1' in sys.argv or 2)", encoding="utf-8")
    monkeypatch.setattr(startup, "code_of", lambda revision: nullcontext(tmp_path))
    figures = startup.compare("any", repeats=1)
    refusal = figures.pop("refusal")
    assert refusal["baseline_over_current"]["median"] == refusal["baseline_cpu_s"]["min"] / refusal["cpu_s"]["min"] < 1
    assert {"run_of_two_steps", "config_pretrain", "sweep_plan", "analyze_1900_texts"} < set(figures)
    assert all("code 2" in figure["did_not_run"] for figure in figures.values())
