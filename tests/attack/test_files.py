"""Every file of a run, a data set, an export and a converted folder, damaged in every way, under every reader."""

import random
import shutil
from pathlib import Path

import pytest
from attack.damage import Damage, damages_of
from attack.expectations import MISSING, NEWEST, names_of, reason_for_same, rule_of
from attack.report import endings_of
from attack.sandbox import Job, run_all
from attack.world import COMMANDS, COMMANDS_OF, files_of, prepare_case

_MOST_DAMAGES = 26
_UNREAD = {"emptied", "missing", "random bytes", "a folder in its place", "a named pipe in its place",
           "a link to a file outside", "not UTF-8"}  # fmt: skip


def _chosen(path: Path, others: list[Path], is_read: bool) -> list[Damage]:
    damages = damages_of(path, others)
    if not is_read:
        return [damage for damage in damages if damage.name in _UNREAD]
    fixed = [damage for damage in damages if not damage.is_sampled]
    sampled = [damage for damage in damages if damage.is_sampled]
    return fixed + random.Random(path.name).sample(sampled, min(len(sampled), _MOST_DAMAGES - 10))


def attack_part(part, world, baselines, folder, report, keep=lambda file, damage, command: True):
    """Damage every file of a part of the world and run its commands."""
    files = files_of(world, part)
    cases = []
    for file, other in zip(files, [*files[1:], files[0]], strict=True):
        for command in COMMANDS_OF[part]:
            is_read = command in rule_of(file).readers
            for damage in _chosen(world / file, [world / other], is_read):
                if keep(file, damage, command):
                    cases.append((file, damage, COMMANDS[command]))
    jobs = [Job(folder / f"{n}" / "box", command.arguments, command.measure) for n, (_, _, command) in enumerate(cases)]

    def judge(number, job, outcome):
        file, damage, command = cases[number]
        is_right = reason_for_same(file, command.name, damage) is not None
        is_fallback = f"{command.name}, older" in baselines and file == NEWEST and damage.name in MISSING
        expected = baselines[f"{command.name}, older" if is_fallback else command.name]
        endings = endings_of(outcome, job, names_of(file), outcome.result == expected, is_right)
        report.add(f"files of {part}", damage.kind, f"{command.name}: {file} {damage.name}", endings, outcome)

    run_all(jobs, [_preparation(world, file, damage) for file, damage, _ in cases], judge)


def _preparation(world, file, damage):
    def prepare(job):
        prepare_case(job.box.parent, world)
        damage.apply(job.box / file)

    return prepare


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", COMMANDS_OF)
def test_a_damaged_file_is_refused_or_changes_nothing(part, world, baselines, tmp_path, report):
    before = len(report.faults())
    attack_part(part, world, baselines, tmp_path, report)
    shutil.rmtree(tmp_path)
    assert not report.faults()[before:]
