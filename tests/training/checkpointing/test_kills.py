"""Fifty SIGKILLs at random moments: nothing is lost, and the weights equal those of an uninterrupted run.

Each attempt is a process forked from this one, which has imported everything, and runs the command as a user types it.
It ends itself by SIGKILL a little after its n-th use of a file of some kind, so that kills fall inside writes too.
"""

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import lit_illada.commands.pretrain  # noqa: F401  before the forks, so that everything is imported once
from lit_illada.cli import main
from lit_illada.training.checkpointing.files import PARTIAL_SUFFIX, checkpoints_by_step, latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint

NUM_KILLS = 50
MAX_STEPS = 400


@dataclass(frozen=True)
class Moment:
    """The process dies `delay_s` after its `count`-th use of a file whose path holds `of`; None: after its start."""

    name: str
    of: str | None
    count: int
    delay_s: float

    def arm(self) -> None:
        """In the process that is to die."""
        if self.of is None:
            _die_in(self.delay_s)
            return
        left = [self.count]

        def look(event: str, arguments: tuple[object, ...]) -> None:
            if event in ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "shutil.rmtree") and any(
                self.of in str(argument) for argument in arguments[:2]
            ):
                left[0] -= 1
                if left[0] == 0:
                    _die_in(self.delay_s)

        sys.addaudithook(look)


def _die_in(delay_s: float) -> None:
    if not delay_s:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()


def drawn(rng: random.Random, is_prepared: bool, num_kills: int) -> Moment:
    """Any moment, those on purpose included; a dozen near the preparation's beginning, then some that let it pass."""
    short_s = rng.choice([0.0, rng.uniform(0, 0.02)])
    if not is_prepared:
        return Moment("in the preparation", "/data/", rng.randint(1, 25 if num_kills < 12 else 80), short_s)
    return rng.choice(
        [
            Moment("at a checkpoint", ".ckpt", rng.randint(1, 25), short_s),
            Moment("at a checkpoint", ".ckpt", rng.randint(1, 25), short_s),
            Moment("while shards are read", ".tar", rng.randint(1, 4), short_s),
            Moment("at another file of the run", "/run/", rng.randint(1, 60), short_s),
            Moment("anywhere", None, 0, rng.uniform(0, 3)),
        ]
    )


def attempt(arguments: list[str], moment: Moment | None, log: Path) -> int:
    """The command in a process of its own; the signal that ended it as a negative number, or its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stdout = sys.stderr = open(log, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
            if moment is not None:
                moment.arm()
            main(arguments, standalone_mode=False)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def overrides_for(folder: Path, corpus: Path, tiny_run: list[str]) -> list[str]:
    return [
        "data=text",
        f"data.source.paths=[{corpus}]",
        f"data.dir={folder / 'data' / 'set'}",
        "data.tokenizer.vocab_size=300",
        "data.validation_fraction=0.2",
        "data.shard_tokens=1024",
        "data.num_processes=1",
        *tiny_run,
        f"run_dir={folder / 'run'}",
        f"trainer.max_steps={MAX_STEPS}",
        "trainer.checkpoint_every_steps=2",
        "trainer.val_every_steps=10",
        "trainer.keep_every_steps=100",
        "trainer.keep_best=1",
        # what a resume could get wrong
        "objective=variance_optimal",
        "optim/schedule=reactive",
        "optim.schedule.patience=2",
        "optim.schedule.warmup_steps=5",
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    """Of a prepared data set."""
    return {
        path.name: path.read_bytes() for path in [*folder.glob("*.*"), *folder.glob("tokenizer/*")] if path.is_file()
    }


def evidence(folder: Path) -> str:
    """Where the kill fell, by what it left."""
    if not (folder / "data" / "set" / "manifest.json").is_file():
        return "before the data were prepared"
    if not (folder / "run" / "config.yaml").is_file():
        return "before the run began"
    if list((folder / "run" / "checkpoints").glob(f".*{PARTIAL_SUFFIX}")):
        return "while a checkpoint was written or removed"
    if latest_checkpoint(folder / "run" / "checkpoints") is None:
        return "before the first checkpoint"
    return "between checkpoints"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_change_neither_weights_nor_records(tiny_corpus, tiny_run, tmp_path, capsys):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log.txt"
    assert attempt(["pretrain", *overrides_for(whole, tiny_corpus, tiny_run)], None, log) == 0, log.read_text()

    rng, fallen, drawn_kinds = random.Random(0), Counter(), Counter()
    checkpoints, attempts, newest = killed / "run" / "checkpoints", 0, 0
    began_at = time.perf_counter()
    while sum(fallen.values()) < NUM_KILLS:
        attempts += 1
        assert attempts < 3 * NUM_KILLS, "the moments are never reached"
        is_prepared = (killed / "data" / "set" / "manifest.json").is_file()
        is_begun = (killed / "run" / "config.yaml").is_file()
        start = ["--resume", str(killed / "run")] if is_begun else overrides_for(killed, tiny_corpus, tiny_run)
        moment = drawn(rng, is_prepared, sum(fallen.values()))
        status = attempt(["pretrain", *start], moment, log)
        assert status in (0, -signal.SIGKILL), log.read_text()
        assert status != 0, f"the run ended after {sum(fallen.values())} kills: give it more steps"
        fallen[evidence(killed)] += 1
        drawn_kinds[moment.name] += 1
        # nothing is lost: the newest checkpoint is whole, and none that was there has gone without a newer one
        if latest_checkpoint(checkpoints) is not None:
            step = read_checkpoint(latest_checkpoint(checkpoints))["global_step"]
            assert step >= newest
            newest = step
    if latest_checkpoint(checkpoints) is None:
        pytest.fail("no kill fell after the first checkpoint")
    assert attempt(["pretrain", "--resume", str(killed / "run")], None, log) == 0, log.read_text()
    with capsys.disabled():
        print(f"\n{NUM_KILLS} kills in {time.perf_counter() - began_at:.0f} s, the last after step {newest}")
        for title, counts in (("drawn", drawn_kinds), ("fallen", fallen)):
            for name, count in counts.most_common():
                print(f"  {title:<7}{count:3d}  {name}")

    assert files_of(killed / "data" / "set") == files_of(whole / "data" / "set")
    wanted, found = (
        read_checkpoint(checkpoints_by_step(f / "run" / "checkpoints")[MAX_STEPS]) for f in (whole, killed)
    )
    assert all(torch.equal(wanted["state_dict"][name], found["state_dict"][name]) for name in wanted["state_dict"])
    for name, state in wanted["optimizer_states"][0]["state"].items():
        assert all(torch.equal(state[key], found["optimizer_states"][0]["state"][name][key]) for key in state)
    for key in ("lr_schedulers", "PackedDataModule"):
        assert wanted[key] == found[key]
    states = [checkpoint["callbacks"]["Checkpoints"] for checkpoint in (wanted, found)]
    for state in states:
        assert state.pop("record_sizes")  # each attempt writes an event file of its own
    assert states[0] == states[1]
    retained = [sorted(checkpoints_by_step(f / "run" / "checkpoints")) for f in (whole, killed)]
    assert retained[0] == retained[1]
    assert not list(checkpoints.glob(f".*{PARTIAL_SUFFIX}"))
    expected = ["before the data were prepared", "while a checkpoint was written or removed", "between checkpoints"]
    assert not [name for name in expected if not fallen[name]]
