import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.picture import draw_to
from lit_illada.generation.remasking import ReMDMCap
from lit_illada.generation.trace import Recorder, Trace, read_traces, write_traces

CONFIG = GenerationConfig(max_new_tokens=12, block_length=6, num_steps=4)


@pytest.mark.parametrize("canvas", Canvas)
def test_a_trace_records_step_block_confidence_and_entropy_of_each_token(model, write, ragged, canvas):
    recorder = Recorder(len(ragged))
    generation = write(ragged, replace(CONFIG, canvas=canvas), on_commit=recorder)
    for row, trace in enumerate(recorder.traces()):
        assert trace.token_ids == generation.token_ids[row].tolist()
        assert trace.blocks == [0] * 6 + [1] * 6
        assert sorted(trace.steps) == [0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7]
        assert trace.num_commits == [1] * 12
    first, prompt = recorder.traces()[0], ragged[0]
    masked = torch.zeros(12 if canvas is Canvas.fixed else 6, dtype=torch.long)
    ids = torch.cat([prompt, masked])[None]
    logits = model(ids, Layout.whole_rows(1, ids.shape[1]))[0, len(prompt) :].double()
    logits[:, 0] = -torch.inf
    probs = logits.softmax(-1)
    for position in (index for index, step in enumerate(first.steps) if step == 0):
        assert first.confidence[position] == pytest.approx(probs[position].max().item(), rel=1e-4)
        entropy = torch.distributions.Categorical(probs[position]).entropy().item()
        assert first.entropy[position] == pytest.approx(entropy, rel=1e-4)


def test_a_trace_counts_how_often_a_position_was_remasked(write, prompts):
    recorder = Recorder(2)
    config = replace(CONFIG, num_steps=10, temperature=1.0, remask=ReMDMCap(0.5))
    generation = write(prompts, config, on_commit=recorder)
    assert [trace.token_ids for trace in recorder.traces()] == generation.token_ids.tolist()
    assert max(recorder.traces()[0].num_commits) > 1


def test_a_row_that_stops_early_has_a_shorter_trace(write, ragged):
    recorder = Recorder(5)
    generation = write(ragged, CONFIG, stop_token_ids=range(1, 8), on_commit=recorder)
    lengths = [len(trace.token_ids) for trace in recorder.traces()]
    assert min(lengths) == 6
    assert all(length > n for length, n in zip(lengths, generation.num_tokens.tolist(), strict=True) if n < 12)


TRACE = Trace([5, 6, 7], [0, 0, 1], [1, 0, 2], [0.5, 1.0, 0.25], [0.6, 0.0, 2.0], [1, 1, 2])


def test_traces_are_read_back_from_a_file_with_their_settings(tmp_path):
    file = tmp_path / "traces.jsonl"
    about = {"settings": {"block_length": 32}, "text": "ÿ\n"}
    write_traces(file, [(TRACE, about), (TRACE, {})])
    assert list(read_traces(file)) == [(TRACE, about), (TRACE, {})]
    assert all(json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("line", ["{", "[]", '{"steps": [1]}'])
def test_malformed_traces_are_reported_with_their_line(tmp_path, line):
    file = tmp_path / "traces.jsonl"
    write_traces(file, [(TRACE, {})])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"traces\.jsonl, line 2: (not JSON|must be an object|lacks)"):
        list(read_traces(file))


def test_traces_are_read_without_torch():
    script = "import sys, lit_illada.generation.trace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_the_picture_is_written_for_any_tokens(tmp_path, name):
    draw_to(tmp_path / name)(TRACE, "a title " * 40, ["$x^", "\n", "é"])
    draw_to(tmp_path / name)(Trace([], [], [], [], [], []), "nothing", [])
    assert (tmp_path / name).stat().st_size > 1000


def test_an_unwritable_picture_is_rejected_before_it_is_drawn(tmp_path):
    with pytest.raises(UserError, match=r"unknown file format of a picture '\.jpng'.*did you mean"):
        draw_to(tmp_path / "a.jpng")
    with pytest.raises(UserError, match="no folder"):
        draw_to(tmp_path / "missing" / "a.png")
