"""The generate command on a diffusion model and on a causal one."""

import json

import pytest
from click.testing import CliRunner

import lit_illada as lit_illada_module
from lit_illada.cli import main
from lit_illada.generation.trace import read_traces

SHORT = ["generation.max_new_tokens=16", "generation.block_length=8", "generation.num_steps=4"]


def lit_illada(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}", "trainer.max_steps=2").exit_code == 0
    return run


@pytest.fixture(scope="module")
def causal(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "causal"
    kind = ["objective=autoregressive", "model.is_causal=true", "samples.prompts=['alpha ']", "trainer.max_steps=2"]
    kind += ["samples.generation.max_new_tokens=32"]
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}", *kind).exit_code == 0
    return run


def test_a_causal_checkpoint_generates_by_the_same_command_and_samples_in_training(causal):
    greedy = [lit_illada("generate", causal, "--prompt", "alpha", *SHORT) for _ in range(2)]
    assert greedy[0].exit_code == 0
    assert greedy[0].stdout == greedy[1].stdout
    hot = ["generation.temperature=1.0", "generation.top_p=0.9", "generation.seed=1"]
    assert lit_illada("generate", causal, "--prompt", "alpha", *SHORT, *hot).exit_code == 0
    assert (causal / "samples.txt").read_text().count("\nalpha ") == 2  # at the start and at the end


def test_a_causal_checkpoint_rejects_settings_of_diffusion_generation(causal):
    result = lit_illada("generate", causal, "--prompt", "alpha", *SHORT, "generation/cache=dual")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: generation.cache is set, but the model is causal")


@pytest.mark.parametrize("kind", ["trained", "causal"])
def test_a_trace_and_its_picture_are_written_with_the_settings(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    files = ["--trace", tmp_path / "t.jsonl", "--trace-picture", tmp_path / "t.png"]
    result = lit_illada("generate", run, "--prompt", "alpha", *files, *SHORT, "generation.seed=7")
    assert result.exit_code == 0
    ((trace, about),) = read_traces(tmp_path / "t.jsonl")
    assert about["settings"]["seed"] == 7
    assert about["settings"]["commit_rule"] == {"name": "low_confidence"}
    assert about["prompt"] == "alpha"
    assert about["text"] == result.stdout.removesuffix("\n")
    assert len(about["tokens"]) == len(trace.token_ids)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert about["precision"] == "32-true"


def test_bfloat16_can_be_selected(trained, tmp_path):
    trace = ["--trace", tmp_path / "t.jsonl", "precision=bf16-mixed"]
    assert lit_illada("generate", trained, "--prompt", "alpha", *SHORT, *trace).exit_code == 0
    assert next(read_traces(tmp_path / "t.jsonl"))[1]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("preset", ["llada", "llada_blocks", "fast"])
def test_the_presets_run(trained, preset):
    result = lit_illada(
        "generate", trained, "--prompt", "alpha", f"generation={preset}", "generation.max_new_tokens=128"
    )
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace", "missing/t.jsonl"], "no folder missing"),
        (["--trace-picture", "t.txt"], "unknown file format of a picture '.txt'"),
        (["generation.num_steps=9"], "generation.num_steps is 9: it must be at most generation.block_length"),
        (["generation.block_length=0"], "generation.block_length is 0"),
        (["generation/commit_rule=treshold"], "threshold"),
        (["generation.tokens_per_step=2"], "give one of them"),
    ],
)
def test_an_invalid_command_is_rejected_in_one_line(trained, arguments, message):
    result = lit_illada("generate", trained, "--prompt", "alpha", *SHORT, *arguments)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert message in result.output


@pytest.fixture(scope="module")
def renamed(trained, tmp_path_factory):
    """The model in a folder whose tokenizer names these tokens, beside [MASK] and EOS, and no others."""

    def renamed(**names):
        folder = tmp_path_factory.mktemp("converted")
        assert lit_illada("convert", trained, folder / "out").exit_code == 0
        path = folder / "out" / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "extra_special_tokens": names}))
        (folder / "out" / "checksums.json").unlink()  # the edit is meant
        assert lit_illada("convert", folder / "out", folder / "back").exit_code == 0
        return folder / "back"

    return renamed


@pytest.fixture(scope="module")
def thinker(renamed):
    """A model that reasons from the start: its tokenizer has a closing token only."""
    return renamed(think_close_token="<|/think|>")


LONGER = ["generation.max_new_tokens=24", "generation.block_length=8", "generation.num_steps=8"]
ROOM = ["generation.thinking_stop.thinking_tokens=10", "generation.thinking_stop.answer_tokens=4"]
EARLY = "generation.thinking_stop.start_tokens=4"


