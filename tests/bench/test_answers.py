"""Ways of decoding of the benchmark `answers`: with the models of sweeps/loop_base, and with tiny pretrained runs."""

import csv
import json

import pytest
import yaml
from click.testing import CliRunner

from lit_illada.bench import answers_table
from lit_illada.bench.answers import measure
from lit_illada.bench.questions import read_questions
from lit_illada.checkpoints.open import load_checkpoint, open_checkpoint
from lit_illada.cli import main
from lit_illada.errors import UserError
from lit_illada.runtime.paths import sweeps_dir

WAYS = [f"{rule}{cache}" for cache in ("", ", cached") for rule in ("plain", "threshold 0.9")]


TUNED = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=1", "trainer.batch_rows=4",
         "trainer.micro_batch_rows=4", "trainer.val_rows=4", "trainer.val_draws=1", "optim.schedule.warmup_steps=0",
         "sft_data.row_length=192", "sft_data.source.num_train=16", "sft_data.source.num_validation=8",
         "sft_data.source.num_harder=8", "sft_data.source.easy.max_depth=2", "sft_data.source.harder.min_depth=3",
         "sft_data.source.harder.max_depth=3", "evaluation.num_examples=0"]  # fmt: skip


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    def trained(name, *overrides):
        run = tmp_path_factory.mktemp("decoded") / name
        result = CliRunner().invoke(main, ["pretrain", *tiny_overrides, f"run_dir={run}", *overrides])
        assert result.exit_code == 0, result.output
        return run

    return trained


@pytest.fixture(scope="module")
def run(trained):
    return trained("diffusion")


@pytest.fixture(scope="module")
def twin(trained):
    return trained("causal", "objective=autoregressive", "model.is_causal=true")


@pytest.fixture(scope="module")
def other_twin(trained, tmp_path_factory):
    """A causal run with another tokenizer."""
    data = [f"data.dir={tmp_path_factory.mktemp('decoded') / 'data'}", "data.tokenizer.vocab_size=280"]
    return trained("other", "objective=autoregressive", "model.is_causal=true", "trainer.max_steps=2", *data)


def test_a_pretrained_run_is_measured_beside_its_twin(run, twin, tmp_path):
    options = ["--new-tokens", 8, "--threshold", 0.9, "--repeats", 1, "--out", tmp_path / "out"]
    result = bench("answers", "--checkpoint", run, "--twin", twin, *options)
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "answers.csv").open(encoding="utf-8", newline="") as lines:
        rows = {(row["way"], int(row["batch"])): row for row in csv.DictReader(lines)}
    assert list(rows) == [(way, batch) for way in [*WAYS, "autoregressive"] for batch in (1, 8, 32)]
    for (way, batch), row in rows.items():
        assert float(row["tokens_per_s"]) > 0
        assert float(row["first_token_ms"]) > 0
        assert float(row["text_nats_per_token"]) > 0
        assert (row["over_twin"] == "") == (way == "autoregressive")
        if batch == 1 and way in ("plain", "plain, cached"):
            assert float(row["forwards_per_token"]) >= 1
    content = json.loads((tmp_path / "out" / "answers.json").read_text(encoding="utf-8"))
    assert content["setting"]["new_tokens"] == content["setting"]["block_length"] == 8
    for words in ("ways of decoding", "Validation rows: bound of the diffusion model", "A ratio holds for these sizes"):
        assert words in " ".join(result.output.split())
    status = yaml.safe_load((tmp_path / "out" / "status.yaml").read_text(encoding="utf-8"))
    assert status["command"].startswith(f"lit-illada bench answers --checkpoint {run} --twin {twin} --new-tokens 8")
    again = bench("answers", "--checkpoint", run, "--out", tmp_path / "out")
    assert again.exit_code == 1
    assert "holds results already" in again.output


def test_the_likelihood_of_both_models_is_that_of_their_validation(run, twin):
    questions = read_questions(run, open_checkpoint(run), 4)
    for path in (run, twin):
        last = json.loads((path / "summary.json").read_text(encoding="utf-8"))["end"]
        assert questions.judge_model(*load_checkpoint(path))["nats_per_token"] == pytest.approx(
            last["val/nll_bound"], rel=1e-5
        )


def test_prompts_lie_within_one_document(run):
    checkpoint = open_checkpoint(run)
    prompts = read_questions(run, checkpoint, 4).prompts
    assert [len(prompt) for prompt in prompts] == [16] * 4
    assert not any(checkpoint.tokenizer.eos_token_id in prompt for prompt in prompts)


