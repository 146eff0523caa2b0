"""The `score` command as a user meets it."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.evaluation.writer import Writer, Written
from lit_illada.generation.canvas import RowEvents
from lit_illada.generation.text import complete_batch
from lit_illada.generation.trace import Trace

ITEMS = [
    {"question": "alpha beta gamma. alpha", "choices": ["beta", "beta gamma delta", "pi"], "answer": "A"},
    {"question": "rho tau. rho", "choices": ["pi", "tau"], "answer": 1},
    {"question": "mu nu. mu", "choices": ["nu", "xi omicron", "rho rho", "eta"], "answer": "nu"},
]
SHORT = ["generation.max_new_tokens=8", "generation.block_length=4", "generation.num_steps=2"]
RULES = ["bound", "left_to_right", "confidence_order", "confidence"]


def score(*arguments):
    return CliRunner().invoke(main, ["score", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    def trained(name, *overrides):
        run = tmp_path_factory.mktemp("scored") / name
        result = CliRunner().invoke(main, ["pretrain", *tiny_overrides, f"run_dir={run}", *overrides])
        assert result.exit_code == 0, result.output
        return run

    return trained


@pytest.fixture(scope="module")
def run(trained):
    return trained("run")


@pytest.fixture(scope="module")
def causal_run(trained):
    return trained("causal", "objective=autoregressive", "model.is_causal=true")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return written(tmp_path_factory.mktemp("items") / "items.jsonl", ITEMS)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def summary(out):
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def rows_of(out, result):
    return [json.loads(line) for line in (out / result["items"]).read_text(encoding="utf-8").splitlines()]


def test_every_rule_scores_the_same_items_and_writes_all_files(run, items, tmp_path):
    out = tmp_path / "out"
    result = score(run, "--task", items, "--out", out, "score.num_draws=16")
    assert result.exit_code == 0, result.output
    for word in (*RULES, "agreement", "95 % interval", "standard error", str(out)):
        assert word in result.output
    record = summary(out)
    (result,) = record["results"]
    assert list(result["rules"]) == RULES == list(result["agreement"])
    rows = rows_of(out, result)
    assert [row["answer"] for row in rows] == [0, 1, 0]
    for rule, figures in result["rules"].items():
        choices = [row["scores"][rule]["choice"] for row in rows]
        assert figures["num_correct"] == sum(c == row["answer"] for c, row in zip(choices, rows, strict=True))
        low, high = figures["wilson_95"]
        assert low <= figures["accuracy"] <= high
        for row in rows:
            values = row["scores"][rule]["values"]
            assert len(values) == len(row["choices"])
            assert values.index(max(values)) == row["scores"][rule]["choice"]
    longest = max(count for row in rows for count in row["scores"]["confidence"]["num_tokens"])
    assert result["rules"]["confidence"]["num_forwards"] == longest
    # what the numbers were made with stands beside them
    assert record["config"]["score"]["num_draws"] == 16
    assert record["checkpoint_file"].endswith("step=00000012.ckpt")
    assert record["model"]["hidden_size"] == 32
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8")) == record["config"]
    assert "commit" in json.loads((out / "provenance.jsonl").read_text(encoding="utf-8"))


def test_scores_are_reproducible_and_independent_of_other_tasks(run, items, tmp_path):
    def values(name, *more):
        out = tmp_path / name
        assert score(run, "--task", items, "--out", out, "score.num_draws=16", *more).exit_code == 0
        return [row["scores"]["bound"]["values"] for row in rows_of(out, summary(out)["results"][0])]

    whole = values("whole")
    assert values("again") == whole
    assert values("first", "score.limit=1", "score.rule=bound")[0] == pytest.approx(whole[0], rel=1e-5)
    assert values("small", "score.batch_tokens=64", "score.rule=bound") == [pytest.approx(v, rel=1e-5) for v in whole]
    assert values("other", "score.seed=1")[0] != whole[0]


def test_a_causal_model_is_scored_exactly_by_the_same_command(causal_run, items, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("alpha beta gamma", encoding="utf-8")
    result = score(causal_run, "--task", items, "--text", text, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    choices, whole = summary(tmp_path / "out")["results"]
    assert list(choices["rules"]) == ["exact"]
    assert choices["rules"]["exact"]["num_forwards"] == 1
    assert (whole["rule"], whole["nats_stderr"]) == ("exact", 0)


def test_a_text_of_any_length_is_scored_in_windows_with_its_standard_error(run, tiny_corpus, tmp_path):
    text = max(Path(tiny_corpus).glob("*.txt"), key=lambda path: path.stat().st_size)
    overrides = ["score.window_length=32", "score.context_length=8", "score.num_draws=16"]
    result = score(run, "--text", text, "--out", tmp_path / "out", *overrides)
    assert result.exit_code == 0, result.output
    assert "standard error of 16 draws" in result.output
    (result,) = summary(tmp_path / "out")["results"]
    num_tokens = len(Tokenizer.load(run / "tokenizer").encode(text.read_text(encoding="utf-8")))
    assert result["num_tokens"] == num_tokens
    assert result["num_windows"] == 1 + -(-(num_tokens - 32) // 24)
    assert 0 < result["nats_per_token_stderr"] < result["nats_per_token"] < 7


def test_problems_are_answered_by_generation(run, tmp_path, monkeypatch):
    file = written(
        tmp_path / "problems.jsonl",
        [{"question": "Two and two?", "answer": "2+2=4\n#### 4"}, {"question": "Three?", "answer": "#### 3"}],
    )
    collected = []

    def write(writer, prompts, is_traced=False):
        collected.extend((writer.tokenizer.decode(prompt), writer.generation.max_new_tokens) for prompt in prompts)
        ids = writer.tokenizer.encode(" it is 4.\nQuestion: 3")
        zeros = [0] * len(ids)
        trace = Trace(ids, zeros, list(range(len(ids))), zeros, zeros, zeros)
        return (Written(ids, True, RowEvents(), 1.0, trace) for _ in prompts)

    monkeypatch.setattr(Writer, "write", write)
    result = score(run, "--task", file, "--out", tmp_path / "out", *SHORT)
    assert result.exit_code == 0, result.output
    assert "1 of 2 right" in result.output
    assert collected == [("Question: Two and two?\nAnswer:", 8), ("Question: Three?\nAnswer:", 8)]
    (result,) = summary(tmp_path / "out")["results"]
    assert (result["num_correct"], result["num_without_number"], result["endless"]) == (1, 0, 0.0)
    rows = rows_of(tmp_path / "out", result)
    assert [(row["text"], row["number"], row["is_correct"]) for row in rows] == [
        (" it is 4.", "4", True),
        (" it is 4.", "4", False),
    ]


def test_a_model_solves_the_problems_of_a_task(run, tmp_path):
    task = "{name: countdown, num_numbers: [2, 3], max_number: 9, wording: '{question}'}"
    result = score(run, "--task", task, "--out", tmp_path / "out", "score.limit=6", *SHORT)
    assert result.exit_code == 0, result.output
    assert "6 problems" in result.output
    record = summary(tmp_path / "out")
    (result,) = record["results"]
    rows = rows_of(tmp_path / "out", result)
    assert len(rows) == 6
    assert {row["difficulty"] for row in rows} <= {2, 3}
    assert all(row["is_correct"] or row["reason"] for row in rows)
    assert record["end"]["accuracy"] == sum(row["is_correct"] for row in rows) / 6


TASK = """
from dataclasses import dataclass
from lit_illada.tasks.arithmetic import Arithmetic

