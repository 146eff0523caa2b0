"""The `launch` commands: their job scripts, the rules of requeueing, and real jobs on a Slurm cluster."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.commands.launch import Request
from lit_illada.config import load, load_file
from lit_illada.run_folder import RunFolder
from lit_illada.schema import dump
from lit_illada.slurm.client import Allocation, queued_jobs
from lit_illada.slurm.script import Job, training_script
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import Weights, read_checkpoint


def lit_illada(*arguments):
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def options_of(script):
    """Options of the `#SBATCH` lines."""
    lines = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (line.removeprefix("--").partition("=") for line in lines)}


def command_of(script, program):
    (line,) = [line for line in script.splitlines() if line.startswith(f"{program} ")]
    return shlex.split(line)[1:]


GPUS = ["trainer.micro_batch_rows=1", "trainer.batch_rows=32"]


def test_dry_run_prints_the_script_and_writes_no_file(tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [*tiny_overrides, *GPUS, "run_dir=runs/my run"]
    overrides = [word for word in overrides if not word.startswith("trainer.accelerator=")]
    options = ["--nodes", "2", "--gpus-per-node", "8", "--partition", "gpu", "--time", "24:00:00", "--account", "me"]
    options += ["--qos", "high", "--constraint", "h100", "--mem", "0", "--cpus-per-task", "12", "--sbatch"]
    options += ["exclude=n7"]
    options += ["--setup", "module load nccl", "--after", "17", "--save-before", "300", "--dry-run"]
    result = lit_illada("launch", "pretrain", *overrides, *options)
    assert result.exit_code == 0, result.output
    run = str(tmp_path / "runs" / "my run")
    assert options_of(result.output) == {
        "job-name": "pretrain", "output": f"{run}/slurm-%j.log", "open-mode": "append", "chdir": str(tmp_path),
        "nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "12", "mem": "0",
        "time": "24:00:00", "partition": "gpu", "account": "me", "qos": "high", "constraint": "h100",
        "exclude": "n7", "requeue": "", "signal": "USR1@300", "dependency": "afterok:17", "kill-on-invalid-dep": "yes",
    }  # fmt: skip
    words = ["--kill-on-bad-exit=1", "--cpus-per-task=12", sys.executable, "-m", "lit_illada"]
    assert command_of(result.output, "srun") == [*words, "pretrain", "--resume", run]
    assert "\nmodule load nccl\n" in result.output
    assert not re.search(r"^(export )?NCCL", result.output, re.MULTILINE)
    assert not list(tmp_path.iterdir())
    subprocess.run(["bash", "-n"], input=result.output, text=True, check=True)


def test_invalid_options_are_rejected_before_submission(tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def error_of(*words):
        result = lit_illada("launch", "pretrain", *tiny_overrides, *words, "--dry-run")
        assert result.exit_code == 1
        return result.output

    assert "trainer.num_nodes=2 and --nodes set the same value" in error_of("trainer.num_nodes=2", "--nodes", "2")
    assert "trainer.devices=2 and --gpus-per-node set the same value" in error_of(
        "trainer.devices=2", "--gpus-per-node", "2"
    )
    assert "micro_batch_rows × devices × num_nodes" in error_of("--nodes", "3")
    assert "write KEY=VALUE" in error_of("--sbatch", "exclusive")
    for text, instead in {
        "nodes=4": "follows from --nodes", "ntasks-per-node=2": "follows from trainer.devices",
        "--gpus-per-node=2": "follows from --gpus-per-node", "time=1:00:00": "use --time 1:00:00",
        "signal=TERM@60": "the script sets --signal", "chdir=/": "the script sets --chdir",
    }.items():  # fmt: skip
        assert instead in error_of("--sbatch", text)
    for launched in (["pretrain"], ["sft", str(tmp_path)], ["data", "--parts", "2"]):
        result = lit_illada("launch", *launched, "--sbatch", "array=0-3", "--dry-run")
        assert result.exit_code == 1
        assert "--sbatch array=0-3: a run is one job" in result.output
    assert "did you mean 'trainer.max_steps'" in error_of("trainer.max_stepz=3")
    assert "nothing to fine-tune" in lit_illada("launch", "sft", "--dry-run").output
    assert not list(tmp_path.iterdir())


def test_missing_slurm_gives_the_command_for_torchrun(tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    def error_of(*words):
        result = lit_illada("launch", *words)
        assert result.exit_code == 1
        return result.output

    overrides = ["data.dir=my set", *GPUS]
    devices = [*overrides, "--gpus-per-node", "2"]
    command = "torchrun --nproc-per-node 2 --standalone -m lit_illada pretrain 'data.dir=my set'"
    assert command in error_of("pretrain", *devices)
    assert "trainer.devices=2 trainer.accelerator=gpu" in error_of("pretrain", *devices)
    assert "run on every node: torchrun --nproc-per-node 2 --nnodes 4" in error_of("pretrain", *devices, "--nodes", "4")
    assert "python -m lit_illada pretrain" in error_of("pretrain", *overrides)
    run = RunFolder.create("my run", "", datetime.now())
    run.write_config(dump(load("pretrain", ["experiment=demo", "trainer.devices=2", "trainer.micro_batch_rows=4"])))
    resumed = error_of("pretrain", "--resume", "my run", "trainer.max_steps=900")
    assert "--standalone -m lit_illada pretrain --resume 'my run' trainer.max_steps=900" in resumed
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]
    shutil.rmtree(run.path)
    assert "lit-illada data prepare data=stdlib --workers 3" in error_of("data", "data=stdlib", "--parts", "3")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("devices", [["--gpus-per-node", "2"], ["trainer.devices=2", "trainer.accelerator=gpu"]])
def test_printed_gpus_match_the_script(devices, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/bash\necho 17\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    run = tmp_path / "run"
    result = lit_illada("launch", "pretrain", *GPUS, *devices, f"run_dir={run}")
    assert result.output.startswith(f"job 17: pretrain on 1 × 2 GPUs, in {run}")
    assert options_of((run / "launch.sh").read_text())["gpus-per-node"] == "2"


def test_data_script_has_at_most_one_part_per_file(tiny_corpus, tmp_path):
    overrides = ["data=text", f"data.source.paths=[{tiny_corpus}]", f"data.dir={tmp_path / 'set'}"]
    result = lit_illada("launch", "data", *overrides, "--parts", "1000", "--time", "60", "--dry-run")
    assert result.exit_code == 0, result.output
    assert '"$1" --part "${SLURM_ARRAY_TASK_ID:-0}/80"' in result.output  # the number of files
    assert options_of(result.output)["time"] == "60"
    subprocess.run(["bash", "-n"], input=result.output, text=True, check=True)
    refused = lit_illada("launch", "data", "data=hf", "--parts", "2", "--dry-run")
    assert "one stream, not files" in refused.output


# exit status of the run, whether it saved, PreemptTime of Slurm, whether the job is requeued
ENDINGS = [
    (0, True, "None", False),
    (138, True, "None", True),
    (138, False, "None", False),
    (143, True, "None", False),
    (143, True, "2026-01-01T12:00:00", True),
    (138, False, "2026-01-01T12:00:00", True),
    (1, True, "None", False),
    (137, True, "None", False),
]


@dataclass(frozen=True)
class FakeJob:
    """Runs a job script with stand-ins for srun and scontrol, since Slurm cannot produce these endings on demand."""

    folder: Path

    @property
    def checkpoints(self):
        return self.folder / "a run" / "checkpoints"

    def run(self, status, *, is_saved, preempt_time="None", setup=()):
        """The finished script, and the commands that it gave to scontrol."""
        programs, log = self.folder / "bin", self.folder / "log"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        programs.mkdir()
        newer = shlex.quote(str(self.checkpoints / "step=00000007.ckpt"))
        show = f'echo "JobId=1 PreemptTime={preempt_time}"'
        stand_ins = {
            "srun": f"{f'touch {newer}' if is_saved else ':'}; exit {status}",
            "scontrol": f'if [ "$1" = show ]; then {show}; else echo "$@" >>{log}; fi',
        }
        for name, body in stand_ins.items():
            (programs / name).write_text(f"#!/bin/bash\n{body}\n")
            (programs / name).chmod(0o755)
        job = Job(self.folder / "launch.sh", "name", self.folder / "log-%j", self.folder, Allocation(), setup=setup)
        env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
        script = training_script(job, self.checkpoints, ["pretrain", "--resume", "x"])
        done = subprocess.run(["bash"], input=script, text=True, env=env, check=False, capture_output=True)
        return done, log.read_text() if log.exists() else ""


@pytest.mark.parametrize(("status", "is_saved", "preempt_time", "is_requeued"), ENDINGS)
def test_job_is_requeued_after_saving_or_preemption(status, is_saved, preempt_time, is_requeued, tmp_path):
    job = FakeJob(tmp_path)
    job.checkpoints.mkdir(parents=True)
    (job.checkpoints / "step=00000003.ckpt").touch()
    done, commands = job.run(status, is_saved=is_saved, preempt_time=preempt_time)
    assert done.returncode == status, done.stderr
    assert commands == ("requeue 1\n" if is_requeued else "")


@pytest.mark.parametrize("setup", ["set -e", "set -u", "set -o pipefail", "set -euo pipefail"])
def test_strict_shell_options_do_not_prevent_requeueing(setup, tmp_path):
    """On the first start, before there is a checkpoint."""
    done, commands = FakeJob(tmp_path).run(138, is_saved=True, setup=(setup,))
    assert done.returncode == 138, done.stderr
    assert commands == "requeue 1\n"


def test_setup_line_with_a_line_break_is_rejected():
    with pytest.raises(ValueError, match="repeat --setup, one line each"):
        Request(Allocation(), setup=("a\nb",))


def wait_for(condition, limit_s=500):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def finished(job):
    return not any(id.split("_")[0] == job for id in queued_jobs())


def weights(run):
    return Weights(read_checkpoint(latest_checkpoint(run / "checkpoints")))


def newest(run):
    return latest_checkpoint(run / "checkpoints")


def log_of(run):
    return "".join(path.read_text() for path in sorted(run.glob("slurm-*.log")))


@pytest.fixture
def cluster(monkeypatch):
    """Environment of jobs on a Slurm cluster whose nodes are all this machine."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the nodes of this Slurm have no addresses
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))


