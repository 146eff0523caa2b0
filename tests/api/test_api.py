"""The public API with a user's own Lightning Trainer, and generation from text to text."""

import csv
import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from click.testing import CliRunner
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lit_illada
from lit_illada import api
from lit_illada.cli import main
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "examples" / "own_trainer.py"
SMALL_BATCHES = ["trainer.micro_batch_rows=2"]  # of 8 rows: 4 micro-batches a step


class Steps(Callback):
    """The rows of each optimizer step, and the norm and largest element of each gradient but the last."""

    def __init__(self):
        self.norms, self.largest, self.rows = [], [], [0]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows[-1] += len(batch.row_ids)
        if trainer.global_step == len(self.rows):
            self.rows.append(0)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))
            self.largest.append(max(float(gradient.abs().max()) for gradient in gradients))


def test_unknown_command_of_load_is_a_user_error():
    with pytest.raises(lit_illada.UserError, match=r"pretrian.*pretrain"):
        lit_illada.load("pretrian")


def test_overfit_batches_is_refused(tiny_overrides, tmp_path):
    with pytest.raises(lit_illada.UserError, match=r"overfit_batches.*not supported"):
        fitted(tiny_overrides, tmp_path, overfit_batches=1)


def trainer(folder, *callbacks, **options):
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saving = {"enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks)}
    return lightning.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **saving, **options})


def fitted(overrides, folder, *callbacks, ckpt_path=None, **options):
    """The module after a fit under a plain Trainer, and that Trainer."""
    lightning.seed_everything(0, verbose=False)
    config = lit_illada.load("pretrain", overrides)
    data = lit_illada.build_datamodule(config)
    module = lit_illada.build_module(config, data)
    made = trainer(folder, *callbacks, **options)
    made.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, made


