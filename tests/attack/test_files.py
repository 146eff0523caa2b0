"""Every file of a run, a data set, an export and a converted folder, damaged in every way, under every reader."""

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from attack.damage import Damage, damages_of
from attack.expectations import MISSING, NEWEST, names_of, reason_for_same, rule_of
from attack.report import Report, endings_of
from attack.sandbox import Job, Outcome, run_all
from attack.world import COMMANDS, COMMANDS_OF, FALLBACKS, Baselines, Command, files_of, prepare_case

_MOST_SAMPLED = 16  # of the changes of single fields, of which a file has a hundred
_UNREAD = {"emptied", "missing", "random bytes", "a folder in its place", "a named pipe in its place",
           "a link to a file outside", "not UTF-8"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    file: Path  # relative to the box
    damage: Damage
    command: Command


def cases_of(part: str, world: Path) -> list[Case]:
    """Every file of a part of the world with all its damages under every command of the part.

    For a command that does not read the file, the damages that could trip one that looks at it.
    """
    files = files_of(world, part)
    return [
        Case(file, damage, COMMANDS[name])
        for file, other in zip(files, [*files[1:], files[0]], strict=True)
        for name in COMMANDS_OF[part]
        for damage in _chosen(world / file, world / other, name in rule_of(file).readers)
    ]


def _chosen(path: Path, other: Path, is_read: bool) -> list[Damage]:
    damages = damages_of(path, [other])
    if not is_read:
        return [damage for damage in damages if damage.name in _UNREAD]
    fixed = [damage for damage in damages if not damage.is_sampled]
    sampled = [damage for damage in damages if damage.is_sampled]
    return fixed + random.Random(path.name).sample(sampled, min(len(sampled), _MOST_SAMPLED))


def attack_files(cases: list[Case], world: Path, baselines: Baselines, folder: Path, report: Report) -> None:
    """Run each case on a copy of the world and judge what came of it."""
    expected = [baselines.result(_command_expected(case)) for case in cases]

    def judge(number: int, job: Job, outcome: Outcome) -> None:
        case = cases[number]
        is_right = reason_for_same(case.file, case.command.name, case.damage) is not None
        endings = endings_of(outcome, job, names_of(case.file), outcome.result == expected[number], is_right)
        what = f"{case.command.name}: {case.file} {case.damage.name}"
        report.add(f"files of {case.file.parts[0]}", case.damage.kind, what, endings, outcome)

    jobs = [Job(folder / str(n) / "box", case.command.arguments, case.command.measure) for n, case in enumerate(cases)]
    run_all(jobs, [partial(_prepare, world, case) for case in cases], judge)


def _command_expected(case: Case) -> Command:
    """The command whose undamaged result the case's must equal."""
    is_fallback = case.file == NEWEST and case.damage.name in MISSING
    return FALLBACKS.get(case.command.name, case.command) if is_fallback else case.command


def _prepare(world: Path, case: Case, job: Job) -> None:
    prepare_case(job.box.parent, world)
    case.damage.apply(job.box / case.file)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", COMMANDS_OF)
def test_damaged_file_is_rejected_or_changes_nothing(part, world, baselines, tmp_path, report):
    before = len(report.faults())
    attack_files(cases_of(part, world), world, baselines, tmp_path, report)
    assert not report.faults()[before:]