def test_a_row_of_the_table_is_a_way_in_one_batch(run, twin):
    figures = measure(run, num_prompts=2, repeats=1, new_tokens=4, thresholds=[0.9])
    rows = list(answers_table.rows(figures))
    assert [(row["way"], row["batch"]) for row in rows] == [(way, batch) for way in WAYS for batch in (1, 8, 32)]
    assert "over_twin" not in rows[0]
    assert "text_nats_per_token" not in rows[0]
    assert "twin, exactly" not in answers_table.explanation(figures)


@pytest.mark.parametrize(
    "generation", [["fast", "evaluation.generation.commit_rule.threshold=0.001"], ["dream"]], ids=["fast", "dream"]
)
def test_the_plain_way_commits_one_token_per_step_whatever_the_run_uses(generation, run, tmp_path):
    name, *overrides = generation
    tuned = tmp_path / "tuned"
    overrides = [*TUNED, f"generation@evaluation.generation={name}", *overrides, f"run_dir={tuned}"]
    result = CliRunner().invoke(main, ["sft", str(run), *overrides])
    assert result.exit_code == 0, result.output
    figures = measure(tuned, num_prompts=2, repeats=1, new_tokens=4, thresholds=[0.001])
    forwards = {way: figures[way]["batch_1"]["forwards_per_token"] for way in ("plain", "plain, cached")}
    assert min(forwards.values()) >= 1
    assert figures["threshold 0.001"]["batch_1"]["forwards_per_token"] < 1


def test_a_threshold_out_of_range_is_refused_by_the_name_of_the_option():
    result = bench("answers", "--threshold", "1.5")
    assert result.exit_code == 2
    assert "'--threshold': 1.5 is not in the range 0<x<=1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["answers", "--checkpoint", "RUN", "--twin", "RUN"], "a diffusion model; give an autoregressive run"),
        (["answers", "--checkpoint", "TWIN"], "an autoregressive model; give it as --twin"),
        (["answers", "--twin", "TWIN"], "is the twin of a run: give that run by --checkpoint RUN"),
        (["data", "--new-tokens", "8"], "apply to the benchmark answers"),
        (
            ["answers", "--checkpoint", "RUN", "--new-tokens", "2000"],
            "prompts of up to 16 tokens and 2000 new ones are more than the 1024 positions of the model: set "
            "--new-tokens to at most 1008",
        ),
        (["answers", "--out", "FILE/decoding"], "decoding cannot be written: FILE is not a writable folder"),
        (["answers", "--checkpoint", "RUN", "--twin", "OTHER"], "its tokenizer is not that of"),
    ],
)
def test_unusable_options_are_refused_in_one_line(arguments, message, run, twin, other_twin, tmp_path):
    file = tmp_path / "file"
    file.touch()
    paths = {"RUN": run, "TWIN": twin, "OTHER": other_twin, "FILE/decoding": file / "decoding"}
    result = bench(*(paths.get(word, word) for word in arguments))
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert message.replace("FILE", str(file)) in line


def test_too_few_prompts_are_refused(run):
    with pytest.raises(UserError, match=r"held-out prompts, 100000 are needed"):
        measure(run, num_prompts=100_000)


@pytest.mark.slow
def test_every_way_is_measured_beside_its_twin():
    figures = measure(num_prompts=2, repeats=1)
    for way in ("plain", "threshold 0.9", "threshold 0.5, cached", "autoregressive"):
        for batch in (1, 8, 32):
            cell = figures[way][f"batch_{batch}"]
            assert cell["tokens_per_s"]["median"] > 0
            assert cell["first_token_ms"]["median"] > 0
    cells = {way: figures[way]["batch_1"]["forwards_per_token"] for way in ("plain", "threshold 0.9")}
    assert cells["threshold 0.9"] < cells["plain"]
    assert "threshold 0.9, cached / autoregressive, batch 32" in figures["ratios"]
    assert figures["setting"]["precision"] in ("float32", "bfloat16")


@pytest.mark.slow
def test_a_run_without_a_twin_is_measured_alone():
    figures = measure(sweeps_dir() / "loop_base" / "diffusion", num_prompts=1, repeats=1, thresholds=[0.9])
    assert "autoregressive" not in figures
    others = [way for way in WAYS if way != "plain"]
    assert set(figures["ratios"]) == {
        *(f"{way} / plain, batch {batch}" for way in others for batch in (1, 8, 32)),
        *(f"{way}, batch {batch} / 1" for way in WAYS for batch in (8, 32)),
    }
