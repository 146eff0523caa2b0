"""`loops reproduce` and `loops run` as a user meets them: small models, real commands."""

import csv
import json
import re

import pytest
import yaml
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.commands.loops import corpora, gate
from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.evaluation.writer import Writer
from lit_illada.schema import to_tree
from lit_illada.sweep.folder import PlannedRun, SweepFolder
from lit_illada.sweep.spec import Command

SHORT = [
    "generation.max_new_tokens=16",
    "generation.block_length=8",
    "generation.num_steps=4",
    "reasoning.depths=[1,3]",
    "reasoning.num_problems=3",
]
SFT = [
    "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.batch_rows=4", "trainer.micro_batch_rows=4",
    "trainer.val_rows=4", "trainer.val_draws=1", "trainer.val_every_steps=2", "trainer.checkpoint_every_steps=2",
    "trainer.max_steps=2", "optim.schedule.warmup_steps=1", "sft_data.row_length=256", "evaluation.num_examples=0",
    "sft_data.source.num_train=32", "sft_data.source.num_validation=8", "sft_data.source.num_harder=8",
]  # fmt: skip


def lit_illada(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("loops") / "run"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}").exit_code == 0
    return run


def test_one_command_generates_and_analyzes_with_a_published_layout(trained, tmp_path):
    published, out = tmp_path / "published", tmp_path / "out"
    assert lit_illada("convert", trained, published, "--to", "llada").exit_code == 0
    assert not (published / "checkpoints").exists()
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "Two and two?", "answer": "#### 4"}\n', encoding="utf-8")
    countdown = "{name: countdown, wording: '{question}'}"
    tasks = ["--tasks", problems, "--tasks", "reasoning", "--tasks", countdown, "score.limit=2"]
    result = lit_illada("loops", "run", "--checkpoint", published, *tasks, "--out", out, *SHORT)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (out / "loops" / "records.jsonl").open(encoding="utf-8")]
    assert len(records) == 1 + 2 * 3 + 2
    assert "<html" in (out / "loops" / "report.html").read_text(encoding="utf-8")
    summary = json.loads((out / "scores" / "summary.json").read_text(encoding="utf-8"))
    assert [result["kind"] for result in summary["results"]] == ["reasoning", "number", "task"]
    for result in summary["results"]:
        texts = [json.loads(line) for line in (out / "scores" / result["items"]).open(encoding="utf-8")]
        assert result["endless"] == sum(text["is_loop"] or not text["is_finished"] for text in texts) / len(texts)
        assert result["mean_tokens"] == sum(text["num_tokens"] for text in texts) / len(texts)
    again = lit_illada("loops", "run", "--checkpoint", published, *tasks, "--out", out, *SHORT)
    assert again.exit_code == 1
    assert "already contains an analysis" in again.output


def test_runs_with_two_settings_are_compared_by_folder(trained, tmp_path):
    """As a reader does to see what a mitigation does to a published model."""
    published = tmp_path / "published"
    assert lit_illada("convert", trained, published, "--to", "illada").exit_code == 0
    settings = {"short": ["generation/thinking_stop=hard", "generation.thinking_stop.answer_tokens=8"], "plain": []}
    for name, words in settings.items():
        command = ["--checkpoint", published, "--tasks", "reasoning", "--out", tmp_path / name, *SHORT, *words]
        assert lit_illada("loops", "run", *command).exit_code == 0
    arms = [word for name in settings for word in ("--arm", name, tmp_path / name)]
    result = lit_illada("loops", "analyze", *arms, "--out", tmp_path / "both")
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "both" / "records.jsonl").open(encoding="utf-8")]
    assert [record["arm"] for record in records] == ["short"] * 6 + ["plain"] * 6
    assert "short → plain" in result.output