@dataclass(frozen=True)
class Raises(Arithmetic):
    def check(self, problem, completion):
        raise KeyError("my checker")

@dataclass(frozen=True)
class Bool(Arithmetic):
    def check(self, problem, completion):
        return True
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [("Raises", r"raises KeyError: 'my checker' \(mine.py:8\)"), ("Bool", "returns a bool; it must return a Verdict")],
)
def test_a_task_whose_check_fails_is_named_before_anything_is_generated(name, reason, run, tmp_path):
    (tmp_path / "mine.py").write_text(TASK, encoding="utf-8")
    result = score(run, "--task", f"{tmp_path / 'mine.py'}:{name}", "--out", tmp_path / "out", *SHORT)
    assert result.exit_code == 1
    assert re.fullmatch(rf"Error: task {name}, test problem \d+: its check {reason}.*\n", result.output)
    assert not (tmp_path / "out").exists()


def test_scores_are_compared_with_others_problem_by_problem(run, items, tmp_path):
    task = ["--task", "{name: arithmetic, range: {max_depth: 1}}", "score.limit=6", *SHORT]
    before, now = tmp_path / "before", tmp_path / "now"
    assert score(run, *task, "--out", before).exit_code == 0
    file = before / "generations-task-0.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    written(file, [{**row, "is_correct": number < 4} for number, row in enumerate(rows)][::-1])  # in another order
    result = score(run, *task, "--out", now, "--against", before)
    assert result.exit_code == 0, result.output
    assert re.search(r"arithmetic.*6.*66\.7%.*0\.0%.*-66\.7", result.output)
    (compared,) = json.loads((now / "summary.json").read_text())["against"]["tasks"]
    low, high = compared.pop("difference_95")
    assert compared == {
        "task": "arithmetic",
        "num_problems": 6,
        "accuracy_before": pytest.approx(4 / 6),
        "accuracy": 0.0,
        "num_lost": 4,
        "num_gained": 0,
        "mcnemar_p": 0.125,
    }
    # Bonett and Price: 4 lost, and one pair added each way, of 6 + 2; variance (5/8 + 1/8 − (4/8)²) / 8 = 1/16
    assert (low, high) == pytest.approx((-4 / 8 - 1.959964 / 4, -4 / 8 + 1.959964 / 4), abs=1e-6)
    assert "is already scored" in score(run, *task, "--out", now, "--resume", "--against", before).output

    file = written(tmp_path / "numbers.jsonl", [{"question": f"alpha {n}", "answer": f"{n}"} for n in range(5)])
    assert score(run, "--task", file, "--out", tmp_path / "one", *SHORT).exit_code == 0
    result = score(run, "--task", file, "--out", tmp_path / "two", *SHORT, "--against", tmp_path / "one")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["against"]["tasks"][0]["num_problems"] == 5

    other = score(run, "--task", items, "--out", tmp_path / "other", "score.num_draws=2", "--against", before)
    assert other.exit_code != 0
    assert "no problem in common" in other.output
    assert "no scores there" in score(run, *task, "--out", tmp_path / "x", "--against", tmp_path / "none").output
    (before / "summary.json").write_text(json.dumps({"results": []}))
    assert "finish them with --resume" in score(run, *task, "--out", tmp_path / "x", "--against", before).output
    assert not (tmp_path / "x").exists()