@pytest.fixture(scope="module")
def run(tiny_overrides, tmp_path_factory):
    """A run of the command."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    result = CliRunner().invoke(main, ["pretrain", *tiny_overrides, f"run_dir={folder}"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


def assert_same_weights(run, module):
    saved = read_checkpoint(latest_checkpoint(run / "checkpoints"))["state_dict"]
    own = module.state_dict()
    assert own.keys() == saved.keys()
    assert not [name for name in own if not torch.equal(own[name], saved[name])]


def test_importing_the_package_imports_no_torch_and_its_names_are_those_of_the_api():
    script = "import sys, lit_illada; assert 'Tokenizer' in dir(lit_illada); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert set(api.__all__) == lit_illada._PUBLIC
    assert all(getattr(lit_illada, name) is getattr(api, name) for name in api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        lit_illada.generat  # noqa: B018


def test_a_plain_trainer_trains_the_same_weights_as_the_command(run, tiny_overrides, tmp_path):
    module, _ = fitted(tiny_overrides, tmp_path)
    assert_same_weights(run, module)


def test_the_batch_size_does_not_depend_on_the_micro_batch(run, tiny_overrides, tmp_path):
    steps = Steps()
    module, made = fitted([*tiny_overrides, *SMALL_BATCHES], tmp_path, steps)
    assert made.accumulate_grad_batches == 4
    assert steps.rows == [8] * 12 + [0]
    saved = read_checkpoint(latest_checkpoint(run / "checkpoints"))["state_dict"]
    weights = {name: tensor for name, tensor in module.state_dict().items() if name.startswith("model.")}
    torch.testing.assert_close(weights, {name: saved[name] for name in weights}, rtol=1e-3, atol=1e-5)


def test_a_trainer_with_another_batch_or_more_steps_is_rejected(tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, *SMALL_BATCHES]
    with pytest.raises(lit_illada.UserError, match=r"accumulate_grad_batches=2\), but .* has 4 micro-batches"):
        fitted(overrides, tmp_path, accumulate_grad_batches=2)
    with pytest.raises(lit_illada.UserError, match=r"max_steps=13\) is more than the config's trainer.max_steps=12"):
        fitted(overrides, tmp_path, max_steps=13)
    config = lit_illada.load("pretrain", overrides)
    data = lit_illada.build_datamodule(config)
    module = lit_illada.build_module(config, data)
    with pytest.raises(lit_illada.UserError, match=r"would have 2 rows .* give trainer.fit the data module"):
        trainer(tmp_path).fit(module, data.train_dataloader())


def test_fewer_steps_end_earlier(tiny_overrides, tmp_path):
    assert fitted(tiny_overrides, tmp_path, max_steps=3)[1].global_step == 3
    assert fitted([*tiny_overrides, *SMALL_BATCHES], tmp_path, fast_dev_run=True)[1].global_step == 1


def test_the_trainers_clipping_overrides_the_configs(tiny_overrides, tmp_path):
    plain, by_norm, by_value, off = Steps(), Steps(), Steps(), Steps()
    fitted(tiny_overrides, tmp_path, plain, max_steps=3)
    fitted(tiny_overrides, tmp_path, by_norm, max_steps=3, gradient_clip_val=0.01)
    fitted(tiny_overrides, tmp_path, by_value, max_steps=3, gradient_clip_val=1e-4, gradient_clip_algorithm="value")
    config_clips = [*tiny_overrides, "optim.gradient_clip_norm=0.01"]
    fitted(config_clips, tmp_path, off, max_steps=3, gradient_clip_val=0)
    assert by_norm.norms == pytest.approx([0.01] * 2, rel=1e-4)
    assert max(by_value.largest) == pytest.approx(1e-4)
    assert plain.norms == pytest.approx([1.0] * 2)  # the config's default
    assert min(off.norms) > 1.0


def test_curves_have_the_trainers_interval_and_omit_the_sanity_check(tiny_overrides, tmp_path):
    logger = CSVLogger(tmp_path)
    fitted([*tiny_overrides, *SMALL_BATCHES], tmp_path, logger=logger, log_every_n_steps=5, val_check_interval=24)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [5, 10, 12]
    assert [int(row["step"]) for row in rows if row["val/nll_bound"]] == [6, 12]


def test_a_resumed_fit_equals_an_uninterrupted_one(tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, *SMALL_BATCHES]
    whole, _ = fitted(overrides, tmp_path)
    first = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5, save_on_train_epoch_end=False)
    fitted(overrides, tmp_path, first, max_steps=7)
    resumed, made = fitted(overrides, tmp_path, ckpt_path=first.best_model_path)
    assert made.global_step == 12
    assert all(torch.equal(one, resumed.state_dict()[name]) for name, one in whole.state_dict().items())


def test_checkpoints_of_runs_and_of_plain_trainers_load(run, tiny_overrides, tmp_path):
    saving = ModelCheckpoint(tmp_path / "anywhere", monitor="val/nll_bound")
    trained, _ = fitted(tiny_overrides, tmp_path, saving)
    for path in (run, str(run), latest_checkpoint(run / "checkpoints"), saving.best_model_path):
        module = lit_illada.PretrainModule.load_from_checkpoint(path)
        assert_same_weights(run, module)
        model, tokenizer = lit_illada.load_checkpoint(str(path), "cpu")
        assert tokenizer.sha256 == trained.tokenizer.sha256
        assert torch.equal(model.lm_head_weight, trained.model.lm_head_weight)
    data = lit_illada.build_datamodule(lit_illada.load("pretrain", tiny_overrides))
    validating = trainer(tmp_path)
    validating.validate(module, datamodule=data)
    assert float(validating.callback_metrics["val/nll_bound"]) == pytest.approx(
        float(saving.best_model_score), abs=1e-6
    )
    with pytest.raises(lit_illada.UserError, match="no such checkpoint"):
        lit_illada.PretrainModule.load_from_checkpoint(tmp_path / "nothing.ckpt")


def test_generate_maps_text_to_text(run):
    loaded = lit_illada.load_checkpoint(run)
    text = lit_illada.generate(run, "alpha ", max_new_tokens=8, block_length=4, num_steps=2)
    assert text == lit_illada.generate(loaded, "alpha ", max_new_tokens=8, block_length=4, num_steps=2)
    assert isinstance(text, str)
    config = lit_illada.GenerationConfig(max_new_tokens=8, block_length=4, num_steps=2)
    module = lit_illada.PretrainModule.load_from_checkpoint(run)
    assert lit_illada.generate(module, ["alpha ", "beta"], config)[0] == text
    assert lit_illada.generate(loaded, []) == []
    assert module.training
    with pytest.raises(
        lit_illada.UserError, match=r"'generation.max_tokens'.*did you mean 'generation.max_new_tokens'"
    ):
        lit_illada.generate(run, "alpha ", max_tokens=3)
    with pytest.raises(lit_illada.UserError, match=r"a checkpoint is a path.*got a int"):
        lit_illada.generate(3, "alpha ")


def test_nll_bound_of_a_string(run):
    text = "alpha beta gamma. alpha beta gamma"
    bound = lit_illada.nll_bound(run, text, num_draws=64)
    model, tokenizer = api.load_checkpoint(run)
    assert (bound.num_tokens, bound.num_bytes) == (len(tokenizer.encode(text)), len(text))
    assert bound.bits_per_byte == pytest.approx(bound.nll * bound.num_tokens / bound.num_bytes / math.log(2))
    assert 0 < bound.stderr < bound.nll < 2 * math.log(tokenizer.vocab_size)
    other = lit_illada.nll_bound(run, text, num_draws=64, seed=1)
    assert abs(other.nll - bound.nll) < 5 * math.hypot(bound.stderr, other.stderr)
    assert dataclasses.astuple(lit_illada.nll_bound(lit_illada.LanguageModel(model, tokenizer), text, 64)) == (
        dataclasses.astuple(bound)
    )
    with pytest.raises(lit_illada.UserError, match="the text is empty"):
        lit_illada.nll_bound(run, "")


def test_the_example_runs(tiny_overrides, tmp_path):
    words = [*tiny_overrides, "trainer.micro_batch_rows=4"]
    done = subprocess.run([sys.executable, EXAMPLE, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TextBound(nll=" in done.stdout.splitlines()[-1]
    (metrics,) = tmp_path.glob("logs/lightning_logs/version_0/metrics.csv")
    assert "val/nll_bound" in metrics.read_text().splitlines()[0]


@pytest.mark.slow
def test_the_example_passes_mypy():
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(EXAMPLE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
