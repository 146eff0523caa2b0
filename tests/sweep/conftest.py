import sys
import textwrap

import pytest
import yaml

from lit_illada.sweep.folder import PlannedRun, SweepFolder
from lit_illada.sweep.spec import Arm, Command, Metric, Stage, SweepSpec

# does a run without a model: writes a step a line, so that a test sees every step that was done, and by whom
WORKER = """
import time
began_at = time.time()
import json, os, sys
from pathlib import Path
from lit_illada.sweep.attempt import attempt
from lit_illada.sweep.folder import SweepFolder

folder, run_id = SweepFolder(Path(sys.argv[1])), sys.argv[2]
run_folder = folder.runs / run_id
steps, seconds = {steps}, {seconds}

def call(words):
    if "fail" in run_id:
        print("what went wrong")
        return 3
    (run_folder / "checkpoints").mkdir(exist_ok=True)
    (run_folder / "config.yaml").write_text("{{}}")
    (run_folder / "began.txt").write_text(str(began_at))
    done = max((int(path.stem) for path in run_folder.glob("checkpoints/*.ckpt")), default=0)
    for step in range(done + 1, steps + 1):
        time.sleep(seconds)
        # before the checkpoint, so that a kill between them repeats the step instead of losing its line
        with (run_folder / "steps.txt").open("a") as file:
            cpus, threads = sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]
            file.write(f"{{step}} {{os.getpid()}} {{cpus}} {{threads}}\\n")
        (run_folder / "checkpoints" / f"{{step:03d}}.ckpt").touch()
    (run_folder / "summary.json").write_text(json.dumps({{"end": {{"score": 1.0, "step": steps}}}}))
    return 0

raise SystemExit(attempt(folder, run_id, call))
"""


@pytest.fixture
def worker(tmp_path):
    """Command for the pool whose runs take `num_steps` steps of a given number of seconds."""

    def worker(steps=3, seconds=0.01):
        script = tmp_path / "worker.py"
        script.write_text(textwrap.dedent(WORKER.format(steps=steps, seconds=seconds)), encoding="utf-8")
        return [sys.executable, str(script)]

    return worker


def planned(id, parent=None, num_steps=3, **changes):
    values = {"stage": "pretrain", "command": "pretrain", "arguments": [], "overrides": [], "seed": 0, "arms": [id]}
    values |= {"fingerprint": f"of {id}", "config": {}, "num_steps": num_steps, "tokens": None, "flops": None}
    return PlannedRun(id=id, parent=parent, **{"begin_from": None, **values, **changes})


def spec_of(*arms, **changes):
    values = {
        "question": "Which?",
        "baseline": arms[0] if arms else "a",
        "metrics": [Metric("score", "pretrain")],
        "stages": [Stage("pretrain", Command.PRETRAIN)],
        "arms": [Arm(arm) for arm in arms],
        "seeds": [0],
    }
    return SweepSpec(**{**values, **changes})


@pytest.fixture(name="planned")
def planned_fixture():
    """Build a planned run with an id."""
    return planned


@pytest.fixture
def written(tmp_path):
    """Write a sweep's folder whose plan consists of the given runs."""

    def written(*runs):
        folder = SweepFolder(tmp_path / "sweep")
        folder.write(spec_of("a"), runs)
        return folder

    return written


@pytest.fixture
def tiny_sweep(tmp_path, tiny_overrides):
    """Write the file of a sweep whose runs take seconds. Keyword arguments replace its keys."""

    def tiny_sweep(**changes):
        tree = {
            "question": "Which rate?",
            "baseline": "slow",
            "scale": None,
            "seeds": [0],
            "validations": 2,
            "metrics": [{"name": "val/nll_bound", "stage": "pretrain"}],
            "stages": [{"name": "pretrain", "command": "pretrain", "overrides": tiny_overrides}],
            "arms": [
                {"name": "slow", "overrides": {"pretrain": ["optim.optimizer.learning_rate=0.001"]}},
                {"name": "fast", "overrides": {"pretrain": ["optim.optimizer.learning_rate=0.01"]}},
            ],
        }
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump({**tree, **changes}), encoding="utf-8")
        return file

    return tiny_sweep
