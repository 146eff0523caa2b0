"""Fine-tuning runs from the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.bench import answers
from lit_illada.checkpoints.open import open_checkpoint
from lit_illada.cli import main
from lit_illada.objective.loss import NoisyBatch
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint
from lit_illada.training.sft_module import ResponseCurves

SMALL = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=6",
    "trainer.batch_rows=4",
    "trainer.micro_batch_rows=4",
    "trainer.val_every_steps=3",
    "trainer.checkpoint_every_steps=3",
    "trainer.log_every_steps=2",
    "trainer.val_rows=4",
    "trainer.val_draws=1",
    "optim.schedule.warmup_steps=1",
    "sft_data.source.num_train=64",
    "sft_data.source.num_validation=16",
    "sft_data.source.num_harder=16",
    "sft_data.source.easy.max_depth=2",
    "sft_data.source.harder.min_depth=3",
    "sft_data.source.harder.max_depth=3",
    "evaluation.num_examples=3",
    "evaluation.generation.max_new_tokens=16",
    "evaluation.generation.block_length=8",
    "evaluation.generation.num_steps=4",
]


def lit_illada(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def weights(run):
    return read_checkpoint(latest_checkpoint(Path(run) / "checkpoints"))["state_dict"]


@pytest.fixture(scope="module")
def base(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "base"
    short = ["trainer.max_steps=2", "trainer.val_every_steps=2", "model.max_position_embeddings=512"]
    assert lit_illada("pretrain", *tiny_overrides, *short, f"run_dir={run}").exit_code == 0
    return run


@pytest.fixture(scope="module")
def tuned(base):
    run = base.parent / "tuned"
    result = lit_illada("sft", base, *SMALL, "sft_data.row_length=256", f"run_dir={run}")
    assert result.exit_code == 0, result.output
    return run


def test_a_run_starts_from_its_base_checkpoint_and_writes_answers_and_curves(base, tuned):
    summary = json.loads((tuned / "summary.json").read_text())
    for tag in ("train/response_nll", "train/response_accuracy", "val/exact_match_easy", "val/exact_match_harder"):
        assert tag in summary["end"]
    written = [json.loads(line) for line in (tuned / "answers.jsonl").open()]
    assert {(answer["step"], answer["difficulty"]) for answer in written} == {
        (step, level) for step in (0, 3, 6) for level in ("easy", "harder")
    }
    assert all(answer["prompt"].endswith("<|assistant|>") for answer in written)
    before, after = weights(base), weights(tuned)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert lit_illada("generate", tuned, "--prompt", "1+1", "generation.max_new_tokens=32").exit_code == 0


WAYS = {
    "illada": ["sft_data/rows=illada"],
    "llada": ["sft_data/rows=llada", "objective=llada_sft"],
    "packed, visible prompt": ["sft_data/rows=packed_visible_prompt"],
    "padding not counted": ["sft_data/rows=padded_uncounted", "objective=llada_sft"],
    "lora": ["adapter=lora", "adapter.rank=2"],
    "complementary masks": ["objective=complementary"],
    "the papers' schedules": ["optim=llada_sft"],
}


def test_tensorboard_shows_prompts_and_answers(tuned):
    events = EventAccumulator(str(tuned), size_guidance={"tensors": 0})
    events.Reload()
    first = json.loads((tuned / "answers.jsonl").read_text().splitlines()[0])
    text = events.Tensors("answers_easy/prompt_0/text_summary")[0].tensor_proto.string_val[0].decode()
    prompt, _, answer = text.removeprefix("**Prompt**\n\n").partition("\n\n**Completion**\n\n")
    assert prompt == "\n".join(f"    {line}" for line in first["prompt"].splitlines())
    assert answer == ("\n".join(f"    {line}" for line in first["response"].splitlines()) or "    (empty)")
    assert "answers_harder/prompt_0/text_summary" in events.Tags()["tensors"]
    assert {"over_tokens/val/nll_bound", "over_tokens/train/loss"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_fine_tuning_trains(way, base, tmp_path):
    short = ["trainer.max_steps=2", "trainer.val_every_steps=2", "evaluation.num_examples=0"]
    run = tmp_path / "run"
    result = lit_illada("sft", base, *SMALL, "sft_data.row_length=256", *WAYS[way], *short, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    assert json.loads((run / "summary.json").read_text())["end"]["train/response_nll"] > 0
    assert lit_illada("generate", run, "--prompt", "1+1", "generation.max_new_tokens=32").exit_code == 0


def test_a_resumed_run_equals_an_uninterrupted_one_even_without_its_base(base, tuned, tmp_path):
    copy, run = tmp_path / "base", tmp_path / "run"
    copy.mkdir()
    for path in sorted(base.rglob("*")):
        target = copy / path.relative_to(base)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    assert lit_illada("sft", copy, *SMALL, "sft_data.row_length=256", f"run_dir={run}").exit_code == 0
    (run / "checkpoints" / "step=00000006.ckpt").unlink()
    copy.rename(tmp_path / "gone")
    result = lit_illada("sft", "--resume", run)
    assert result.exit_code == 0, result.output
    expected, resumed = weights(tuned), weights(run)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft_data.rows.is_prompt_maskable=false", "the checkpoint was trained with sft_data.rows=Packed("),
        ("sft_data.row_length=128", "with sft_data.row_length=256, not sft_data.row_length=128"),
    ],
)
def test_a_resume_with_other_rows_is_rejected(override, message, tuned):
    before = (tuned / "config.yaml").read_text()
    result = lit_illada("sft", "--resume", tuned, override, "trainer.max_steps=20")
    assert result.exit_code == 1
    assert message in result.output.strip().splitlines()[-1]
    assert (tuned / "config.yaml").read_text() == before


def test_a_run_killed_before_its_final_metrics_has_them_after_a_resume(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    figures = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({"start": figures["start"]}))
    result = lit_illada("sft", "--resume", run)
    assert result.exit_code == 0, result.output
    end = json.loads((run / "summary.json").read_text())["end"]
    expected = {name: value for name, value in figures["end"].items() if "val" in name or name == "step"}
    assert {name: end.get(name) for name in expected} == expected


def test_lora_trains_few_parameters_and_its_checkpoint_is_read_merged(base, tmp_path):
    run = tmp_path / "run"
    adapted = ["adapter=lora", "adapter.rank=2", "evaluation.num_examples=0"]
    assert lit_illada("sft", base, *SMALL, "sft_data.row_length=256", *adapted, f"run_dir={run}").exit_code == 0
    before, after = weights(base), weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    merged = open_checkpoint(run).tensors
    name = "model.layers.0.self_attn.q_proj.weight"
    stem = "model.model.layers.0.self_attn.q_proj"
    update = after[f"{stem}.lora_b"] @ after[f"{stem}.lora_a"] * (32.0 / 2)
    assert update.abs().max() > 0
    torch.testing.assert_close(merged[name], before[f"{stem}.weight"] + update)
    assert lit_illada("sft", run, *SMALL, "sft_data.row_length=256", f"run_dir={tmp_path / 'next'}").exit_code == 0


def test_epochs_decide_the_steps(base, tmp_path):
    run = tmp_path / "run"
    padded = ["sft_data/rows=llada", "objective=llada_sft", "epochs=0.25", "evaluation.num_examples=0"]
    assert lit_illada("sft", base, *SMALL, "sft_data.row_length=256", *padded, f"run_dir={run}").exit_code == 0
    assert latest_checkpoint(run / "checkpoints").name == "step=00000004.ckpt"  # a quarter of 64 rows, 4 a step


def test_a_causal_model_is_fine_tuned_and_answers_by_the_same_commands(tiny_overrides, tmp_path):
    causal = ["objective=autoregressive", "model.is_causal=true", "trainer.max_steps=2", "trainer.val_every_steps=2"]
    base, run = tmp_path / "base", tmp_path / "run"
    result = lit_illada("pretrain", *tiny_overrides, *causal, "model.max_position_embeddings=512", f"run_dir={base}")
    assert result.exit_code == 0, result.output
    result = lit_illada("sft", base, *SMALL, "sft_data.row_length=256", "objective=autoregressive", f"run_dir={run}")
    assert result.exit_code == 0, result.output
    assert "val/exact_match_easy" in json.loads((run / "summary.json").read_text())["end"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=autoregressive"], "needs model.is_causal=true"),
        (["sft_data.row_length=4096"], "longer than model.max_position_embeddings=512"),
        (["sft_data.row_length=8"], "more than sft_data.row_length=8"),
        (["epochs=0"], "epochs is 0"),
        (["adapter=lora", "adapter.rank=0"], "adapter.rank is 0"),
        (["adapter=lora", "adapter.targets=[q_pro]"], "did you mean 'q_proj'"),
        (["sft_data.rows.pad=1"], "sft_data.rows"),
    ],
)
def test_an_invalid_config_ends_in_one_line(overrides, message, base, tmp_path):
    run = tmp_path / "run"
    result = lit_illada("sft", base, *SMALL, *overrides, f"run_dir={run}")
    assert result.exit_code == 1
    assert message in result.output
    assert not run.exists()


def test_without_a_checkpoint_the_error_names_the_missing_argument(tmp_path):
    assert "give a checkpoint" in lit_illada("sft").output
    assert "no run there" in lit_illada("sft", tmp_path).output


def test_response_curves_equal_a_loop_over_the_tokens():
    generator = torch.Generator().manual_seed(0)
    B, T, eos = 3, 12, 1
    ids = torch.randint(0, 4, (B, T), generator=generator)
    is_response, is_masked = (torch.rand(B, T, generator=generator) < 0.5 for _ in range(2))
    nll, is_correct = torch.rand(int(is_masked.sum()), generator=generator), torch.rand(B, T, generator=generator) < 0.5
    batch = TokenBatch(ids, torch.ones_like(is_masked), torch.arange(B), Layout.whole_rows(B, T), is_response)
    one = torch.ones(B, dtype=torch.float64)
    noisy = NoisyBatch(ids, batch.layout, is_masked, ids[is_masked], batch.is_maskable, one, one)
    curves = ResponseCurves(eos)
    curves.update(batch, noisy, TokenScores(nll, is_correct[is_masked]))
    response, correct, ends, folder = [], [], [], 0
    for b in range(B):
        for t in range(T):
            if is_masked[b, t]:
                if is_response[b, t]:
                    response.append(float(nll[folder]))
                    correct.append(bool(is_correct[b, t]))
                    if ids[b, t] == eos:
                        ends.append(float(nll[folder]))
                folder += 1
    values = curves.compute()
    assert float(values["response_nll"]) == pytest.approx(sum(response) / len(response))
    assert float(values["response_accuracy"]) == pytest.approx(sum(correct) / len(correct))
    assert float(values["eos_nll"]) == pytest.approx(sum(ends) / len(ends))


def test_the_answers_of_a_run_are_timed_and_checked_by_the_bench(tuned):
    figures = answers.measure(tuned, num_prompts=3, repeats=1, thresholds=[0.9])
    for way in ("plain", "threshold 0.9"):
        assert 0 <= figures[way]["exact_match"] <= 1
        assert figures[way]["batch_8"]["tokens_per_s"]["min"] > 0
    assert figures["ratios"]["threshold 0.9 / plain, batch 1"]["min"] > 0
    result = lit_illada("bench", "answers", "--checkpoint", "nowhere")
    assert (result.exit_code, result.output) == (1, "Error: nowhere: no run there (no config.yaml)\n")
