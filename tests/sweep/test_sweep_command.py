"""The commands `sweep plan` and `sweep run`, on tiny models."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.commands import sweep as commands
from lit_illada.commands import sweep_plan, sweep_slots
from lit_illada.cost.run_time import Speed
from lit_illada.model.config import ModelConfig
from lit_illada.schema import to_tree
from lit_illada.sweep.folder import RunState, SweepFolder
from lit_illada.sweep.library import library


def sweep(*arguments):
    result = CliRunner().invoke(main, ["sweep", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def started(*arguments):
    command = [sys.executable, "-m", "lit_illada.cli", "sweep", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ))


def ends(folder):
    """Final metrics and number of attempts of each run."""
    runs = folder.read_plan()
    assert [folder.state_of(run) for run in runs] == [RunState.FINISHED] * len(runs)
    return {run.id: json.loads(folder.run_folder(run).summary.read_text())["end"] for run in runs}


def test_list_prints_every_sweep_with_its_question():
    status, output = sweep("list")
    assert status == 0
    assert all(name in output for name in library())
    assert "Which density of mask ratios" in output


def test_plan_prints_shared_runs_and_cost_without_running(tiny_sweep, tiny_overrides, tmp_path):
    stages = [
        {"name": "pretrain", "command": "pretrain", "overrides": tiny_overrides},
        {"name": "score", "command": "score", "arguments": ["--held-out", "4"]},
    ]
    arms = [{"name": "slow"}, {"name": "eager", "overrides": {"score": ["score.num_draws=2"]}}]
    file = tiny_sweep(stages=stages, arms=arms, seeds=[0, 1])
    status, output = sweep("plan", file, "budget.amount=2560", "--folder", tmp_path / "sweep")
    assert status == 0
    assert "all arms" in output
    assert "runs 6, 2 shared by several arms, 0 already finished" in output
    assert re.search(r"pretrain │ 2 │ all arms │ 10 │ 2.56e\+03", output)
    assert "power 2 seeds find a true difference of 1, 2 and 3 sd of the paired differences with" in output
    assert "carries the verdicts" in output
    assert "time about" in output
    assert "disk about" in output
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "mask_ration"], "did you mean 'mask_ratio'"),
        (["plan", "mask_ratio", "+scale=nano", "sedes=[0]"], "did you mean 'seeds'"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["plan", "mask_ratio", "+scale=nano", "overrides.pretrain=[model.num_layers=3]"], "num_hidden_layers"),
    ],
)
def test_user_error_is_one_line(arguments, message):
    status, output = sweep(*arguments)
    assert status == 1
    assert message in output
    assert "Traceback" not in output


def test_plan_at_full_scale_points_to_the_small_scale(tmp_path):
    folder = ["--folder", tmp_path / "out"]
    status, output = sweep("plan", "tied_embeddings", *folder)
    assert status == 0, output
    assert "scale paper, the full size; for a test in minutes on two CPU cores add +scale=nano" in output
    status, output = sweep("plan", "tied_embeddings", "+scale=nano", *folder)
    assert status == 0, output
    assert "scale nano" in output
    assert "+scale=nano" not in output


def test_the_table_of_a_plan_fits_a_terminal(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(
        main, ["sweep", "plan", "block_length", "+scale=micro", "--folder", str(tmp_path / "out")]
    )
    (heading,) = (line for line in result.output.splitlines() if "time each" in line)
    assert len(heading) <= 80
    assert "pretrain-full" in result.output


@pytest.mark.parametrize("part", ["arm", "question"])
def test_names_and_texts_of_a_sweep_are_shown_without_markup_and_escapes(part, tiny_sweep, tmp_path):
    hostile = "[red]x[/red]\x1b]0;title\x07"
    arms = [{"name": hostile}, {"name": "fast", "overrides": {"pretrain": ["optim.optimizer.learning_rate=0.01"]}}]
    changes = {"question": hostile} if part == "question" else {"baseline": hostile, "arms": arms}
    status, output = sweep("plan", tiny_sweep(**changes), "--folder", tmp_path / "out")
    assert status == 0, output
    assert "[red]x[/red]\\x1b]0;title\\x07" in output
    assert "\x1b" not in output


@pytest.fixture
def begun(tiny_sweep, tmp_path, monkeypatch):
    """A sweep of seeds 0 and 1 whose runs have finished, without training; further runs would do nothing."""
    file, folder = tiny_sweep(seeds=[0, 1]), SweepFolder(tmp_path / "sweep")
    spec, _, runs = commands.plan_sweep(str(file), [], folder.path)
    folder.write(spec, runs)
    for run in runs:
        record = {"started_at": "2026-01-01T00:00:00", "fingerprint": run.fingerprint, "before_s": 0.0}
        path = folder.run_folder(run).path
        path.mkdir()
        path.joinpath("attempts.jsonl").write_text(json.dumps(record) + "\n")
        path.joinpath("done.json").write_text(json.dumps({"elapsed_s": 1.0, "max_rss_bytes": 1.0}))

    def run_all(spec, folder, runs, workers):
        folder.write(spec, runs)
        return commands.SweepOutcome(folder, [], 1, was_stopped=False)

    monkeypatch.setattr(commands, "run_all", run_all)
    monkeypatch.setattr(commands, "data_configs", lambda runs: [])
    return file, folder


def test_runs_that_have_begun_are_not_left_out_of_a_new_plan(begun):
    file, folder = begun
    plan = folder.plan.read_text()
    for resume in ([], ["--resume"]):
        status, output = sweep("run", file, "seeds=[2]", "--folder", folder.path, *resume)
        assert status == 1
        assert (
            "holds 4 runs that this plan leaves out (pretrain-slow-s0, pretrain-fast-s0, pretrain-slow-s1, …): "
            "name all seeds, seeds=[0,1,2], or choose another --folder" in output
        )
    tree = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**tree, "arms": tree["arms"][:1]}))
    status, output = sweep("run", file, "--folder", folder.path)
    assert status == 1
    assert "leaves out (pretrain-fast-s0, pretrain-fast-s1): keep its arms and settings" in output
    assert folder.plan.read_text() == plan


def test_a_sweep_resumes_and_takes_more_seeds(begun):
    file, folder = begun
    for arguments in ([folder.path, "--resume"], [file, "--folder", folder.path, "--resume"]):
        status, output = sweep("run", *arguments)
        assert status == 0, output
    assert sweep("run", file, "seeds=[0,1,2]", "--folder", folder.path)[0] == 0
    assert len(folder.read_plan()) == 6


def test_a_started_sweep_is_planned_anew_in_another_folder(begun, tmp_path):
    _, folder = begun
    other = tmp_path / "other"
    for overrides in ([], ["seeds=[7]"]):
        assert commands.plan_sweep(str(folder.path), overrides, other)[1].path == other
        assert commands.plan_sweep(str(folder.path), overrides, None)[1].path == folder.path


def test_two_contents_of_one_data_folder_are_both_prepared(tiny_sweep):
    _, _, (run, *_) = commands.plan_sweep(str(tiny_sweep()), [], None)
    trees = [{**run.config, "data": {**run.config["data"], "shard_tokens": size}} for size in (1024, 2048, 1024)]
    configs = commands.data_configs(replace(run, config=tree) for tree in trees)
    assert [config.shard_tokens for config in configs] == [1024, 2048]
    assert len({config.dir for config in configs}) == 1


def test_a_plan_for_more_devices_than_there_are_says_so(tiny_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sweep_slots, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(sweep_plan, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(sweep_plan, "speed_of", lambda *_: Speed({}, 1e12, "a test"))
    two = "overrides.pretrain=[trainer.devices=2,trainer.accelerator=auto,trainer.micro_batch_rows=4]"
    status, output = sweep("plan", tiny_sweep(), two, "--folder", tmp_path / "sweep")
    assert status == 0, output
    assert "time does not fit this machine: 2 devices per run, 1 found" in output


def test_a_sharded_checkpoint_is_identified_by_all_its_files(tmp_path, monkeypatch):
    for name in ("state.pt", "parts-00000-of-00001.safetensors"):
        (tmp_path / name).write_text(name)
    opened = SimpleNamespace(path=tmp_path, model=ModelConfig())
    monkeypatch.setattr(commands, "open_checkpoint", lambda path: opened)
    model, first = commands.open_begin("base")
    assert model == {"model": to_tree(ModelConfig())}
    assert commands.open_begin("base")[1] == first
    (tmp_path / "parts-00000-of-00001.safetensors").write_text("other weights")
    assert commands.open_begin("base")[1] != first


@pytest.mark.slow
def test_failed_run_is_shown_and_the_others_continue(tiny_sweep, tmp_path):
    arms = [{"name": "slow"}, {"name": "lost", "overrides": {"pretrain": ["init_from=nowhere/at/all"]}}]
    file, folder = tiny_sweep(arms=arms), tmp_path / "sweep"
    status, output = sweep("run", file, "--folder", folder, "--workers", 2)
    assert status == 1
    assert "1 of 2 finished, 1 failed" in output
    assert "nowhere/at/all" in output
    assert f"sweep run {folder} --resume" in output
    states = {run.id: SweepFolder(folder).state_of(run) for run in SweepFolder(folder).read_plan()}
    assert states == {"pretrain-slow-s0": RunState.FINISHED, "pretrain-lost-s0": RunState.FAILED}

    status, output = sweep("run", file, "--folder", folder)
    assert status == 1
    assert "1 run that did not finish (pretrain-lost-s0): resume with --resume" in output
    run = SweepFolder(folder).run_folder(SweepFolder(folder).read_plan()[0])
    before = run.done.stat().st_mtime_ns
    sweep("run", folder, "--resume")
    assert run.done.stat().st_mtime_ns == before, "a finished run was repeated"

    status, output = sweep("run", file, "--folder", folder, "budget.amount=2560", "--resume")
    assert status == 1
    assert "holds a run 'pretrain-slow-s0'" in output


@pytest.mark.slow
def test_sweep_of_an_existing_checkpoint_trains_nothing(tiny_sweep, tiny_overrides, tmp_path):
    trained, folder = tmp_path / "trained", tmp_path / "sweep"
    assert CliRunner().invoke(main, ["pretrain", *tiny_overrides, f"run_dir={trained}"]).exit_code == 0
    stages = [{"name": "score", "command": "score", "arguments": ["--reasoning"]}]
    arms = [{"name": "one", "overrides": {"score": ["generation.block_length=4"]}}, {"name": "two"}]
    short = ["generation.max_new_tokens=16", "generation.block_length=8", "generation.num_steps=4"]
    short += ["reasoning.depths=[1]", "reasoning.num_problems=2"]
    changes = {"overrides": {"score": short}, "metrics": [{"name": "endless", "stage": "score"}]}
    changes |= {"stages": stages, "arms": arms, "baseline": "one"}
    status, output = sweep("run", tiny_sweep(**changes, begin_from=str(tmp_path / "nowhere")), "--folder", folder)
    assert status == 1
    assert "nowhere" in output
    status, output = sweep("run", tiny_sweep(**changes, begin_from=str(trained)), "--folder", folder, "--workers", 1)
    assert (status, "2 of 2 finished" in output) == (0, True), output
    undisturbed = ends(SweepFolder(folder))
    assert set(undisturbed) == {"score-one-s0", "score-two-s0"}

    # as a kill would have left it when the texts were written, and the figures of the end were not
    cut = SweepFolder(folder).run_folder(SweepFolder(folder).read_plan()[0])
    cut.done.unlink()
    summary = json.loads(cut.summary.read_text())
    del summary["end"]
    cut.summary.write_text(json.dumps(summary))
    texts = cut.path / "generations-reasoning.jsonl"
    before = texts.stat().st_mtime_ns
    assert sweep("run", folder, "--resume")[0] == 0
    assert ends(SweepFolder(folder)) == undisturbed
    assert texts.stat().st_mtime_ns == before, "what was written already was written again"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_randomly_killed_sweep_matches_undisturbed_sweep(tiny_sweep, tiny_overrides, tmp_path):
    stages = [
        {
            "name": "pretrain",
            "command": "pretrain",
            "overrides": [*tiny_overrides, "data.row_length=64", "trainer.max_steps=120"],
        },
        {"name": "score", "command": "score", "arguments": ["--held-out", "8"], "overrides": ["score.num_draws=4"]},
    ]
    file = tiny_sweep(stages=stages, seeds=[0, 1])
    assert sweep("run", file, "--folder", tmp_path / "calm")[0] == 0
    rng = random.Random(0)
    stormy = SweepFolder(tmp_path / "stormy")
    for _ in range(3):
        process = started("run", file, "--folder", stormy.path, "--resume")
        while not stormy.plan.is_file():  # planning takes long on a busy machine
            time.sleep(0.1)
        time.sleep(rng.uniform(10, 16))
        process.kill()
        process.wait()
        for run in stormy.read_plan():
            if stormy.state_of(run) is RunState.RUNNING and rng.random() < 0.5:
                kill_holder(stormy.run_folder(run).lock)
    assert sweep("run", stormy.path, "--resume")[0] == 0
    calm, stormed = ends(SweepFolder(tmp_path / "calm")), ends(stormy)
    assert calm.keys() == stormed.keys()
    for run, figures in calm.items():
        for name, value in figures.items():
            if name.startswith("val/") or name == "accuracy":
                assert stormed[run][name] == value, (run, name)
    assert sweep("run", file, "--folder", stormy.path)[0] == 0
    assert ends(stormy) == stormed, "a second call did something again"


def kill_holder(lock):
    """Ids of the processes that hold a lock on the file."""
    inode = lock.stat().st_ino
    for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and int(fields[5].rsplit(":", 1)[1]) == inode:
            os.kill(int(fields[4]), signal.SIGKILL)