@pytest.mark.parametrize(
    ("choice", "most"),
    [
        (["generation/thinking_stop=hard", *ROOM], 10),
        (["generation/thinking_stop=linear", *ROOM, EARLY, "generation.thinking_stop.scale=60"], 16),
        (["generation/thinking_stop=mixture", *ROOM, EARLY, "generation.thinking_stop.max_fraction=0.99"], 16),
        (["generation/thinking_stop=exponential", EARLY, "generation.thinking_stop.factor=9"], 16),
    ],
    ids=["hard", "linear", "mixture", "exponential"],
)
def test_a_reasoning_segment_is_closed_and_the_trace_records_the_cause(thinker, tmp_path, choice, most):
    command = ["generate", thinker, "--prompt", "alpha", *LONGER, "--trace", tmp_path / "t.jsonl"]
    assert "<|/think|>" not in lit_illada(*command).stdout
    ((_, about),) = read_traces(tmp_path / "t.jsonl")
    assert (about["thinking_stop"], about["alarms"]) == ("none", [])
    result = lit_illada(*command, *choice)
    assert result.exit_code == 0, result.output
    ((_, about),) = read_traces(tmp_path / "t.jsonl")
    assert about["thinking_stop"] == "forced"
    assert result.stdout.count("<|/think|>") == 1
    at = about["tokens"].index("<|/think|>")
    assert at == 10 if most == 10 else 4 < at < most
    assert about["settings"]["thinking_stop"]["name"] == choice[0].split("=")[1]


@pytest.mark.parametrize(("kind", "rule"), [("trained", "penalty"), ("causal", "penalty"), ("causal", "dry")])
def test_a_penalty_changes_a_repeating_text(kind, rule, request):
    command = ["generate", request.getfixturevalue(kind), "--prompt", "alpha", *LONGER, "generation.temperature=0.5"]
    strong = {
        "penalty": ["generation.repetition.penalty=9"],
        "dry": ["generation.repetition.multiplier=9", "generation.repetition.allowed_length=1"],
    }[rule]
    penalised = lit_illada(*command, f"generation/repetition={rule}", *strong)
    assert penalised.exit_code == 0
    assert penalised.stdout != lit_illada(*command).stdout


@pytest.mark.parametrize("response", ["remask_span", "temperature_kick"])
def test_alarms_are_in_the_trace(trained, tmp_path, response):
    eager = [f"generation.on_loop.{key}" for key in ("min_period=1", "min_cycles=2", "min_length=2")]
    choice = [f"generation/on_loop={response}", *eager, "--trace", tmp_path / "t.jsonl"]
    assert lit_illada("generate", trained, "--prompt", "alpha", *LONGER, *choice).exit_code == 0
    ((trace, about),) = read_traces(tmp_path / "t.jsonl")
    assert set(about["alarms"][0]) == {"start", "period", "length", "step", "num_remasked"}
    is_remasked = sum(alarm["num_remasked"] for alarm in about["alarms"]) > 0
    assert is_remasked == (max(trace.num_commits) > 1) == (response == "remask_span")


def test_an_early_exit_runs_trials(thinker, tmp_path):
    rule = ["generation.early_exit.threshold=100", "generation.early_exit.min_trials=2"]
    command = ["generate", thinker, "--prompt", "alpha", *LONGER, "--trace", tmp_path / "t.jsonl"]
    assert lit_illada(*command, "generation/early_exit=settled", *rule).exit_code == 0
    ((_, about),) = read_traces(tmp_path / "t.jsonl")
    assert about["thinking_stop"] == "early_exit"
    assert about["tokens"].index("<|/think|>") == 16


def test_a_tokenizer_without_reasoning_tokens_is_rejected_in_one_line(renamed):
    result = lit_illada("generate", renamed(), "--prompt", "a", *LONGER, "generation/thinking_stop=hard", *ROOM)
    assert result.exit_code == 1
    assert "the tokenizer names no think_close_token" in result.output.splitlines()[-1]


def test_gaps_are_filled_and_the_whole_text_is_printed(trained, causal):
    text = "alpha <fill:3> gamma <fill:0-2> delta"
    result = lit_illada("generate", trained, "--infill", text, "generation.block_length=4", "generation.num_steps=2")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("alpha ")
    assert " gamma " in result.stdout
    assert result.stdout.endswith(" delta\n")
    assert "fill" not in result.stdout
    again = lit_illada_module.infill(str(trained), text, block_length=4, num_steps=2)
    assert again + "\n" == result.stdout
    refused = {
        (trained, "no gap"): "no gap in 'no gap'",
        (trained, "a <fill:90000> b"): "together more than the",
        (trained, "a <fill:0> b"): "<fill:0>: the size must be 1 or more",
        (causal, text): "the model is causal",
    }
    for (run, wrong), message in refused.items():
        result = lit_illada("generate", run, "--infill", wrong)
        assert result.exit_code == 1
        assert message in result.output.splitlines()[-1]
    for other in (["--prompt", "a"], ["--chat"], ["--trace", "t.jsonl"]):
        result = lit_illada("generate", trained, "--infill", text, *other)
        assert result.exit_code == 1
        assert f"cannot be combined with {other[0]}" in result.output
