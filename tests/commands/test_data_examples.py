"""The command `data examples` and the spans that it prints."""

import torch
from click.testing import CliRunner

from lit_illada.batch import Layout, TokenBatch
from lit_illada.cli import main
from lit_illada.commands.data_examples import Span, spans
from lit_illada.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a few words"], 263)


def test_spans_end_at_segment_borders_and_changes_of_is_maskable():
    ids = TOKENIZER.encode("abcdef")
    batch = TokenBatch(
        input_ids=torch.tensor([ids, ids]),
        is_maskable=torch.tensor([[False, False, True, True, True, False], [True] * 6]),
        row_ids=torch.arange(2),
        layout=Layout.from_lengths(torch.tensor([4, 2, 6]), 6),
    )
    assert spans(batch, 0, TOKENIZER) == [
        Span("ab", 2, False, True),
        Span("cd", 2, True, False),
        Span("e", 1, True, True),
        Span("f", 1, False, False),
    ]
    assert spans(batch, 1, TOKENIZER) == [Span("abcdef", 6, True, True)]


def test_command_prints_rows_and_number_of_skipped_examples(tmp_path):
    TOKENIZER.save(tmp_path)
    small = [
        "sft_data.source.num_train=20",
        "sft_data.source.num_validation=5",
        "sft_data/rows=llada",
        "sft_data.row_length=256",
    ]
    result = CliRunner().invoke(main, ["data", "examples", str(tmp_path), "--rows", "2", *small])
    assert result.exit_code == 0, result.output
    assert result.output.count("row ") == 2
    assert result.output.count("x mod 2?<|assistant|>⟦<|think|>") == 2
    assert "an epoch has 20 rows; 0 bad examples skipped" in result.output
    result = CliRunner().invoke(main, ["data", "examples", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no tokenizer at" in result.output
    result = CliRunner().invoke(main, ["data", "examples", str(tmp_path), "sft_data.row_lenght=3"])
    assert "did you mean 'sft_data.row_length'" in result.output