def test_figures_of_tasks_of_one_name_are_numbered(run, tmp_path):
    tasks = [f"{{name: arithmetic, range: {{max_depth: {depth}}}}}" for depth in (1, 2)]
    command = [run, *(word for task in tasks for word in ("--task", task)), "score.limit=2", *SHORT]
    assert score(*command, "--out", tmp_path / "out").exit_code == 0
    record = summary(tmp_path / "out")
    for prefix, result in zip(("arithmetic", "arithmetic-2"), record["results"], strict=True):
        assert record["end"][f"{prefix}/mean_tokens"] == result["mean_tokens"]


def test_several_samples_of_a_problem_differ_and_give_pass_at_k(run, tmp_path):
    task = ["--task", "{name: arithmetic, range: {max_depth: 1}}", "--samples", 3, "score.limit=4", *SHORT]
    assert "set generation.temperature above 0" in score(run, *task, "generation.temperature=0").output
    result = score(run, *task, "--out", tmp_path / "out", "generation.temperature=2")
    assert result.exit_code == 0, result.output
    assert "pass@3" in result.output
    (result,) = summary(tmp_path / "out")["results"]
    rows = rows_of(tmp_path / "out", result)
    assert len(rows) == 12
    assert len({row["text"] for row in rows[:3]}) > 1
    correct = [sum(row["is_correct"] for row in rows[start : start + 3]) for start in range(0, 12, 3)]
    assert result["accuracy"] == result["pass_at_1"] == pytest.approx(sum(correct) / 12)
    assert result["pass_at_3"] == pytest.approx(sum(map(bool, correct)) / 4)
    assert "only for tasks" in score(run, "--samples", 3, "--held-out", 4).output


@pytest.mark.parametrize("choice", [[], ["generation/repetition=dry", "generation/on_loop=temperature_kick"]])
def test_a_model_generates_its_solutions(choice, run, tmp_path):
    file = written(tmp_path / "problems.jsonl", [{"question": "alpha", "answer": "1"}])
    assert score(run, "--task", file, "--out", tmp_path / "out", *SHORT, *choice).exit_code == 0
    assert rows_of(tmp_path / "out", summary(tmp_path / "out")["results"][0])[0]["text"]


