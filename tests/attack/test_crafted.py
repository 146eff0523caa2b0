"""Hostile manifests, shards, checkpoints, weights and names."""

import re
from dataclasses import replace

import pytest
from attack.crafted import cases
from attack.report import VALID, common_faults, endings_of
from attack.sandbox import Job, run_all
from attack.world import prepare_case


def attack_crafted(chosen, world, folder, server, report):
    jobs = [Job(folder / str(number) / "box", []) for number in range(len(chosen))]

    def preparation(number):
        def prepare(job):
            prepare_case(job.box.parent, world)
            jobs[number].arguments.extend(chosen[number].make(job.box, f"{server}/{number}/box"))

        return prepare

    def judge(number, job, outcome):
        case = chosen[number]
        outcome = replace(
            outcome, commands=[command for command in outcome.commands if not re.fullmatch(case.own_command, command)]
        )
        if case.may_succeed and outcome.exit_code == 0:
            endings = [*common_faults(outcome, job), VALID]
        else:
            endings = endings_of(outcome, job, case.named, False, False)
            endings += ["unsafe advice"] if "weights_only=False" in outcome.output else []
        report.add("made by hand", case.kind, f"{case.kind}: {case.name}", endings, outcome)

    run_all(jobs, [preparation(number) for number in range(len(chosen))], judge)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_hostile_input_is_rejected(world, tmp_path, server, report):
    before = len(report.faults())
    attack_crafted(cases(), world, tmp_path, server, report)
    assert not report.faults()[before:]
