"""Rows of a fine-tuning run depend only on their number, not on ranks, workers or resumes."""

import json
import logging
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from lit_illada.data.config import OnBadDocument
from lit_illada.data.sft.config import (
    AlpacaSource,
    Gsm8kSource,
    MessagesSource,
    Packed,
    Padded,
    PadTo,
    ReasoningSource,
    RoleTexts,
    SFTDataConfig,
    TaskSource,
)
from lit_illada.data.sft_datamodule import Difficulty, SFTDataModule
from lit_illada.data.shortening import NoShortening
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Problem
from lit_illada.tasks.chains import ProblemRange
from lit_illada.tasks.countdown import Countdown
from lit_illada.tasks.gsm8k import Gsm8k

TOKENIZER = Tokenizer.train(["a=3+1\nb=x+2\nx mod 2? Wait, let me check again."], 300)
SOURCE = ReasoningSource(
    num_train=60,
    num_validation=24,
    num_harder=10,
    easy=ProblemRange(max_depth=2),
    harder=ProblemRange(min_depth=3, max_depth=5),
)
CONFIG = SFTDataConfig(source=SOURCE, row_length=128)
ROWS = {
    "packed": Packed(),
    "packed, visible prompt": Packed(is_prompt_maskable=False, shortening=NoShortening()),
    "padded": Padded(),
    "padded, uncounted": Padded(is_padding_maskable=False),
    "padded to the row": Padded(pad_to=PadTo.ROW),
}
each_rows = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)


def make(config=CONFIG, *, world=None, **arguments):
    settings = {"seed": 3, "batch_rows": 8, "micro_batch_rows": 2, "total_steps": 9, "validation_rows": 8, **arguments}
    module = SFTDataModule(config, TOKENIZER, **settings)
    if world:
        replica = {"rank": world[0], "num_replicas": world[1]}
        module.trainer = SimpleNamespace(training=True, strategy=SimpleNamespace(distributed_sampler_kwargs=replica))
    return module


def rows_of(batch):
    parts = batch.input_ids, batch.is_maskable, batch.layout.position_ids
    return {row_id: tuple(part[b].tolist() for part in parts) for b, row_id in enumerate(batch.row_ids.tolist())}