def submitted(*words):
    result = lit_illada("launch", *words)
    assert result.exit_code == 0, result.output
    return re.search(r"^jobs? (\d+)", result.output)[1]


LONG = ["trainer.max_steps=400", "trainer.val_every_steps=100", "trainer.checkpoint_every_steps=20"]
TWO_NODES = ["trainer.micro_batch_rows=4", "--nodes", "2", "--cpus-per-task", "1"]
STRATEGIES = {name: [f"trainer.parallel.strategy={name}"] for name in ("ddp", "fsdp")}


@pytest.mark.slurm
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_run_on_two_nodes_requeued_twice_matches_undisturbed_run(strategy, cluster, tiny_overrides, tmp_path):
    """The first requeue follows the signal before the time limit, the second is by Slurm."""
    overrides = [*tiny_overrides, *LONG, *STRATEGIES[strategy], *TWO_NODES]
    whole, preempted = tmp_path / "whole", tmp_path / "preempted"
    first = submitted("pretrain", *overrides, f"run_dir={whole}")
    wait_for(lambda: finished(first))
    assert "NLL bound, nats/token" in log_of(whole), log_of(whole)

    job = submitted("pretrain", *overrides, f"run_dir={preempted}")
    wait_for(lambda: newest(preempted) is not None)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait_for(lambda: f"requeueing job {job}" in log_of(preempted))
    before = newest(preempted)
    assert before.name < "step=00000400.ckpt"
    wait_for(lambda: newest(preempted).name > before.name)
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for(lambda: finished(job))

    record = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=True)
    assert "JobState=COMPLETED" in record.stdout
    assert "Restarts=2" in record.stdout
    assert newest(preempted).name == newest(whole).name == "step=00000400.ckpt", log_of(preempted)
    one, other = weights(whole), weights(preempted)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len((preempted / "provenance.jsonl").read_text().splitlines()) == 3


