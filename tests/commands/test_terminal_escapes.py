"""Commands print names and texts from elsewhere without executing their terminal escapes or rich markup."""

import json
import os
import sys
import unicodedata

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.generation.trace import read_traces

FILE = "a\x1b[31m.jsonl"
GROUP = "[red]x[/red]\x1b]0;title\x07"
SHOWN = "[red]x[/red]\\x1b]0;title\\x07"


def lit_illada(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"})


def is_safe(output):
    return not any(unicodedata.category(character) in ("Cc", "Cf") for character in output if character not in "\r\n\t")


def generations(path, group="a"):
    path.write_text("".join(json.dumps({"text": f"text {index}", "set": group}) + "\n" for index in range(4)))
    return path


@pytest.fixture(scope="module")
def run(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}", "trainer.max_steps=2").exit_code == 0
    return run


def test_loops_analyze_shows_groups_and_file_names_as_they_are(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (FILE, "b.jsonl"):
        generations(folder / name, GROUP)
    result = lit_illada("loops", "analyze", folder, "--group-field", "set", "--out", tmp_path / "out\x1b[0m")
    assert result.exit_code == 0, result.output
    assert SHOWN in result.output
    assert "out\\x1b[0m" in result.output
    assert is_safe(result.output)


def test_loops_analyze_shows_names_of_arms_as_they_are(tmp_path):
    file = generations(tmp_path / FILE)
    other = generations(tmp_path / "b.jsonl")
    result = lit_illada("loops", "analyze", "--arm", GROUP, file, "--arm", "b", other, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert SHOWN in result.output
    assert is_safe(result.output)


def test_score_shows_the_name_of_a_file_as_it_is(run, tmp_path):
    (tmp_path / "[red]\x1b[31m.txt").write_text("alpha beta gamma")
    settings = ["score.num_draws=2", "score.window_length=16", "score.context_length=0"]
    result = lit_illada("score", run, "--text", tmp_path / "[red]\x1b[31m.txt", "--out", tmp_path / "out", *settings)
    assert result.exit_code == 0, result.output
    assert "[red]\\x1b[31m.txt: " in result.output
    assert is_safe(result.output)


def test_a_generated_text_is_escaped_on_a_terminal_and_unchanged_in_a_pipe(run, tmp_path, monkeypatch):
    # at this temperature the model of 300 tokens draws bytes at random, control characters among them
    settings = ["generation.max_new_tokens=96", "generation.block_length=96", "generation.num_steps=96"]
    settings += ["generation.temperature=50", "generation.seed=1"]
    words = ["generate", run, "--prompt", "alpha", "--no-live", "--trace", tmp_path / "t.jsonl", *settings]
    piped = lit_illada(*words)
    ((_, about),) = read_traces(tmp_path / "t.jsonl")
    assert piped.stdout == about["text"] + "\n"
    assert not is_safe(about["text"])
    reader, terminal = os.openpty()
    with open(terminal, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        main(list(map(str, words)), standalone_mode=False)
        shown = os.read(reader, 100_000).decode()
    os.close(reader)
    assert "\\x" in shown
    assert is_safe(shown)


@pytest.mark.parametrize(
    "words",
    [
        ["loops", "analyze", FILE],
        ["pretrain", f"model.{FILE}=1"],
        ["pretrain", f"model={FILE}"],
        [FILE],
        [f"--{FILE}"],
        ["pretrain", f"--{FILE}"],
        ["generate", __file__, "--trace", f"{FILE}/t.jsonl"],
        ["loops", "analyze", "--group-field", "x", "--out", __file__ + FILE, FILE],
        ["sweep", "plan", FILE],
        ["data", "inspect", FILE],
    ],
)
def test_an_error_shows_what_it_quotes_without_escapes(words):
    result = lit_illada(*words)
    assert result.exit_code > 0
    assert "\\x1b[31m" in result.output
    assert is_safe(result.output)
