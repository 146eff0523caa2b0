"""lm-eval's requests: always with a stand-in for its base class, with the package itself where it is installed."""

import importlib.machinery
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.evaluation.harness import _fitting_write, _is_raised_here, evaluate, harness_model
from lit_illada.evaluation.jobs import EvaluationRequest
from lit_illada.evaluation.writer import Answer
from lit_illada.generation.config import GenerationConfig
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer
from lit_illada.runtime.files import parse_json
from lit_illada.scoring.config import ScoringConfig
from lit_illada.scoring.model import ScoringModel
from lit_illada.scoring.scorer import Scorer

has_lm_eval = importlib.util.find_spec("lm_eval") is not None
TOKENIZER = Tokenizer.train(["alpha beta gamma. alpha: beta? gamma delta"] * 4, vocab_size=300)


@pytest.fixture
def base_class(monkeypatch):
    """lm-eval's LM, or an empty class in its place."""
    if has_lm_eval:
        return
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["lm_eval.api.model"].LM = object


@pytest.fixture
def scorer():
    def scorer(is_causal=False, max_length=32, **config):
        shape = ModelConfig(
            TOKENIZER.vocab_size,
            16,
            32,
            2,
            2,
            1,
            max_position_embeddings=64,
            initializer_range=0.5,
            is_causal=is_causal,
        )
        model = Transformer(shape).eval()
        model.init_weights(0)
        scoring_model = ScoringModel(
            model, model, TOKENIZER.mask_token_id, TOKENIZER.eos_token_id, max_length, is_causal, torch.device("cpu")
        )
        return Scorer(scoring_model, TOKENIZER.encode, ScoringConfig(**config))

    return scorer


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def no_generation(prompt, max_new_tokens, temperature):
    raise AssertionError("nothing is to be generated")


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_continuation_gets_the_score_of_the_first_rule(base_class, scorer, is_causal):
    scorer = scorer(is_causal)
    model = harness_model(scorer, no_generation)
    pairs = [("alpha:", " beta"), ("alpha:", " gamma delta"), ("", "beta")]
    results = model.loglikelihood(requests(*pairs))
    for (value, is_greedy), pair in zip(results, pairs, strict=True):
        candidate = scorer.answer(*pair)
        assert value == pytest.approx(scorer.scores([[candidate]], scorer.rules[0])[0][0].value, rel=1e-5)
        assert [is_greedy] == scorer.greedy([candidate])


def test_a_long_prompt_loses_its_beginning_with_a_warning(base_class, scorer, caplog):
    model = harness_model(scorer(max_length=8), no_generation)
    long, short = model.loglikelihood(requests(("gamma " * 20 + "alpha beta:", " beta"), ("alpha:", " beta")))
    assert "is cut to its last" in caplog.text
    assert long != short
    with pytest.raises(UserError, match="cannot be scored by a model of 8 positions"):
        model.loglikelihood(requests(("alpha", " beta" * 9)))


def test_a_rolling_score_is_the_sum_of_the_windows(base_class, scorer):
    scorer = scorer(max_length=8, context_length=2, num_draws=4)
    text = "alpha beta gamma. alpha: beta? gamma delta"
    windows = scorer.windows(text)
    assert len(windows) > 1
    want = sum(score.value for (score,) in scorer.scores([[one] for one in windows], "bound"))
    assert harness_model(scorer, no_generation).loglikelihood_rolling(requests((text,))) == [
        pytest.approx(want, rel=1e-6)
    ]


def test_generation_uses_the_options_of_the_task_and_ends_at_its_stop_texts(base_class, scorer):
    seen = []

    def write(prompts, max_new_tokens, temperature):
        seen.append((prompts, max_new_tokens, temperature))
        return [Answer("so 42.\nQuestion: more") for _ in prompts]

    model = harness_model(scorer(), write)
    options = [{"until": ["\n", "Question"], "max_gen_toks": 9, "temperature": 0.5}, {"until": "42"}, {}]
    texts = model.generate_until(requests(*(("q", one) for one in options)))
    assert texts == ["so 42.", "so ", "so 42.\nQuestion: more"]
    assert seen == [(["q"], 9, 0.5), (["q", "q"], None, None)]  # requests with the same settings share a call


class RecordingWriter:
    """A writer that records what it is asked to continue."""

    generation = GenerationConfig(max_new_tokens=12, block_length=4, num_steps=3)

    def answers(self, encode, prompts, max_new_tokens, temperature):
        self.prompts, self.budget = [encode(prompt) for prompt in prompts], max_new_tokens
        return iter(())


