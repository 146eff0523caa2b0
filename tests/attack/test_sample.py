"""A seeded sample of every attack, small enough for the default suite, and a few in processes of their own."""

import random
import subprocess
import sys

import pytest
from attack import crafted, test_crafted, test_files, test_jsonl, test_overrides
from attack.expectations import rule_of
from attack.report import Report
from attack.world import COMMANDS_OF, prepare_case


def _sample(cases, number):
    return random.Random(1).sample(cases, number)


def test_sample_of_all_attacks_finds_no_fault(world, baselines, tmp_path, server):
    report = Report()
    quick = ("data", "export", "converted")
    files = [case for part in quick for case in test_files.cases_of(part, world) if case.command.name != "pretrain"]
    for name, attack in {
        "files": lambda folder: test_files.attack_files(_sample(files, 20), world, baselines, folder, report),
        "overrides": lambda folder: test_overrides.attack_overrides(
            _sample(test_overrides.cases(), 12), world, folder, report
        ),
        "lines": lambda folder: test_jsonl.attack_jsonl(_sample(test_jsonl.cases(), 12), world, folder, report),
    }.items():
        attack(tmp_path / name)
    test_crafted.attack_crafted(_sample(crafted.cases(), 10), world, tmp_path, server, report)
    assert len(report.cases) == 54
    assert not report.faults()


def test_the_whole_attack_has_enough_cases(world):
    assert sum(len(test_files.cases_of(part, world)) for part in COMMANDS_OF) >= 300
    assert len(test_overrides.cases()) >= 500
    assert len(test_jsonl.cases()) >= 200


@pytest.mark.slow
@pytest.mark.parametrize("part", COMMANDS_OF)
def test_separate_process_gives_same_result(part, world, tmp_path):
    """One line on standard error, status 1 and no traceback, also in the C locale."""
    refused = [
        case for case in test_files.cases_of(part, world) if case.damage.name in ("emptied", "not UTF-8", "zeroed")
    ]
    for number, case in enumerate(_sample([c for c in refused if c.command.name in rule_of(c.file).readers], 2)):
        box = prepare_case(tmp_path / str(number), world)
        case.damage.apply(box / case.file)
        ended = subprocess.run(
            [sys.executable, "-m", "lit_illada", *case.command.arguments],
            cwd=box, capture_output=True, check=False, text=True, timeout=120,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert ended.returncode == 1, ended
        assert "Traceback" not in ended.stderr + ended.stdout
        assert case.file.name in ended.stderr + ended.stdout or case.file.parent.name in ended.stderr