@pytest.fixture
def grace():
    """Gives preempted jobs a minute to exit; Slurm does not requeue a job that exits in that time."""

    def update(seconds):
        command = ["scontrol", "update", "PartitionName=main", f"GraceTime={seconds}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not update(60):
        pytest.skip("changing a partition needs the rights of a Slurm administrator")
    yield
    assert update(0)


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_preempted_job_that_exits_within_grace_time_is_requeued(cluster, grace, tiny_overrides, tmp_path):
    run = tmp_path / "run"
    job = submitted("pretrain", *tiny_overrides, *LONG, f"run_dir={run}", "trainer.max_steps=100000")
    wait_for(lambda: newest(run) is not None)
    urgent = ["sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]
    subprocess.run(urgent, check=True, capture_output=True)
    wait_for(lambda: f"requeueing job {job}" in log_of(run))
    saved = newest(run).name
    assert "SIGTERM: saving after this step" in log_of(run)
    wait_for(lambda: newest(run).name > saved)
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: finished(job))


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_cancelled_job_saves_and_resumes_only_when_submitted_again(cluster, tiny_overrides, tmp_path):
    run = tmp_path / "run"
    job = submitted("pretrain", *tiny_overrides, *LONG, f"run_dir={run}", "trainer.max_steps=100000")
    wait_for(lambda: newest(run) is not None)
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: finished(job))
    record = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=True)
    assert "JobState=CANCELLED" in record.stdout
    stopped = read_checkpoint(newest(run))["global_step"]
    again = submitted("pretrain", "--resume", str(run), f"trainer.max_steps={stopped + 3}")
    wait_for(lambda: finished(again))
    assert read_checkpoint(newest(run))["global_step"] == stopped + 3, log_of(run)
    assert load_file("pretrain", run / "config.yaml").trainer.max_steps == stopped + 3


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_fine_tuning_starts_from_its_checkpoint(cluster, tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={base}", "trainer.max_steps=3").exit_code == 0
    small = [word for word in tiny_overrides if word.startswith(("trainer.", "optim.schedule"))]
    small += ["trainer.max_steps=2", "sft_data.row_length=256", "evaluation.num_examples=0", "name=chat"]
    job = submitted("sft", "base", *small)
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "tokenizer").is_dir()
    wait_for(lambda: finished(job))
    assert newest(run).name == "step=00000002.ckpt", log_of(run)


