"""Start-up times: commands that read or refuse a config, planning, one generated token, and the runs of a small sweep.

Every command runs in a process of its own. The imports of torch, and of torch with Lightning, are measured beside them:
no command that needs these can start faster.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_illada.bench.figure import figure, seconds
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.pool import SERVER, Pool, cpu_slots, thread_variables

_CLI = [sys.executable, "-m", "lit_illada.cli"]
_NUM_RUNS = 6


def measure(repeats: int = 5) -> dict[str, Any]:
    """Seconds of each command, and of six runs of ten steps, two at a time, forked or started separately.

    cpu_s is user and system time of all processes, which other programs on the machine disturb less than wall_s.
    Goals: config and refusals 1 s, sweep_plan 3 s, generate_one_token 3.5 s on one core.
    """
    with TemporaryDirectory() as scratch:
        sweep = _small_sweep(Path(scratch))
        run = sweep.runs / sweep.read_plan()[0].id
        programs = {
            "import_torch": [sys.executable, "-c", "import torch"],
            "import_torch_and_lightning": [sys.executable, "-c", "import torch, lightning.pytorch"],
            "config_pretrain": [*_CLI, "config", "pretrain"],
            "config_loops": [*_CLI, "config", "loops"],
            "refusal": [*_CLI, "pretrain", "model.no_such_key=1"],
            "missing_data": [*_CLI, "pretrain", "data=prepared", f"data.dir={scratch}/none"],
            "sweep_plan": [*_CLI, "sweep", "plan", "mask_ratio", "--folder", f"{scratch}/plan"],
            "generate_one_token": [*_CLI, "generate", str(run), "--prompt", "a", "generation.max_new_tokens=1"],
        }
        # an installed package has its bytecode; without it, every start would compile the sources
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        works: dict[str, Callable[[], object]] = {
            name: partial(subprocess.run, command, capture_output=True, env=environment)
            for name, command in programs.items()
        }
        works["six_runs_forked"] = partial(_run_all, sweep, SERVER)
        works["six_runs_started_separately"] = partial(_run_all, sweep, None)
        taken = [{name: _times(work) for name, work in works.items()} for _ in range(repeats)]
    figures: dict[str, Any] = {
        name: {key: figure([each[name][key] for each in taken]) for key in ("cpu_s", "wall_s")} for name in works
    }
    for key in ("cpu_s", "wall_s"):
        ratios = [each["six_runs_started_separately"][key] / each["six_runs_forked"][key] for each in taken]
        figures[f"separately_over_forked_{key}"] = figure(ratios)
    return figures


def _times(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of the processes that `work` starts, and wall-clock seconds."""
    before = _children_s()
    wall_s = seconds(work)
    return {"cpu_s": _children_s() - before, "wall_s": wall_s}


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _small_sweep(scratch: Path) -> SweepFolder:
    """A finished sweep of six runs, with its data set."""
    corpus = scratch / "corpus"
    corpus.mkdir()
    rng = random.Random(0)
    for number in range(300):
        (corpus / f"{number}.txt").write_text(" ".join(f"w{rng.randrange(300)}" for _ in range(200)), encoding="utf-8")
    overrides = [
        *("data=text", f"data.source.paths=[{corpus}]", f"data.dir={scratch}/data", "data.tokenizer.vocab_size=512"),
        *("model=pico", "data.row_length=64", "trainer.batch_rows=8", "trainer.micro_batch_rows=8"),
        *("trainer.val_rows=8", "trainer.accelerator=cpu", "trainer.max_steps=10", "optim.schedule.warmup_steps=1"),
    ]
    rates = [f"optim.optimizer.learning_rate={number / 1000}" for number in range(1, _NUM_RUNS + 1)]
    spec = {
        "question": "Which learning rate?",
        "baseline": "rate1",
        "scale": None,
        "seeds": [0],
        "no_budget": "only start-up is measured",
        "validations": 1,
        "metrics": [{"name": "val/nll_bound", "stage": "pretrain"}],
        "stages": [{"name": "pretrain", "command": "pretrain", "overrides": overrides}],
        "arms": [{"name": f"rate{n}", "overrides": {"pretrain": [rate]}} for n, rate in enumerate(rates, start=1)],
    }
    file, folder = scratch / "small.yaml", scratch / "sweep"
    file.write_text(json.dumps(spec), encoding="utf-8")
    command = [*_CLI, "sweep", "run", str(file), "--folder", str(folder), "--workers", "2"]
    subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **thread_variables(1)})
    return SweepFolder(folder)


def _run_all(sweep: SweepFolder, server: tuple[str, ...] | None) -> None:
    """Execute all runs of the sweep anew, two at a time."""
    shutil.rmtree(sweep.runs)
    Pool(sweep, sweep.read_plan(), cpu_slots(2, 1), lambda statuses: None, "val/nll_bound", server=server).run()