@pytest.mark.parametrize(("max_new_tokens", "budget"), [(None, 12), (9, 9), (32, 16), (99, 16)])
def test_a_long_prompt_of_a_generation_loses_its_beginning_and_others_keep_theirs(
    scorer, caplog, max_new_tokens, budget
):
    scorer, writer = scorer(max_length=32), RecordingWriter()
    short, long = "alpha beta", "alpha beta gamma. " * 9
    _fitting_write(writer, scorer)([short, long], max_new_tokens, None)
    assert writer.budget == budget
    assert writer.prompts == [scorer.encode_prompt(short), scorer.encode_prompt(long)[-(32 - budget) :]]
    assert f"is cut to its last {32 - budget}" in caplog.text
    assert ("is lowered to 16" in caplog.text) == (budget == 16)


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_error_of_this_package_is_not_taken_for_one_of_the_task(is_ours):
    def fail():
        raise KeyError("x")

    with pytest.raises((KeyError, UserError)) as error:
        parse_json("{", "file") if is_ours else fail()
    assert _is_raised_here(error.value) is is_ours


def test_without_the_package_one_line_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["score", str(tmp_path), "--harness", "arc_easy"])
    assert result.exit_code == 1
    assert result.output == "Error: lm-eval is not installed: pip install 'lit-illada[eval]'\n"


CHOICES = """\
task: phrases
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
"""
ROLLING = """\
task: whole
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
WRITTEN = """\
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.mark.skipif(not has_lm_eval, reason="lm-eval is not installed")
def test_local_tasks_of_every_kind_run_offline_on_a_checkpoint(tiny_overrides, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    run, items = tmp_path / "run", tmp_path / "items.jsonl"
    result = CliRunner().invoke(main, ["pretrain", *tiny_overrides, f"run_dir={run}"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [{"question": f"alpha beta {word}", "choices": ["gamma", word], "answer": 1} for word in ("pi", "rho", "nu")]
    items.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in (("phrases", CHOICES), ("whole", ROLLING), ("written", WRITTEN)):
        folder.joinpath(f"{name}.yaml").write_text(task.format(file=items), encoding="utf-8")
    arguments = [x for name in ("phrases", "whole", "written") for x in ("--harness", str(folder / f"{name}.yaml"))]
    overrides = [
        "score.num_draws=4",
        "generation.max_new_tokens=8",
        "generation.block_length=4",
        "generation.num_steps=2",
    ]
    command = ["score", str(run), *arguments, "--out", str(tmp_path / "out"), *overrides]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "phrases" in result.output
    (results,) = (tmp_path / "out" / "lm-eval").glob("results_*.json")
    own = json.loads(results.read_text(encoding="utf-8"))
    assert {"phrases", "whole", "written"} == own["results"].keys() == own["task_hashes"].keys()
    (samples,) = (tmp_path / "out" / "lm-eval").glob("samples_phrases_*.jsonl")
    assert [json.loads(line)["doc"]["question"] for line in samples.open(encoding="utf-8")] == [
        row["question"] for row in rows
    ]
    (result,) = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["results"]
    assert {"phrases", "whole", "written"} <= result["lm_eval"]["results"].keys()
    assert 0 <= result["lm_eval"]["results"]["phrases"]["acc,none"] <= 1
    assert result["lm_eval"]["results"]["whole"]["bits_per_byte,none"] > 0
    same = CliRunner().invoke(main, ["score", str(run), "--harness", "phrase", "--include-path", str(folder)])
    assert same.exit_code == 1
    assert "did you mean 'phrases'" in same.output


@pytest.mark.skipif(not has_lm_eval, reason="lm-eval is not installed")
def test_few_shot_examples_precede_the_question_and_git_is_silent(base_class, scorer, tmp_path, monkeypatch, capfd):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)  # no repository
    rows = [{"question": f"alpha {word}", "choices": ["gamma", word], "answer": 1} for word in ("pi", "rho", "nu")]
    items, task = tmp_path / "items.jsonl", tmp_path / "phrases.yaml"
    items.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task.write_text(CHOICES.format(file=items), encoding="utf-8")
    nothing = lambda what, amount: lambda done: None  # noqa: E731
    prompts = {}
    for num_fewshot in (None, 1):
        results = evaluate(scorer(max_length=64, num_draws=2), no_generation, [str(task)], None, nothing, num_fewshot)
        prompts[num_fewshot] = [sample["arguments"][0][0] for sample in results["samples"]["phrases"]]
    assert prompts[None] == [row["question"] for row in rows]
    assert all(long.endswith(f"\n\n{short}") for long, short in zip(prompts[1], prompts[None], strict=True))
    assert "fatal" not in capfd.readouterr().err


def test_few_shot_without_a_harness_task_is_refused():
    with pytest.raises(UserError, match="--num-fewshot 3 is only for lm-eval's tasks"):
        EvaluationRequest(texts=["a.txt"], num_fewshot=3)
