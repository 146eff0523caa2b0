"""Overrides of every command's keys with values of every kind: accepted as written, or refused in one line."""

import json
import math
import random
import re
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from attack.report import VALID, common_faults, endings_of
from attack.sandbox import Job, run_all
from attack.world import prepare_case

NUM_OVERRIDES = 560

# kind: texts of values
VALUES = {
    "empty or null": ("", "''", "null"),
    "list": ("[]", "[1,2]", "[null]", "[[1],[2]]", "[[[[1]]]]", "[{a: 1}]"),
    "mapping": ("{}", "{a: 1}", "{a: {b: 1}}", "{name: adamw}", "{name: [1]}", "{name: {a: 1}}", "{name: null}"),
    "absurd number": (
        "-1", "0", "1e400", "-1e400", "nan", "inf", "-inf", "9223372036854775808", "1" * 30, "9" * 5000,
        "1e308", "1e-320",
    ),
    "wrong type": ("2.5", "true", "maybe", "'1'", "1_000", "0x10", "1/2"),
    "path or shell": (
        "../../evil", "/etc/passwd", "$(touch CANARY)", "'x; touch CANARY'", "`touch CANARY`", "'pipe:touch CANARY'",
        "!!python/object/apply:os.system",
    ),
    "interpolation": ("${oc.env:HOME}", "${seed}", "${nowhere}", "${"),
    "odd text": (
        "'\x1b[31mred'", "'a\nb'", "é" * 50, "'\u202eabc'", "'", '"', "\\", "a=b", "a b", "(", "*alias", "&a [*a]",
    ),
    "too long or too deep": ("a" * 100_000, "[" * 2000, "[" * 500 + "]" * 500, "{a:" * 300 + "1" + "}" * 300),
}  # fmt: skip
KEYS = (
    "", "=", " ", "+", "~", "++new.key", "+new", "~seed", "~model", "model.", ".seed", "model..hidden_size", "modle",
    "[0]", "model.hidden_sise", "a.b.c.d.e", "hydra.run.dir", "__class__", "model.__init__", "defaults", "experiment",
    "@", "model/../../etc", "objective/../model", "model@x", "$(touch CANARY)", "x" * 10_000, "\x1b[31m", "seed\n",
)  # fmt: skip
GROUPS = (
    "model", "data", "objective", "optim", "trainer", "objective/mask_ratio", "trainer/on_divergence",
    "generation@samples.generation", "objective/weighting", "optim/schedule",
)  # fmt: skip
COMMANDS = ("pretrain", "sft", "generate", "score", "data", "examples", "loops")


@dataclass(frozen=True)
class Case:
    command: str
    key: str
    value: str
    kind: str


def cases() -> list[Case]:
    """Seeded: for each of the drawn keys of a command, a drawn value; then odd keys."""
    from lit_illada.config import compose_tree

    rng = random.Random(12)
    keys = {command: sorted(_keys(compose_tree(command))) for command in COMMANDS}
    values = [(kind, value) for kind, texts in VALUES.items() for value in texts]
    found = []
    for number in range(NUM_OVERRIDES):
        kind, value = values[number % len(values)]
        command = COMMANDS[0] if number % 2 else rng.choice(COMMANDS[1:])
        key = rng.choice(GROUPS) if number % 10 == 1 else rng.choice(keys[command])
        found.append(Case("pretrain" if key in GROUPS else command, key, value, kind))
    return found + [Case("pretrain", key, "1", "key") for key in KEYS]


def _keys(tree: Any, where: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found.append(f"{where}{key}")
        if isinstance(value, dict):
            found += _keys(value, f"{where}{key}.")
    return found


def is_as_written(case: Case, output: str) -> bool:
    """Whether the printed config holds the value of the override, of its own type and finite."""
    tree = yaml.safe_load(output)
    if reference := re.fullmatch(r"\$\{(\w+)\}", case.value):  # Hydra puts in the value of another key
        seen, other = _at(tree, case.key), tree.get(reference[1])
        return seen == other or str(seen) == str(other)  # in the key's own type: 0.0, or false, of 0
    try:
        wanted = yaml.safe_load(case.value)
    except yaml.YAMLError:
        return False
    seen = _at(tree, case.key)
    if seen is _ABSENT:
        return False
    if isinstance(seen, int | float) and not isinstance(seen, bool):
        if not math.isfinite(seen) or (isinstance(seen, int) and abs(seen) >= 2**63):
            return False
        try:
            return math.isclose(float(case.value.strip("'")), seen)
        except ValueError:
            return False
    if isinstance(seen, str):
        return seen == (case.value.strip("'") if not isinstance(wanted, str) else wanted)
    return seen == wanted or (isinstance(seen, dict) and isinstance(wanted, dict))


_ABSENT = object()


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return _ABSENT
        tree = tree[part]
    return tree


def attack_overrides(chosen, world, folder, report):
    jobs = [Job(folder / str(n) / "box", ["config", case.command, f"{case.key}={case.value}"])
            for n, case in enumerate(chosen)]  # fmt: skip

    def judge(number, job, outcome):
        case = chosen[number]
        is_right = outcome.exit_code == 0 and (case.kind == "key" or is_as_written(case, outcome.output))
        named = [
            case.key.removesuffix(".name")[:40],
            case.key.lstrip("+~")[:40].strip(),
            case.key.split(".")[-1][:40],
            case.value[:20],
        ]
        endings = [*common_faults(outcome, job), VALID] if is_right else endings_of(outcome, job, named, False, False)
        what = f"config {case.command} {json.dumps(f'{case.key}={case.value}')[:120]}"
        report.add("overrides", case.kind, what, endings, outcome)

    run_all(jobs, [lambda job: prepare_case(job.box.parent, world / "corpus")] * len(jobs), judge)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_override_is_applied_as_written_or_rejected(world, tmp_path, report):
    before = len(report.faults())
    attack_overrides(cases(), world, tmp_path, report)
    assert not report.faults()[before:]
