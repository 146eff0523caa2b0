"""Start-up times: short commands, a run of two steps, and the runs of a small sweep.

Every command runs in a process of its own. The imports of torch, and of torch with Lightning, are measured beside them:
no command that needs these can start faster. The same commands can be run with the code of another commit.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_illada.bench.figure import did_not_run, figure, seconds
from lit_illada.bench.loops import text
from lit_illada.bench.revision import code_of
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.pool import SERVER, Pool, cpu_slots, thread_variables

_CLI = [sys.executable, "-m", "lit_illada.cli"]
_NUM_RUNS = 6
_NUM_TEXTS = 1900
_REFUSED = ("refusal", "missing_data")
_PACKAGE_FOLDER = Path(__file__).parents[2]
Commands = dict[str, Callable[[], object]]
"""Functions to be timed, by name."""


def measure(repeats: int = 5) -> dict[str, Any]:
    """Seconds of each command, and of six runs of ten steps, two at a time, forked or started separately.

    cpu_s is user and system time of all processes, which other programs on the machine disturb less than wall_s.
    Goals: config and refusals 1 s, sweep_plan 3 s, generate_one_token 3.5 s on one core.
    """
    with TemporaryDirectory() as scratch:
        corpus = _corpus(Path(scratch))
        sweep = _small_sweep(Path(scratch), corpus)
        works: Commands = {
            "import_torch": partial(_call, [sys.executable, "-c", "import torch"]),
            "import_torch_and_lightning": partial(_call, [sys.executable, "-c", "import torch, lightning.pytorch"]),
            **commands(Path(scratch, "ours"), corpus),
            "six_runs_forked": partial(_run_all, sweep, SERVER),
            "six_runs_started_separately": partial(_run_all, sweep, None),
        }
        taken = [{name: _times(work) for name, work in works.items()} for _ in range(repeats)]
    figures: dict[str, Any] = {
        name: {key: figure([each[name][key] for each in taken]) for key in ("cpu_s", "wall_s")} for name in works
    }
    for key in ("cpu_s", "wall_s"):
        ratios = [each["six_runs_started_separately"][key] / each["six_runs_forked"][key] for each in taken]
        figures[f"separately_over_forked_{key}"] = figure(ratios)
    return figures


def compare(revision: str, repeats: int = 3) -> dict[str, Any]:
    """CPU seconds of each command with the code of a git revision and with this code, in turn, and their ratio.

    A command that the other code cannot run has the reason under `did_not_run`.
    Raises UserError if the revision cannot be read.
    """
    with TemporaryDirectory() as scratch, code_of(revision) as folder:
        corpus = _corpus(Path(scratch))
        ours = commands(Path(scratch, "ours"), corpus)
        theirs, figures = runnable(commands(Path(scratch, "baseline"), corpus, folder))
        for name, command in theirs.items():
            ours[name]()  # as theirs have been: bytecode and file cache are warm
            # alternating, so that a change in the machine's speed meets both
            pairs = [(_times(command)["cpu_s"], _times(ours[name])["cpu_s"]) for _ in range(repeats)]
            figures[name] = {
                "baseline_cpu_s": figure([baseline for baseline, _ in pairs]),
                "cpu_s": figure([current for _, current in pairs]),
                "baseline_over_current": figure([baseline / current for baseline, current in pairs]),
            }
    return figures


def commands(scratch: Path, corpus: Path, folder: Path = _PACKAGE_FOLDER) -> Commands:
    """The measured commands by name, run with the code in `folder`.

    The first run of two steps prepares the data and leaves the checkpoint that `generate` opens.
    """
    scratch.mkdir()
    texts, first = scratch / "texts.jsonl", scratch / "first"
    texts.write_text("".join(json.dumps({"text": text(n)}) + "\n" for n in range(_NUM_TEXTS)), encoding="utf-8")
    training = [*_CLI, "pretrain", *_training_overrides(corpus, scratch / "data"), "trainer.max_steps=2"]
    numbers = count()
    programs: dict[str, Callable[[], list[str]]] = {
        "run_of_two_steps": lambda: [*training, f"run_dir={scratch}/run{next(numbers)}"],
        "config_pretrain": lambda: [*_CLI, "config", "pretrain"],
        "config_loops": lambda: [*_CLI, "config", "loops"],
        "refusal": lambda: [*_CLI, "pretrain", "model.no_such_key=1"],
        "missing_data": lambda: [*_CLI, "pretrain", "data=prepared", f"data.dir={scratch}/none"],
        "sweep_plan": lambda: [*_CLI, "sweep", "plan", "mask_ratio", "--folder", f"{scratch}/plan"],
        "generate_one_token": lambda: [*_CLI, "generate", str(first), "--prompt", "a", "generation.max_new_tokens=1"],
        "analyze_1900_texts": lambda: [
            *(*_CLI, "loops", "analyze", str(texts), "--text-field", "text"),
            *("--out", f"{scratch}/analysis{next(numbers)}"),
        ],
    }
    # an installed package has its bytecode; without it, every start would compile the sources
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), environment.get("PYTHONPATH")]))
    call = partial(_call, environment=environment, folder=folder)
    # other code that cannot train then fails to generate too, which is reported
    with nullcontext() if folder == _PACKAGE_FOLDER else suppress(subprocess.CalledProcessError):
        call([*training, f"run_dir={first}"])

    def command(name: str) -> Callable[[], object]:
        return lambda: call(programs[name](), status=1 if name in _REFUSED else 0)

    return {name: command(name) for name in programs}


def runnable(given: Commands) -> tuple[Commands, dict[str, Any]]:
    """The commands that end with their status, after one run of each, and the figures of the others: the reason."""
    running: Commands = {}
    failed: dict[str, Any] = {}
    for name, command in given.items():
        try:
            command()
            running[name] = command
        except subprocess.CalledProcessError as error:
            failed[name] = did_not_run(error)
    return running, failed


def _call(
    words: list[str], environment: dict[str, str] | None = None, folder: Path | None = None, status: int = 0
) -> None:
    """Run a program. Raises CalledProcessError unless it ends with `status`."""
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder, stdin=subprocess.DEVNULL)
    if done.returncode != status:
        raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)


def _times(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of the processes that `work` starts, and wall-clock seconds."""
    before = _children_s()
    wall_s = seconds(work)
    return {"cpu_s": _children_s() - before, "wall_s": wall_s}


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _corpus(scratch: Path) -> Path:
    """A folder of texts of random words."""
    corpus = scratch / "corpus"
    corpus.mkdir()
    rng = random.Random(0)
    for number in range(300):
        (corpus / f"{number}.txt").write_text(" ".join(f"w{rng.randrange(300)}" for _ in range(200)), encoding="utf-8")
    return corpus


def _training_overrides(corpus: Path, data: Path) -> list[str]:
    return [
        *("data=text", f"data.source.paths=[{corpus}]", f"data.dir={data}", "data.tokenizer.vocab_size=512"),
        *("model=pico", "data.row_length=64", "trainer.batch_rows=8", "trainer.micro_batch_rows=8"),
        *("trainer.val_rows=8", "trainer.accelerator=cpu", "optim.schedule.warmup_steps=1"),
    ]


def _small_sweep(scratch: Path, corpus: Path) -> SweepFolder:
    """A finished sweep of six runs, with its data set."""
    overrides = [*_training_overrides(corpus, scratch / "data"), "trainer.max_steps=10"]
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