@each_rows
def test_rows_of_step_are_independent_of_ranks_accumulation_and_workers(rows):
    def steps(size, micro_batch_rows, num_workers=0):
        config = replace(CONFIG, rows=rows, num_workers=num_workers)
        loaders = [
            iter(make(config, world=(rank, size), micro_batch_rows=micro_batch_rows).train_dataloader())
            for rank in range(size)
        ]
        result = []
        for _ in range(9):
            step = {}
            for loader in loaders * (8 // (micro_batch_rows * size)):
                step.update(rows_of(next(loader)))
            result.append(step)
        assert all(next(loader, None) is None for loader in loaders)
        return result

    expected = steps(1, 8)
    assert [sorted(step) for step in expected] == [list(range(8 * s, 8 * s + 8)) for s in range(9)]
    assert steps(1, 2) == expected
    assert steps(2, 2) == expected
    assert steps(4, 1) == expected
    if isinstance(rows, Padded):
        assert steps(1, 4, num_workers=2) == expected


@each_rows
@pytest.mark.parametrize("rows_seen", [8, 40])
def test_resumed_loader_continues_at_next_row(rows, rows_seen):
    config = replace(CONFIG, rows=rows)
    whole = make(config)
    batches = list(whole.train_dataloader())
    resumed = make(config)
    resumed.load_state_dict({**whole.state_dict(), "rows_seen": rows_seen})
    loader = resumed.train_dataloader()
    assert len(loader) == len(batches) == 36
    rest = list(loader)
    assert [rows_of(batch) for batch in rest] == [rows_of(batch) for batch in batches[rows_seen // 2 :]]


@each_rows
def test_every_epoch_has_each_example_once_also_after_resume(rows):
    module = make(replace(CONFIG, rows=rows), batch_rows=2)
    n = module.rows_per_epoch
    module.total_steps = n + 1
    module.load_state_dict({**module.state_dict(), "rows_seen": n // 2 // 2 * 2})
    seen = {}
    for batch in module.train_dataloader():
        seen.update(rows_of(batch))
    eos = TOKENIZER.eos_token_id
    second = [token for g in range(n, 2 * n) for token in seen[g][0]]
    train, _ = module._splits
    everything = Counter(token for prompt, response in train.pairs for token in prompt + response)
    result = Counter(second)
    assert result[eos] >= everything[eos]
    del result[eos], everything[eos]
    assert result == everything


def test_epochs_are_converted_to_steps():
    module = make(replace(CONFIG, rows=Padded()), batch_rows=8)
    assert module.rows_per_epoch == 60
    assert [module.steps(epochs) for epochs in (1, 3, 12, 0.001)] == [8, 23, 90, 1]


@each_rows
def test_validation_rows_are_independent_of_training_layout(rows):
    def scored(batch):
        """Each row's prompt and response, without the padding."""
        ids, maskable = batch.input_ids, batch.is_maskable
        return [
            (ids[b, : int(m.nonzero().max()) + 1].tolist(), m[: int(m.nonzero().max()) + 1].tolist())
            for b, m in enumerate(maskable)
        ]

    module = make(replace(CONFIG, rows=rows), seed=99)
    result = [row for batch in module.val_dataloader() for row in scored(batch)]
    expected = [row for batch in make().val_dataloader() for row in scored(batch)]
    assert result == expected
    assert len(result) == 8
    for ids, is_maskable in result:
        prompt_length = ids.index(TOKENIZER.assistant_token_id) + 1
        assert is_maskable == [False] * prompt_length + [True] * (len(ids) - prompt_length)
        assert ids[-1] == TOKENIZER.eos_token_id
    dealt = [g for batch in make(world=(1, 2)).val_dataloader() for g in batch.row_ids.tolist()]
    assert dealt == [1, 3, 5, 7]


@pytest.mark.filterwarnings("ignore")
def test_resumed_lightning_run_trains_on_remaining_rows(tmp_path):
    class Tiny(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen += batch.row_ids.tolist()
            return self.scale**2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(max_steps, checkpoint=None):
        module, data = Tiny(), make(replace(CONFIG, rows=Padded()))
        trainer = L.Trainer(
            max_steps=max_steps, accumulate_grad_batches=4, limit_val_batches=0, accelerator="cpu", devices=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        return module, data, trainer

    module, data, trainer = fit(4)
    assert module.seen == list(range(32))
    trainer.save_checkpoint(tmp_path / "at_4.ckpt")
    saved = torch.load(tmp_path / "at_4.ckpt", weights_only=True)["SFTDataModule"]
    assert saved == data.state_dict()
    assert saved["rows_seen"] == 32
    module, data, _ = fit(9, tmp_path / "at_4.ckpt")
    assert module.seen == list(range(32, 72))
    assert data.rows_seen == 72


def test_checkpoint_of_other_examples_template_or_seed_is_rejected():
    state = make().state_dict()
    for other in (
        replace(CONFIG, source=replace(SOURCE, seed=1)),
        replace(CONFIG, source=replace(SOURCE, recheck_fraction=1.0)),
        replace(CONFIG, template=RoleTexts()),
    ):
        with pytest.raises(UserError, match="trained on another data set"):
            make(other).load_state_dict(state)
    with pytest.raises(UserError, match="seed=3, not seed=4"):
        make(seed=4).load_state_dict(state)
    make(replace(CONFIG, num_workers=2)).load_state_dict(state)


@pytest.mark.parametrize("template", [CONFIG.template, RoleTexts()])
def test_only_reference_responses_are_exact_matches(template):
    module = make(replace(CONFIG, template=template, row_length=256))
    assert module.difficulties == [Difficulty.EASY, Difficulty.HARDER]
    for difficulty, num in {Difficulty.EASY: 24, Difficulty.HARDER: 10}.items():
        examples = module.evaluation_examples(difficulty, 1000)
        assert len(examples) == num
        assert module.evaluation_examples(difficulty, 3) == examples[:3]
        for example in examples:
            assert module.is_right(example, example.response_ids)
            assert not module.is_right(example, example.response_ids[:-3])
            wrong = str(1 - int(example.truth))
            assert not module.is_right(example, TOKENIZER.encode(wrong))
            assert module.is_right(example, TOKENIZER.encode(example.truth))


def test_evaluation_prompts_are_not_in_training_rows():
    module = make()
    train, _ = module._splits
    learnt = {tuple(prompt) for prompt, _ in train.pairs}
    for difficulty in module.difficulties:
        assert not learnt & {tuple(e.prompt_ids) for e in module.evaluation_examples(difficulty, 100)}


def alpaca(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path):
    rows = [{"instruction": f"i{n}", "output": f"o{n}"} for n in range(40)]
    rows[7] = {"instruction": "long", "output": "o" * 100}
    rows[9] = {"instruction": "i9", "output": ""}
    return alpaca(tmp_path / "a.jsonl", rows)


def test_bad_examples_raise_or_are_counted_and_listed(file, caplog):
    config = SFTDataConfig(source=AlpacaSource([file]), row_length=48)
    with pytest.raises(UserError, match=rf"{file}:10: the assistant's answer is empty"):
        _ = make(config).train_rows
    module = make(replace(config, on_bad_example=OnBadDocument.SKIP))
    with caplog.at_level(logging.WARNING):
        assert module.rows_per_epoch > 1
    assert module.left_out.bad == 2
    assert [message.partition(": ")[2] for message in module.left_out.examples] == [
        "the assistant's answer is empty",
        next(m for m in module.left_out.examples if "tokens" in m).partition(": ")[2],
    ]
    assert any(f"{file}:8: 1" in m and "more than sft_data.row_length=48" in m for m in module.left_out.examples)
    assert f"skipped 2 bad examples; the first: {file}:10" in caplog.text


def test_open_ended_conversations_have_no_exact_match(file):
    module = make(SFTDataConfig(source=AlpacaSource([file]), row_length=48, on_bad_example=OnBadDocument.SKIP))
    assert module.difficulties == []
    with pytest.raises(UserError, match="has no easy examples with a reference answer"):
        module.evaluation_examples(Difficulty.EASY, 1)


def test_source_without_examples_is_rejected(tmp_path):
    path = alpaca(tmp_path / "none.jsonl", [{"instruction": "i", "output": ""}])
    config = SFTDataConfig(source=AlpacaSource([path]), on_bad_example=OnBadDocument.SKIP)
    with pytest.raises(UserError, match=r"has no training examples \(1 bad ones skipped; the first skipped: "):
        _ = make(config).train_rows


def test_gsm8k_answers_are_compared_as_numbers(tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n}+1=<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
            for n in range(30)]  # fmt: skip
    module = make(SFTDataConfig(source=Gsm8kSource([alpaca(tmp_path / "g.jsonl", rows)])))
    assert module.difficulties == [Difficulty.EASY]
    for example in module.evaluation_examples(Difficulty.EASY, 5):
        assert module.is_right(example, example.response_ids)


def test_gsm8k_answers_are_judged_as_by_the_task_gsm8k(tmp_path):
    rows = [{"question": f"Add {n} and 1,000.", "answer": f"So.\n#### {n + 1000:,}"} for n in range(30)]
    path = alpaca(tmp_path / "g.jsonl", rows)
    (example,) = make(SFTDataConfig(source=Gsm8kSource([path]))).evaluation_examples(Difficulty.EASY, 1)
    module, n = make(SFTDataConfig(source=Gsm8kSource([path]))), example.truth
    texts = [f"#### {n} ({n}/1)", f"The answer is ${n}.00 for 3 days", f"\\boxed{{{n}}} in 2 steps", f"{n}0/10", n]
    wrong = ["#### 18", f"#### -{n}", f"{n} then 17", "many", f"#### {n}.5"]
    for text in texts + wrong:
        verdict = Gsm8k(path="-").check(Problem("q", n, 1, "here"), text)
        assert module.is_right(example, TOKENIZER.encode(text)) is verdict.correct is (text in texts), text


def test_dialogue_gives_one_row_per_answer_unless_prompts_are_maskable(tmp_path):
    turns = [("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
    rows = [{"messages": [{"role": role, "content": f"{content}-{n}"} for role, content in turns]} for n in range(30)]
    source = MessagesSource([alpaca(tmp_path / "chat.jsonl", rows)])
    padded = make(SFTDataConfig(source=source, rows=Padded()))
    packed = make(SFTDataConfig(source=source, rows=Packed()))
    train, _ = packed._splits
    assert padded.rows_per_epoch == 2 * len(train.examples)
    for batch in padded.train_dataloader():
        for ids, is_maskable in zip(batch.input_ids, batch.is_maskable, strict=True):
            last = max(t for t, token in enumerate(ids.tolist()) if token == TOKENIZER.assistant_token_id)
            assert is_maskable.tolist() == [t > last for t in range(len(ids))]


def test_unigram_cross_entropy_uses_training_responses_on_validation_responses():
    module = make(validation_rows=10_000)
    trained, scored = (Counter(t for _, response in split.pairs for t in response) for split in module._splits)
    total = trained.total() + TOKENIZER.vocab_size
    nats = -sum(n * math.log((trained[token] + 1) / total) for token, n in scored.items())
    assert module.unigram_cross_entropy() == pytest.approx(nats / scored.total())


def test_turns_of_a_conversation_have_one_document_id(tmp_path):
    turn = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": [{"role": "user", "content": f"{n}"}, turn[1], *turn, *turn]} for n in range(20)]
    source = MessagesSource([alpaca(tmp_path / "chat.jsonl", rows)])
    module = make(SFTDataConfig(source=source, rows=Padded(is_prompt_maskable=False)), validation_rows=10_000)
    _, validation = module._splits
    seen = Counter()
    for batch in module.val_dataloader():
        assert (batch.document_ids == batch.document_ids[:, :1]).all()
        seen.update(batch.document_ids[:, 0].tolist())
    assert set(seen.values()) == {3}
    assert len(seen) == len({example.origin for example in validation.examples})
    assert next(iter(module.train_dataloader())).document_ids is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0"),
        ({"validation_fraction": 0.5}, "validation_fraction is 0.5"),
        ({"row_length": 7}, "row_length is 7"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_invalid_settings_are_rejected(fields, message):
    with pytest.raises(UserError, match=f"sft_data.{message}"):
        SFTDataConfig(**fields)


@pytest.mark.parametrize("task", [Countdown(num_numbers=[2], wording="{question}"), Arithmetic()])
def test_a_tasks_problems_are_examples_that_the_task_checks(task):
    source = TaskSource(task, num_train=40, num_validation=8)
    module = make(replace(CONFIG, source=source, row_length=256))
    assert module.difficulties == [Difficulty.EASY]
    examples = module.evaluation_examples(Difficulty.EASY, 8)
    assert len(examples) == 8
    for example in examples:
        assert module.is_right(example, example.response_ids)
        assert not module.is_right(example, TOKENIZER.encode("none"))
        assert example.problem.question in TOKENIZER.decode(example.prompt_ids)
    numbers, target = [4, 3], 7
    if isinstance(task, Countdown):
        problem = replace(examples[0].problem, reference=[numbers, target])
        for text, is_right in (("3+4", True), ("<answer>4+3</answer>", True), ("7", False)):
            assert module.is_right(replace(examples[0], problem=problem), TOKENIZER.encode(text)) is is_right


def test_a_tasks_problem_without_an_answer_is_named():
    class Silent(Countdown):
        def problems(self, split, num=None):
            return [replace(problem, answer="") for problem in super().problems(split, num)]

    source = TaskSource(Silent(), num_train=4, num_validation=4)
    with pytest.raises(UserError, match=r"train problem \d+: the assistant's answer is empty"):
        make(replace(CONFIG, source=source, row_length=512)).steps(1)


def test_arithmetic_as_a_task_has_the_examples_of_the_reasoning_source():
    task = Arithmetic(recheck_fraction=SOURCE.recheck_fraction, range=SOURCE.easy)
    source = TaskSource(task, num_train=SOURCE.num_train, num_validation=SOURCE.num_validation)
    assert make(replace(CONFIG, source=source)).fingerprint == make().fingerprint
