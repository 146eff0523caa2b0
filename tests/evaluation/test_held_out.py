"""`score --held-out`: questions made of a run's own held-out data."""

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.errors import UserError
from lit_illada.evaluation.held_out import HeldOutContinuations


def invoke(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def summary(out):
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def rows(out):
    return [json.loads(line) for line in (out / "items-held-out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_pretrained_run_chooses_continuations_and_a_fine_tuned_run_solves_problems(
    tiny_overrides, tiny_run, tmp_path
):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    few = ["data.row_length=64", "trainer.max_steps=4", "trainer.val_every_steps=4"]
    assert invoke("pretrain", *tiny_overrides, *few, f"run_dir={run}").exit_code == 0
    out = tmp_path / "out"
    assert invoke("score", run, "--held-out", 6, "--out", out, "score.num_draws=2").exit_code == 0
    items = rows(out)
    assert 4 <= len(items) <= 6
    for item in items:
        assert len(set(item["choices"])) == len(item["choices"]) == 4
        assert item["question"].strip()
    end = summary(out)["end"]
    for rule in ("bound", "left_to_right", "confidence_order", "confidence"):
        right = sum(item["scores"][rule]["choice"] == item["answer"] for item in items)
        assert end[f"{rule}/accuracy"] == right / len(items)
    assert invoke("score", run, "--held-out", 6, "--out", tmp_path / "one", "score.rule=confidence").exit_code == 0
    assert summary(tmp_path / "one")["end"]["accuracy"] == end["confidence/accuracy"]

    shape = [item for item in tiny_run if item.startswith(("trainer", "optim.schedule"))]
    shape += ["trainer.max_steps=2", "sft_data.row_length=256", "evaluation.num_examples=0", f"run_dir={tuned}"]
    shape += [f"sft_data.source.{name}=40" for name in ("num_train", "num_validation", "num_harder")]
    assert invoke("sft", run, *shape).exit_code == 0
    generation = ["generation.max_new_tokens=8", "generation.block_length=4", "generation.num_steps=2"]
    assert invoke("score", tuned, "--held-out", 3, "--out", tmp_path / "solved", *generation).exit_code == 0
    solved, end = rows(tmp_path / "solved"), summary(tmp_path / "solved")["end"]
    assert [row["difficulty"] for row in solved] == ["easy"] * 3 + ["harder"] * 3
    assert end["exact_match_easy"] == sum(row["is_right"] for row in solved[:3]) / 3
    assert end["num_forwards"] > 0


def test_a_few_questions_take_their_wrong_choices_from_further_texts(monkeypatch):
    texts = [(f"context {n}", f"continuation {n % 5}") for n in range(9)]
    config = SimpleNamespace(data=SimpleNamespace(row_length=64, dir="data"))
    rows = SimpleNamespace(rows_per_epoch=9)
    monkeypatch.setattr("lit_illada.build.build_datamodule", lambda _config: SimpleNamespace(val_rows=rows))
    monkeypatch.setattr("lit_illada.evaluation.held_out._texts", lambda _datamodule: iter(texts))
    for num in (1, 3, 6):
        items = HeldOutContinuations.read(config, num).items
        assert [item.question for item in items] == [context for context, _ in texts[:num]]
        assert all(len(set(item.choices)) == 4 for item in items)
        assert [item.choices[item.answer] for item in items] == [own for _, own in texts[:num]]
    texts[:] = [(f"context {n}", f"continuation {n % 2}") for n in range(9)]
    with pytest.raises(UserError, match="data: only 2 different continuations of held-out texts; a question needs 4"):
        HeldOutContinuations.read(config, 3)


def test_a_checkpoint_without_a_run_is_refused(tmp_path):
    result = invoke("score", tmp_path, "--held-out", 3)
    assert result.exit_code == 1
    assert "not a run folder, so its held-out data are unknown" in result.output
