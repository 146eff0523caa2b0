"""Folders of sweeps as the engine writes them, made without training."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lit_illada.schema import from_tree
from lit_illada.sweep.folder import PlannedRun, SweepFolder
from lit_illada.sweep.report import write_report
from lit_illada.sweep.spec import SweepSpec
from lit_illada.sweep.spec_check import check

STEPS = (0, 10, 20, 30, 40, 50, 60)
TOKENS, FLOPS = 60 * 4096, 3.0e12


def spec_of(arms, seeds, **more):
    """A sweep of the named arms on the bound; the first arm is the baseline."""
    tree = {
        "name": "made_up",
        "question": "Which of these trains best, <tokens> being equal?",
        "paper": "the paper drew t uniformly",
        "baseline": arms[0] if arms else more["baseline"],
        "seeds": list(seeds),
        "budget": {"measure": "tokens", "amount": TOKENS},
        "metrics": [{"name": "val/nll_bound", "stage": "pretrain", "goal": "lower"}],
        "stages": [{"name": "pretrain", "command": "pretrain"}],
        "arms": [{"name": arm, "source": f"table of {arm}"} for arm in arms],
        "scale": None,
        **more,
    }
    spec = from_tree(SweepSpec, tree)
    check(spec)
    return spec


def planned(run_id, stage, seed, arms, parent=None):
    return PlannedRun(
        id=run_id,
        stage=stage,
        command="pretrain",
        arguments=[],
        overrides=[],
        seed=seed,
        arms=list(arms),
        begin_from=None,
        parent=parent,
        fingerprint=run_id,
        config={"seed": seed},
        num_steps=STEPS[-1],
        tokens=TOKENS,
        flops=FLOPS,
    )


def bound(end, step):
    """A learning curve from 8 nats to `end`."""
    return end + (8 - end) * math.exp(-step / 12)


def write_curves(folder: Path, end: float, last_step: int = STEPS[-1], seed: int = 0) -> None:
    writer = EventFileWriter(str(folder))
    noise = random.Random(seed)
    for step in STEPS:
        if step > last_step:
            break
        scalars = {"val/nll_bound": bound(end, step), "train/gradient_norm": math.exp(noise.gauss(0, 0.3))}
        scalars |= {f"val_nll_by_ratio/{k / 10:.1f}-{(k + 1) / 10:.1f}": bound(end, step) + k / 5 for k in range(10)}
        for tag, value in scalars.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=step, wall_time=1000.0 + step, summary=summary))
    writer.close()


def write_finished(folder: Path, figures: dict, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    end = {
        "val/unigram_cross_entropy": 6.3,
        "perf/tokens_per_s": 9000.0 + seed,
        "perf/tokens": TOKENS,
        "perf/flops": FLOPS,
        "perf/elapsed_s": 27.0,
        "perf/peak_memory_bytes": 700_000_000,
        "step": STEPS[-1],
        **figures,
    }
    if "val/nll_bound" in figures:
        end |= {f"val_nll_by_ratio/{k / 10:.1f}-{(k + 1) / 10:.1f}": end["val/nll_bound"] + k / 5 for k in range(10)}
        write_curves(folder, figures["val/nll_bound"], seed=seed)
    folder.joinpath("summary.json").write_text(json.dumps({"start": {"step": 0}, "end": end}))
    folder.joinpath("config.yaml").write_text(f"seed: {seed}\n")
    record = {"started_at": "2026-01-01T10:00:00", "commit": "c0ffee" * 6 + "beef", "data_sha256": "ab" * 32}
    folder.joinpath("provenance.jsonl").write_text(json.dumps(record) + "\n")
    folder.joinpath("checkpoints").mkdir(exist_ok=True)
    folder.joinpath("checkpoints", f"step={STEPS[-1]:08d}.ckpt").write_bytes(b"")
    done = {"finished_at": "2026-01-01T10:01:00", "elapsed_s": 31.0, "max_rss_bytes": 8e8, "attempts": 1}
    folder.joinpath("done.json").write_text(json.dumps(done))


def write_failed(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    failure = {"failed_at": "2026-01-01T10:00:30", "exit_status": 1, "last_lines": ["step 20", "ValueError: <boom>"]}
    folder.joinpath("failed.json").write_text(json.dumps({**failure, "attempts": 1}))
    folder.joinpath("attempts.jsonl").write_text('{"started_at": "x", "fingerprint": "x", "before_s": 0}\n')


def write_sweep(path: Path, spec: SweepSpec, values: dict[str, dict[int, float]], copies=None) -> SweepFolder:
    """One run per arm and seed; those without a value have not started. copies: bounds of rounding replicates."""
    copies = copies or {}
    folder = SweepFolder(path)
    runs = [
        planned(f"pretrain-{arm.name.replace(' ', '-')}-s{seed}", "pretrain", seed, [arm.name])
        for arm in spec.all_arms()
        for seed in spec.seeds
    ]
    runs += [
        planned(f"pretrain-copy-{n}-s{s}", "pretrain", s, [name]) for n, name in enumerate(copies) for s in copies[name]
    ]
    folder.write(spec, runs)
    for run in runs:
        value = {**values, **copies}.get(run.arms[0], {}).get(run.seed)
        if value is not None:
            write_finished(folder.run_folder(run).path, {"val/nll_bound": value}, run.seed)
    return folder


SEEDS = (0, 1, 2)
VALUES = {
    "uniform": {0: 4.30, 1: 4.52, 2: 4.41},
    "cosine": {0: 4.31, 1: 4.50, 2: 4.43},
    "band": {0: 4.101, 1: 4.322, 2: 4.209},
    "fixed 1.0": {0: 6.9, 1: 6.8, 2: 7.2},
}


def write_four_arms(path):
    """Four arms at three seeds: the baseline, an equal one, a better one, and one that cannot learn."""
    checks = {"equal_in_expectation": [["uniform", "cosine"]], "cannot_learn": ["fixed 1.0"]}
    spec = spec_of(list(VALUES), SEEDS, equivalence_margin=0.1, **checks)
    return write_sweep(path, spec, VALUES)


@pytest.fixture
def finished_sweep(tmp_path):
    return write_four_arms(tmp_path / "made_up")


@pytest.fixture(scope="session")
def reported_sweep(tmp_path_factory):
    """`finished_sweep` with its report; tests must not change it."""
    folder = write_four_arms(tmp_path_factory.mktemp("reported") / "made_up")
    write_report(folder.path)
    return folder


@pytest.fixture(name="write_curves")
def write_curves_fixture():
    return write_curves


@pytest.fixture
def make_spec():
    return spec_of


@pytest.fixture
def make_sweep(tmp_path):
    """values: bound by arm and seed; the first arm is the baseline. shared: all arms use the runs of the first."""

    def make(values, *, seeds=(0, 1), shared=False, copies=None, **more):
        spec = spec_of(list(values), seeds, **more)
        folder = write_sweep(tmp_path / f"sweep{len(list(tmp_path.iterdir())) or ''}", spec, values, copies)
        if shared:
            runs = [replace(run, arms=list(values)) for run in folder.read_plan() if run.arms == [spec.baseline]]
            folder.write(spec, runs)
        return folder

    return make


@pytest.fixture
def make_grid(tmp_path):
    """A sweep over two axes with different values for every pair."""

    def make():
        axes = {"ratio": [{"name": "u"}, {"name": "v"}], "weight": [{"name": "x"}, {"name": "y"}, {"name": "z"}]}
        spec = spec_of([], (0, 1), baseline="u+x", axes=axes)
        names = [arm.name for arm in spec.all_arms()]
        values = {name: {0: 4 + index / 10, 1: 4.2 + index / 9} for index, name in enumerate(names)}
        return write_sweep(tmp_path / "grid", spec, values)

    return make


@pytest.fixture
def half_finished_sweep(tmp_path):
    """The same sweep during execution: one run has failed, another is running, a third has not started."""
    spec = spec_of(list(VALUES), SEEDS, equal_in_expectation=[["uniform", "cosine"]])
    values = {arm: dict(of_seed) for arm, of_seed in VALUES.items()}
    del values["cosine"][2], values["band"][1], values["fixed 1.0"][0], values["fixed 1.0"][1]
    folder = write_sweep(tmp_path / "half", spec, values)
    write_failed(folder.runs / "pretrain-cosine-s2")
    interrupted = folder.runs / "pretrain-band-s1"
    interrupted.mkdir()
    attempt = {"started_at": "2026-01-01T00:00:00", "fingerprint": "x", "before_s": 0}
    interrupted.joinpath("attempts.jsonl").write_text(json.dumps(attempt) + "\n")
    progress = {
        "step": 30,
        "max_steps": 60,
        "begun_at_step": 0,
        "updated_at": "2026-01-01T00:00:12",
        "elapsed_s": 12.0,
        "tokens_per_s": 9000.0,
        "metrics": {},
    }
    interrupted.joinpath("progress.json").write_text(json.dumps(progress))
    write_curves(interrupted, 4.3, last_step=30)
    return folder
