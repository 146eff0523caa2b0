"""The generate command on a diffusion model and on a causal one."""

import pytest
from click.testing import CliRunner

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


def test_a_causal_checkpoint_refuses_what_only_denoising_has(causal):
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


def test_bfloat16_is_a_choice(trained, tmp_path):
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
    ("arguments", "said"),
    [
        (["--trace", "missing/t.jsonl"], "no folder missing"),
        (["--trace-picture", "t.txt"], "unknown ending of a picture '.txt'"),
        (["generation.num_steps=9"], "generation.num_steps is 9: it must be at most generation.block_length"),
        (["generation.block_length=0"], "generation.block_length is 0"),
        (["generation/commit_rule=treshold"], "threshold"),
        (["generation.tokens_per_step=2"], "give one of them"),
    ],
)
def test_a_wrong_command_is_one_line(trained, arguments, said):
    result = lit_illada("generate", trained, "--prompt", "alpha", *SHORT, *arguments)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert said in result.output