def test_generated_problems_get_the_same_answers_in_any_batch_size(run, tmp_path):
    tables = []
    for size in (3, 32):
        folder = tmp_path / f"out{size}"
        result = score(
            run,
            "--reasoning",
            "--out",
            folder,
            "reasoning.depths=[1,3]",
            "reasoning.num_problems=4",
            "reasoning.max_numbers=[5]",
            f"score.batch_prompts={size}",
            "generation.max_new_tokens=16",
            "generation.block_length=8",
            "generation.num_steps=4",
        )
        assert result.exit_code == 0, result.output
        assert "chained arithmetic: 8 problems" in result.output
        (result,) = summary(folder)["results"]
        rows = rows_of(folder, result)
        assert [row["level"] for row in rows] == ["depth_1"] * 4 + ["depth_3"] * 4
        assert len({row["prompt"] for row in rows}) == 8
        for row in rows:
            steps = row["prompt"].splitlines()[:-1]
            assert row["level"] == f"depth_{len(steps)}"
            assert int(row["truth"]) == sum(int(n) for line in steps for n in re.findall(r"\d+", line)) % 2
            assert row["is_right"] == (row["answer"] == row["truth"])
            assert len(row["steps"]) == len(row["confidence"]) == len(row["token_ids"]) == len(row["tokens"])
        end = summary(folder)["end"]
        assert end["exact_match"] == sum(row["is_right"] for row in rows) / 8
        assert end["unfinished_depth_3"] == sum(not row["is_finished"] for row in rows[4:]) / 4
        tables.append([{key: row[key] for key in ("text", "steps", "is_finished")} for row in rows])
    assert tables[0] == tables[1]


def test_chat_prompts_use_the_models_template(run, items, tmp_path, monkeypatch):
    collected = []
    write = Writer.write

    def overheard(writer, prompts, is_traced=False):
        collected.extend(map(writer.tokenizer.decode, prompts))
        return write(writer, prompts, is_traced)

    monkeypatch.setattr(Writer, "write", overheard)
    file = written(tmp_path / "problems.jsonl", [{"question": "Two and two?", "answer": "4"}])
    result = score(run, "--task", file, "--task", items, "--out", tmp_path / "out", "score/wording=chat", *SHORT)
    assert result.exit_code == 0, result.output
    assert collected == ["<|user|>Two and two?<|assistant|>"]
    assert summary(tmp_path / "out")["end"]["problems/accuracy"] in (0, 1)