def test_resume_works_after_a_kill_in_generation_and_in_analysis(trained, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    def contents(out):
        names = {"items-0-problems.jsonl", "generations-reasoning.jsonl", "effects.csv", "records.jsonl", "report.html"}
        texts = {path.name: path.read_text().replace(str(out), "") for path in out.rglob("*.*") if path.name in names}
        assert texts.keys() == names
        # the page states the minute of its writing
        return {name: re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text) for name, text in texts.items()}

    published, out = tmp_path / "published", tmp_path / "out"
    assert lit_illada("convert", trained, published, "--to", "llada").exit_code == 0
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(f'{{"question": "{n} and {n}?", "answer": "{2 * n}"}}\n' for n in range(5)))
    command = ["loops", "run", "--checkpoint", published, "--tasks", problems, "--tasks", "reasoning", *SHORT]
    command += ["score.batch_prompts=2"]
    assert lit_illada(*command, "--out", tmp_path / "whole").exit_code == 0

    batches, together = [], Writer._generate

    def two_more(*arguments):
        if len(batches) % 3 == 2:
            batches.append("killed")
            raise KeyboardInterrupt
        batches.append(arguments[2])
        return together(*arguments)

    monkeypatch.setattr(Writer, "_generate", two_more)
    for _ in range(2):
        assert lit_illada(*command, "--out", out, "--resume").exit_code == 1
        refused = lit_illada(*command, "--out", out)
        assert refused.exit_code == 1
        assert "already contains an analysis, or a part of one: continue it with --resume" in refused.output
    monkeypatch.setattr("lit_illada.commands.loops.run_analyze", killed)
    assert lit_illada(*command, "--out", out, "--resume").exit_code == 1
    monkeypatch.undo()

    monkeypatch.setattr("lit_illada.commands.score.load_checkpoint", None)  # every answer is in the cache
    result = lit_illada(*command, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert len(batches) == 3 + 3 + 2
    assert contents(out) == contents(tmp_path / "whole")


def test_multiple_choice_is_refused_before_a_model_is_loaded(trained, tmp_path):
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0}) + "\n", encoding="utf-8")
    result = lit_illada("loops", "run", "--out", tmp_path / "out", "--checkpoint", trained, "--tasks", items)
    assert (result.exit_code, "multiple choice, which generates no text" in result.output) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "RUN", "--tasks", "nowhere.jsonl"], "nowhere.jsonl: no such file; give problems"),
        (["--checkpoint", "RUN"], "Missing option '--tasks'"),
        (["--checkpoint", "not/there", "--tasks", "reasoning"], "not/there"),
    ],
)
def test_user_mistakes_give_one_line(arguments, message, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = lit_illada("loops", "run", "--out", tmp_path / "out", *[trained if w == "RUN" else w for w in arguments])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


def sft_config(*overrides):
    return load("sft", [*SFT, *overrides], {"init_from": "x", "model": {"vocab_size": 300}})


HARD = ["sft_data.source.easy.moduli=[10]", "sft_data.source.easy.max_numbers=[3,9]"]
RETRIED = ["sft_data.source.recheck_fraction=0", "sft_data.source.retry_fraction=0.75"]
SILENT = "sft_data.source.retry_sentence=false"


def test_the_gate_accepts_the_corpora_and_reports_their_sizes(capsys, monkeypatch):
    from lit_illada.runtime.console import Console

    monkeypatch.setattr("lit_illada.commands.loops._GATE_TEXTS", 500)
    clean, rechecked = (
        sft_config(f"sft_data.source.recheck_fraction={rho}", "sft_data.source.slip_fraction=0.5") for rho in (0, 0.75)
    )
    retried = [*HARD, *RETRIED]
    gate([clean, rechecked, sft_config(*retried), sft_config(*retried, SILENT)], Console())
    rows = re.findall(
        r"│ +1 to 4 │ +([\d, ]+) │ +([\d.]+) │ +[\d.–]+ │ +([\d.]+) │ +(\d+) │ +(\d+) │", capsys.readouterr().out
    )
    assert [(numbers, rho, retried, loops) for numbers, rho, retried, _, loops in rows] == [
        ("9", "0", "0", "0"),
        ("9", "0.75", "0", "0"),
        ("3, 9", "0", "0.75", "0"),
        ("3, 9", "0", "0.75", "0"),
    ]
    sizes = [int(row[3]) for row in rows]
    assert sizes[:3] == sorted(sizes[:3])
    assert sizes[0] < sizes[1]
    assert sizes[3] < sizes[2]


def test_corpora_are_those_that_differ_in_more_than_the_seed():
    def planned(*overrides):
        tree = to_tree(sft_config(*overrides))
        return PlannedRun("tune", "tune", Command.SFT, [], [], 0, ["arm"], None, None, "", tree, None, None, None)

    different = [
        [],
        ["sft_data.source.recheck_fraction=0"],
        ["sft_data.source.recheck_fraction=0", *HARD],
        [*HARD, *RETRIED],
        [*HARD, *RETRIED, "sft_data.source.max_retries=3"],
        [*HARD, *RETRIED, SILENT],
    ]
    same = [
        ["sft_data.source.seed=4"],
        ["sft_data.source.recheck_fraction=0", "sft_data.source.slip_fraction=1", "sft_data.source.seed=1"],
        [*HARD, *RETRIED, "trainer.max_steps=3"],
    ]
    found = corpora([planned(*overrides) for overrides in [*different, *same]])
    assert found == [sft_config(*overrides) for overrides in different]


def test_the_gate_refuses_a_corpus_that_loops(monkeypatch):
    from lit_illada.runtime.console import Console

    monkeypatch.setattr("lit_illada.commands.loops._GATE_TEXTS", 200)
    monkeypatch.setattr("lit_illada.tasks.traces.RECHECK", "Wait, let me check again.\n" * 20)
    with pytest.raises(UserError, match=r"retry_fraction=0.0 contains loops in \d+ of 200 traces"):
        gate([sft_config("sft_data.source.recheck_fraction=1")], Console())


def test_a_sweep_without_problems_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = lit_illada("loops", "reproduce", "--sweep", "mask_ratio", "+scale=nano")
    assert result.exit_code == 1
    assert "loop_reproduce, loop_causes and loop_mitigation" in result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_experiment_runs_from_nothing_to_both_reports(tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = {
        "question": "Does it loop?",
        "baseline": "rho 1",
        "scale": None,
        "seeds": [0, 1],
        "validations": 1,
        "no_budget": "arms differ in data",
        "metrics": [{"name": "endless", "stage": "generate"}],
        "stages": [
            {"name": "pretrain", "command": "pretrain", "overrides": tiny_overrides},
            {"name": "tune", "command": "sft", "overrides": [*SFT, "sft_data.source.recheck_fraction=1"]},
            {"name": "generate", "command": "score", "arguments": ["--reasoning"], "overrides": SHORT},
        ],
        "arms": [
            {"name": "ramp", "overrides": {"generate": [
                "generation/thinking_stop=mixture", "generation.thinking_stop.start_tokens=2",
                "generation.thinking_stop.answer_tokens=4",
            ]}},
            {"name": "rho 1"},
            {"name": "broken", "overrides": {
                "tune": ["optim.optimizer.learning_rate=1e30", "trainer.max_nonfinite_steps=1"],
            }},
        ],
        "also_compare": [["ramp", "broken"]],
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    result = lit_illada("loops", "reproduce", "--sweep", "tiny.yaml")
    assert result.exit_code == 1, result.output
    assert "tune-broken-s0 failed" in result.output
    assert "loops reproduce --sweep runs/sweeps/tiny --resume" in result.output
    assert "traces of each training corpus" in result.output
    assert "reproduces the mechanism" in result.output
    folder = tmp_path / "runs" / "sweeps" / "tiny"
    rows = [json.loads(line) for line in (folder / "generations.jsonl").open(encoding="utf-8")]
    assert {(row["arm"], row["seed"], row["level"]) for row in rows} == {
        (arm, seed, level) for arm in ("rho 1", "ramp") for seed in (0, 1) for level in ("depth_1", "depth_3")
    }
    assert (folder / "loops" / "report.html").is_file()
    with (folder / "loops" / "effects.csv").open(encoding="utf-8", newline="") as file:
        pairs = [(row["first"], row["second"]) for row in csv.DictReader(file) if row["where"] == "arm"]
    assert pairs == [("rho 1", "ramp")]  # the baseline first, though its texts stand last
    assert "ramp and broken are not compared: there is no text of broken" in " ".join(result.output.split())
    assert (folder / "report" / "index.html").is_file()
    runs = SweepFolder(folder).read_plan()
    assert len([run for run in runs if run.stage == "tune"]) == 4  # each shared by two arms, and the broken one's


@pytest.mark.slow
def test_a_sweep_on_a_file_of_problems_compares_its_arms_problem_by_problem(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(4)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems), encoding="utf-8")
    settings = ["score/wording=chat", *SHORT[:3]]
    spec = {
        "question": "Does a penalty end loops?",
        "baseline": "plain",
        "scale": None,
        "seeds": [0],
        "begin_from": str(trained),
        "no_budget": "arms differ in generation",
        "metrics": [
            {"name": name, "stage": "generate"} for name in ("endless", "looped", "mean_tokens")
        ] + [{"name": "accuracy", "stage": "generate", "goal": "higher"}],
        "stages": [
            {"name": "generate", "command": "score", "arguments": ["--task", "problems.jsonl"], "overrides": settings}
        ],
        "arms": [{"name": "plain"}, {"name": "penalty", "overrides": {"generate": ["generation/repetition=penalty"]}}],
    }  # fmt: skip
    (tmp_path / "problems.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    result = lit_illada("loops", "reproduce", "--sweep", "problems.yaml", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "reproduces the mechanism" not in result.output
    folder = tmp_path / "runs" / "sweeps" / "problems"
    rows = [json.loads(line) for line in (folder / "generations.jsonl").open(encoding="utf-8")]
    assert [row["arm"] for row in rows] == ["plain"] * 4 + ["penalty"] * 4
    with (folder / "loops" / "effects.csv").open(encoding="utf-8", newline="") as file:
        (effect,) = csv.DictReader(file)
    assert (effect["first"], effect["second"], effect["texts_first"]) == ("plain", "penalty", "4")
    summary = json.loads((folder / "runs" / "generate-plain-s0" / "summary.json").read_text(encoding="utf-8"))
    assert summary["end"]["endless"] == int(effect["endless_first"]) / 4
    assert summary["end"]["mean_tokens"] == sum(row["num_tokens"] for row in rows[:4]) / 4