@pytest.mark.slurm
def test_rejected_submission_leaves_no_folder(cluster, tiny_overrides, tmp_path):
    words = [*tiny_overrides, f"run_dir={tmp_path / 'run'}", "--partition", "nowhere"]
    result = lit_illada("launch", "pretrain", *words)
    assert result.exit_code == 1
    assert "sbatch failed: " in result.output
    assert "nowhere" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_data_prepared_by_job_arrays_matches_one_process(cluster, tiny_dataset, tmp_path):
    folder = Path(next(word for word in tiny_dataset if word.startswith("data.dir=")).removeprefix("data.dir="))
    overrides = [word for word in tiny_dataset if not word.startswith("data.dir=")]
    divided = tmp_path / "set"
    submitted("data", *overrides, f"data.dir={divided}", "--parts", "3", "--at-once", "2")
    wait_for(lambda: not queued_jobs())
    logs = "".join(path.read_text() for path in sorted((divided / "slurm").glob("*.log")))
    assert (divided / "manifest.json").is_file(), logs
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            assert (divided / path.relative_to(folder)).read_bytes() == path.read_bytes(), path
    assert len(list(divided.glob("*.tar"))) == len(list(folder.glob("*.tar")))
    result = lit_illada("launch", "data", *overrides, f"data.dir={divided}", "--parts", "3")
    assert "is already prepared" in result.output
