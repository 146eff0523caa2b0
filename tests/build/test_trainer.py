"""Callbacks of a run's Trainer."""

from contextlib import contextmanager
from types import SimpleNamespace

from lit_illada.build import trainer
from lit_illada.config import load


def test_completions_at_validation_are_generated_on_whole_weights(make_model, tmp_path, monkeypatch):
    events = []

    @contextmanager
    def whole_weights():
        events.append("gathered")
        yield
        events.append("sharded")

    def complete_batch(model, tokenizer, prompts, generation):
        events.append(prompts)
        return SimpleNamespace(texts=lambda: prompts)

    monkeypatch.setattr(trainer, "complete_batch", complete_batch)
    config = load("pretrain", ["samples.prompts=[one]", "trainer.accelerator=cpu", "trainer.precision=32-true"])
    tokenizer = SimpleNamespace(encode=lambda text: [7], decode=str)
    folder = SimpleNamespace(samples=tmp_path / "samples.txt")
    module = SimpleNamespace(model=make_model(), whole_weights=whole_weights)
    callback = trainer._build_generations(config, folder, module, SimpleNamespace(tokenizer=tokenizer))
    callback.on_validation_epoch_end(SimpleNamespace(is_global_zero=False), None)
    assert events == ["gathered", [[7]], "sharded"]