def test_results_before_an_interruption_are_saved(run, items, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_illada.evaluation.text_likelihood.TextLikelihood.run", interrupt)
    text = tmp_path / "text.txt"
    text.write_text("alpha beta")
    score(run, "--task", items, "--text", text, "--out", tmp_path / "out")
    assert [result["kind"] for result in summary(tmp_path / "out")["results"]] == ["multiple_choice"]
    assert "end" not in summary(tmp_path / "out")


@pytest.fixture
def killed_at(monkeypatch):
    """Asks for so many batches of answers and is killed at the next; gives the batches that were asked for."""
    collected = []

    def killed_at(number):
        def complete(model, tokenizer, prompts, *arguments, **options):
            if len(collected) == number:
                raise KeyboardInterrupt
            collected.append([tuple(prompt) for prompt in prompts])
            return complete_batch(model, tokenizer, prompts, *arguments, **options)

        collected.clear()
        monkeypatch.setattr("lit_illada.evaluation.writer.complete_batch", complete)
        return collected

    return killed_at


def files_of(out):
    """All but when each attempt began."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "provenance.jsonl"}


def test_resume_after_a_kill_generates_only_missing_answers(run, tmp_path, killed_at):
    task = written(
        tmp_path / "problems.jsonl",
        [{"question": " ".join(["alpha"] * (1 + index * 5 % 7)), "answer": str(index)} for index in range(7)],
    )
    reasoning = ["reasoning.depths=[1,2]", "reasoning.num_problems=2", "reasoning.max_numbers=[5]"]
    command = [run, "--task", task, "--reasoning", *reasoning, *SHORT, "score.batch_prompts=2"]
    command += ["generation.temperature=1", "generation/on_loop=temperature_kick"]  # every draw counts
    whole = killed_at(None)
    assert score(*command, "--out", tmp_path / "whole").exit_code == 0
    whole = list(whole)
    assert len(whole) == 2 + 4

    out = tmp_path / "out"
    first = killed_at(4)
    assert score(*command, "--out", out).exit_code == 1
    assert first == whole[:4]
    kept = max((out / ".answers").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    kept.write_text(kept.read_text()[:-9])  # as after a kill during a write
    refused = score(*command, "--out", out)
    assert refused.exit_code == 1
    assert "resume these with --resume" in refused.output

    rest = killed_at(None)
    result = score(*command, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert rest == whole[3:]
    assert files_of(out) == files_of(tmp_path / "whole")
    assert len((out / "provenance.jsonl").read_text().splitlines()) == 2
    killed_at(0)
    assert "is already scored" in score(*command, "--out", out, "--resume").output


def test_resume_with_other_settings_is_refused_before_a_model_is_loaded(run, tmp_path, killed_at, monkeypatch):
    task = written(tmp_path / "problems.jsonl", [{"question": "alpha", "answer": "1"}])
    out, checkpoint = tmp_path / "out", shutil.copytree(run, tmp_path / "run")
    command = [checkpoint, "--task", task, "--out", out, *SHORT]
    smaller = [checkpoint, "--task", task, "--out", tmp_path / "more", *SHORT, "score.limit=2"]
    problems = written(tmp_path / "file.jsonl", [{"question": f"{n}?", "answer": n} for n in range(9)])
    from_file = [checkpoint, "--task", f"{{name: gsm8k, path: {problems}, test_path: {problems}}}"]
    from_file += ["--out", tmp_path / "from", *SHORT]
    killed_at(0)
    for attempt in (command, [*smaller, "--task", "countdown"], from_file):
        assert score(*attempt).exit_code == 1
    monkeypatch.setattr("lit_illada.commands.score.load_checkpoint", None)

    def refusal(*words):
        result = score(*words, "--resume")
        assert result.exit_code == 1
        return result.output

    assert "generation.max_new_tokens: 8 in the folder, 4 requested" in refusal(*command, "generation.max_new_tokens=4")
    assert "is_reasoning: False in the folder, True requested" in refusal(*command, "--reasoning")
    written(task, [{"question": "alpha", "answer": "2"}])
    assert "files_sha256" in refusal(*command)
    written(task, [{"question": "alpha", "answer": "1"}])
    assert "named_tasks: ['countdown'] in the folder, [] requested" in refusal(*smaller)
    written(problems, [{"question": f"{n}?", "answer": n + 1} for n in range(9)])
    assert "problems_sha256" in refusal(*from_file)
    newest = max((checkpoint / "checkpoints").glob("step*"))
    os.utime(newest, (0, 0))
    assert "checkpoint_state" in refusal(*command)
    assert "contains scores of another request" in refusal(checkpoint, "--task", task, "--out", checkpoint, *SHORT)
    assert "give --out FOLDER" in refusal(checkpoint, "--task", task)


def test_a_causal_model_generates_its_solutions(causal_run, tmp_path):
    file = written(
        tmp_path / "problems.jsonl", [{"question": "alpha", "answer": "1"}, {"question": "pi", "answer": "2"}]
    )
    result = score(causal_run, "--task", file, "--out", tmp_path / "out", *SHORT)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out", summary(tmp_path / "out")["results"][0])
    assert all(len(row["token_ids"]) == len(row["steps"]) > 0 for row in rows)


def test_scores_default_to_the_runs_folder(run, items):
    checkpoint = max((run / "checkpoints").iterdir())
    for _ in range(2):
        assert score(checkpoint, "--task", items, "score.rule=left_to_right").exit_code == 0
    folders = list((run / "scores").iterdir())
    assert len(folders) == 2
    assert all(summary(folder)["checkpoint_file"] == str(checkpoint) for folder in folders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "nothing to score: give --task FILE|NAME, --text FILE, --reasoning, --held-out NUMBER",
        ),
        (["--task", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--text", "missing.txt"], "missing.txt: no such file"),
        (["--task", "ITEMS", "score.rule=exact"], "score.rule is exact, but the model is bidirectional"),
        (["--task", "ITEMS", "score.rule=confidense"], "did you mean 'confidence'"),
        (["--task", "ITEMS", "score.num_draws=1"], "score.num_draws is 1; it must be 2 or more"),
        (["--task", "ITEMS", "score.wording.prompt=Hello"], "it must contain {question}"),
        (["--task", "LONG"], "long.jsonl:2: prompt and answer have"),
        (["--task", "PROBLEM", "generation.max_new_tokens=2000"], "problem.jsonl:1: the prompt leaves"),
        (["--text", "EMPTY"], "empty.txt: the text is empty"),
        (["--text", "TEXT", "score.window_length=2000"], "more than the 1024 positions"),
        (["--text", "TEXT", "score.context_length=2000"], "no tokens would be left to score"),
        (["--text", "BYTES"], "bytes.txt: not UTF-8 text at byte 1"),
    ],
)
def test_user_mistakes_give_one_line(arguments, message, run, items, tmp_path):
    long = written(tmp_path / "long.jsonl", [ITEMS[0], {**ITEMS[1], "question": "pi " * 2000}])
    problem = written(tmp_path / "problem.jsonl", [{"question": "q", "answer": "1"}])
    texts = {"EMPTY": b"", "TEXT": b"alpha", "BYTES": b"a\xff"}
    for name, content in texts.items():
        (tmp_path / f"{name.lower()}.txt").write_bytes(content)
    files = {"ITEMS": items, "LONG": long, "PROBLEM": problem}
    files |= {name: tmp_path / f"{name.lower()}.txt" for name in texts}
    result = score(run, *[files.get(word, word) for word in arguments], "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_rule_of_diffusion_models_is_refused_for_a_causal_one_and_scores_are_not_overwritten(
    causal_run, items, tmp_path
):
    result = score(causal_run, "--task", items, "score.rule=bound")
    assert result.exit_code == 1
    assert "score.rule is bound, but the model is causal: use exact or all" in result.output
    assert score(causal_run, "--task", items, "--out", tmp_path / "out").exit_code == 0
    result = score(causal_run, "--task", items, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "already contains" in result.output


LINES = "".join(f"alpha {n} beta\ngamma {n * 7} delta\nmu nu xi\n---\n" for n in range(80))


def test_lines_of_rows_as_long_as_the_models_positions_are_filled(tiny_overrides, tmp_path):
    # an indentation is one token with the end of the line before it, and two where a line begins a gap
    lines = [f"    alpha {n} beta\n        gamma {n * 7}\n" + "---\n" * (n % 20 == 0) for n in range(400)]
    (tmp_path / "lines.txt").write_text("".join(lines))
    own = ["data=text", f"data.source.paths=[{tmp_path}/lines.txt]", f"data.dir={tmp_path}/data", "data.row_length=64"]
    short = ["trainer.max_steps=2", "model.max_position_embeddings=64", f"run_dir={tmp_path / 'run'}"]
    own.append("data.source.document_separator=---")
    trained = CliRunner().invoke(main, ["pretrain", *tiny_overrides, *own, *short])
    assert trained.exit_code == 0, trained.output
    options = ["generation.num_steps=1", "--out", tmp_path / "out"]
    result = score(tmp_path / "run", "--infill-lines", 3, *options)
    assert result.exit_code == 0, result.output
    assert summary(tmp_path / "out")["results"][0]["num_items"] == 3


def test_held_out_lines_are_filled_with_both_sides_and_with_the_text_before(tiny_overrides, tmp_path):
    (tmp_path / "lines.txt").write_text(LINES)
    own = ["data=text", f"data.source.paths=[{tmp_path}/lines.txt]", f"data.dir={tmp_path}/data", "data.row_length=64"]
    own.append("data.source.document_separator=---")
    short = ["generation.block_length=4", "generation.num_steps=4"]
    for name, kind in {"masked": [], "causal": ["objective=autoregressive", "model.is_causal=true"]}.items():
        trained = CliRunner().invoke(main, ["pretrain", *tiny_overrides, *own, *kind, f"run_dir={tmp_path / name}"])
        assert trained.exit_code == 0, trained.output
        result = score(tmp_path / name, "--infill-lines", 5, "--out", tmp_path / f"out-{name}", *short)
        assert result.exit_code == 0, result.output
        (figures,) = summary(tmp_path / f"out-{name}")["results"]
        rows = rows_of(tmp_path / f"out-{name}", figures)
        assert ("both" in figures) == ("both sides" in result.output) == (name == "masked")
        for row in rows:
            assert f"{row['prompt']}{row['truth']}{row['after']}".strip() in LINES
            assert row["after"].startswith("\n")
            assert row["is_right_before"] == (row["text_before"] == row["truth"])
        assert figures["exact_match_before"] == sum(row["is_right_before"] for row in rows) / len(rows)
    assert "only these have held-out text" not in result.output
    assert "not a run folder" in score(tmp_path, "--infill-lines", 5).output
