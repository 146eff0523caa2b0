"""Shapes: B rows, T tokens per row."""

import logging
import math
import shutil
from collections import Counter
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lit_illada.batch import TokenBatch
from lit_illada.data.config import DataConfig, PreparedSource
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.dataset.reading import open_dataset
from lit_illada.data.packing import PackedStream
from lit_illada.data.prepare.prepare import prepare
from lit_illada.data.shortening import NoShortening, SplitRow, TruncateRow
from lit_illada.errors import UserError


def make(config: DataConfig, *, world: tuple[int, int] | None = None, **arguments: int) -> PackedDataModule:
    """world: (rank, size)."""
    settings = {"seed": 3, "batch_rows": 8, "micro_batch_rows": 2, "total_steps": 12, "validation_rows": 8, **arguments}
    module = PackedDataModule(config, **settings)
    if world:
        replica = {"rank": world[0], "num_replicas": world[1]}
        module.trainer = SimpleNamespace(training=True, strategy=SimpleNamespace(distributed_sampler_kwargs=replica))
    return module


def same(a: TokenBatch, b: TokenBatch) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in [
            (a.input_ids, b.input_ids),
            (a.is_maskable, b.is_maskable),
            (a.row_ids, b.row_ids),
            (a.layout.position_ids, b.layout.position_ids),
            (a.layout.cu_seqlens, b.layout.cu_seqlens),
        ]
    )


def row_ids(batches: list[TokenBatch]) -> list[int]:
    return [row_id for batch in batches for row_id in batch.row_ids.tolist()]


def test_segments_are_documents_if_isolated_and_rows_otherwise(prepared):
    plain = replace(prepared, shortening=NoShortening())
    batch = next(iter(make(plain).train_dataloader()))
    assert batch.input_ids.dtype == batch.row_ids.dtype == torch.int64
    assert batch.input_ids.shape == (2, 32)
    assert batch.is_maskable.all()
    eos = make(plain).tokenizer.eos_token_id
    for b in range(2):
        position = 0
        for t in range(32):  # the slow and obvious way
            assert batch.layout.position_ids[b, t] == position
            position = 0 if batch.input_ids[b, t] == eos else position + 1
    lengths = batch.layout.cu_seqlens.diff()
    assert lengths.sum() == 64
    assert batch.layout.max_seqlen == lengths.max()

    together = next(iter(make(replace(plain, isolate_documents=False)).train_dataloader()))
    assert torch.equal(together.input_ids, batch.input_ids)
    assert together.layout.is_whole_rows
    assert not batch.layout.is_whole_rows


def draw(shortening, row_length: int, num_rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    is_start = np.zeros((num_rows, row_length), np.bool)
    is_start[:, 0] = True
    is_maskable = np.ones((num_rows, row_length), np.bool)
    shortening.apply(is_start, is_maskable, np.arange(num_rows), 1)
    return is_start, is_maskable


def test_split_cuts_configured_fraction_of_rows_at_uniform_points():
    is_start, is_maskable = draw(SplitRow(0.3), 9)
    assert is_maskable.all()
    cuts = is_start[:, 1:]
    assert set(cuts.sum(1)) == {0, 1}
    assert abs(cuts.any(1).mean() - 0.3) < 0.02
    assert abs(cuts.sum(0) - 750).max() < 6 * math.sqrt(750)


def test_truncation_draws_uniform_lengths_and_isolates_unmaskable_tail():
    is_start, is_maskable = draw(TruncateRow(0.5), 8)
    lengths = is_maskable.sum(1)
    counts = np.bincount(lengths, minlength=9)
    assert counts[0] == 0
    assert abs(counts[1:8] - 1250).max() < 6 * math.sqrt(1250)
    for row in range(200):
        expected = np.zeros(8, np.bool)
        expected[[0, lengths[row] % 8]] = True
        np.testing.assert_array_equal(is_start[row], expected)
        np.testing.assert_array_equal(is_maskable[row], np.arange(8) < lengths[row])


@pytest.mark.parametrize("shortening", [SplitRow(0.0), TruncateRow(0.0), NoShortening()])
def test_zero_probability_changes_nothing(shortening):
    is_start, is_maskable = draw(shortening, 8, 100)
    assert is_start.sum() == 100
    assert is_maskable.all()


@pytest.mark.parametrize("shortening", [SplitRow(0.5), TruncateRow(0.5)])
def test_rows_of_step_are_independent_of_ranks_and_accumulation(prepared, shortening):
    config = replace(prepared, shortening=shortening)

    def steps(size: int, micro_batch_rows: int) -> list[dict[int, tuple]]:
        loaders = [
            iter(make(config, world=(rank, size), micro_batch_rows=micro_batch_rows).train_dataloader())
            for rank in range(size)
        ]
        accumulation = 8 // (micro_batch_rows * size)
        result = []
        for _ in range(12):
            rows = {}
            for loader in loaders * accumulation:
                batch = next(loader)
                for b, row_id in enumerate(batch.row_ids.tolist()):
                    rows[row_id] = tuple(
                        part[b].tolist() for part in (batch.input_ids, batch.is_maskable, batch.layout.position_ids)
                    )
            result.append(rows)
        assert all(next(loader, None) is None for loader in loaders)
        return result

    expected = steps(1, 8)
    assert [sorted(rows) for rows in expected] == [list(range(8 * s, 8 * s + 8)) for s in range(12)]
    assert steps(1, 2) == expected
    assert steps(2, 2) == expected
    assert steps(2, 4) == expected
    assert steps(4, 1) == expected


def test_loader_processes_give_same_batches_in_same_order(prepared):
    single = list(make(prepared).train_dataloader())
    together = list(make(replace(prepared, num_workers=2)).train_dataloader())
    assert len(single) == len(together) == 48
    assert all(map(same, single, together))


@pytest.mark.parametrize("rows_seen", [8, 40, 88])
def test_resumed_loader_continues_at_next_row(prepared, rows_seen):
    whole = make(prepared)
    batches = list(whole.train_dataloader())
    resumed = make(replace(prepared, num_workers=2))
    resumed.load_state_dict({**whole.state_dict(), "rows_seen": rows_seen})
    loader = resumed.train_dataloader()
    assert len(loader) == 48
    rest = list(loader)
    assert len(rest) == 48 - rows_seen // 2
    assert all(map(same, rest, batches[rows_seen // 2 :]))


def test_second_epoch_after_resume_is_complete(prepared):
    dataset = open_dataset(prepared.dir)
    stream = PackedStream(dataset, "train", row_length=32, num_streams=4, seed=3)
    epoch = stream.rows_per_epoch
    module = make(prepared, total_steps=2 * epoch // 8 + 1)
    module.load_state_dict({**module.state_dict(), "rows_seen": epoch // 2 // 8 * 8})
    seen = {
        g: row
        for batch in module.train_dataloader()
        for g, row in zip(batch.row_ids.tolist(), batch.input_ids, strict=True)
    }
    expected, _ = stream.rows(np.arange(epoch, 2 * epoch))
    second = torch.stack([seen[g] for g in range(epoch, 2 * epoch)])
    np.testing.assert_array_equal(second.numpy(), expected)
    everything = sum(
        (Counter(dataset.load(shard).tokens.tolist()) for shard in dataset.manifest.train.shards), Counter()
    )
    left_out = everything.total() - 32 * epoch
    assert (
        (everything - Counter(second.flatten().tolist())).total()
        == left_out
        < 32 * (len(dataset.manifest.train.shards) + 4)
    )


class _Tiny(L.LightningModule):
    """Trains on the sum of the tokens and records the rows it received."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.row_ids.tolist())
        return (self.scale - batch.input_ids.float().mean() / 100) ** 2

    def validation_step(self, batch, batch_idx):
        self.validated += batch.row_ids.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class _Save(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and (batch_idx + 1) % 4 == 0:
            trainer.save_checkpoint(self.path)


def fit(config, *, checkpoint=None, callbacks=(), **arguments) -> tuple[_Tiny, PackedDataModule]:
    module, data = _Tiny(), make(config, **arguments)
    trainer = L.Trainer(
        max_steps=12,
        accumulate_grad_batches=4,
        val_check_interval=24,
        num_sanity_val_steps=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module, data


@pytest.mark.filterwarnings("ignore")
def test_resumed_lightning_run_matches_undisturbed_run(prepared, tmp_path):
    config = replace(prepared, num_workers=2)
    path = tmp_path / "at_5.ckpt"
    whole, data = fit(config, callbacks=[_Save(path, 5)])
    assert list(chain(*whole.seen)) == list(range(96))
    assert data.rows_seen == 96
    assert whole.validated == 2 * list(range(8))
    saved = torch.load(path, weights_only=True)["PackedDataModule"]
    assert saved["rows_seen"] == 40

    resumed, data = fit(config, checkpoint=path)
    assert list(chain(*resumed.seen)) == list(range(40, 96))
    assert data.rows_seen == 96
    assert torch.equal(resumed.scale, whole.scale)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_shard_gives_one_line_error_also_in_worker(prepared, tmp_path, num_workers):
    copy = shutil.copytree(prepared.dir, tmp_path / "copy")
    for shard in copy.glob("train-*.tar"):
        shard.write_bytes(shard.read_bytes()[:1000])
    config = replace(prepared, dir=str(copy), num_workers=num_workers)
    with pytest.raises(UserError, match=r"train-.*\.tar is truncated: 1000 of") as caught:
        list(make(config).train_dataloader())
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_data_set_or_seed_is_rejected(prepared, tmp_path, make_config, make_texts):
    other = make_config(tmp_path / "other", make_texts(60, seed=5))
    prepare(other)
    with pytest.raises(UserError, match="trained on another data set"):
        make(prepared).load_state_dict(make(other).state_dict())
    with pytest.raises(UserError, match="seed=4, not seed=3"):
        make(prepared).load_state_dict(make(prepared, seed=4).state_dict())


def test_validation_rows_are_independent_of_seed_and_settings_and_divided_among_ranks(prepared):
    expected = list(make(prepared).val_dataloader())
    assert row_ids(expected) == list(range(8))
    again = make(replace(prepared, shortening=TruncateRow(1.0), num_streams=3), seed=99).val_dataloader()
    assert all(map(same, expected, again))
    for rank in range(2):
        dealt = list(make(prepared, world=(rank, 2)).val_dataloader())
        assert row_ids(dealt) == list(range(rank, 8, 2))


def test_validation_rows_are_limited_to_available_rows(prepared, caplog):
    module = make(prepared, validation_rows=10**6, world=(0, 4))
    with caplog.at_level(logging.WARNING):
        loader = module.val_dataloader()
    rows = module.manifest.validation.tokens // 32
    num_batches = sum(len(batch.row_ids) for batch in loader)
    assert 4 * num_batches <= rows
    assert f"validating on {4 * num_batches} rows instead of 1000000: " in caplog.text
    assert "each of 4 ranks takes the same number" in caplog.text
    assert make(prepared, validation_rows=0).val_dataloader() == []
    with pytest.raises(UserError, match="fewer than 100000 ranks"):
        make(prepared, world=(0, 100_000)).val_dataloader()


def test_batch_not_divisible_by_ranks_is_rejected(prepared):
    with pytest.raises(UserError, match="batch_rows=8 is not a multiple of micro_batch_rows=3 × 1 ranks = 3"):
        make(prepared, micro_batch_rows=3).train_dataloader()
    with pytest.raises(UserError, match="micro_batch_rows is 0"):
        make(prepared, micro_batch_rows=0)
    assert make(prepared, world=(0, 2)).accumulation == 2


@pytest.mark.parametrize("validation_rows", [5, 10_000])
def test_unigram_cross_entropy_uses_training_frequencies_on_scored_tokens(prepared, validation_rows):
    dataset = open_dataset(prepared.dir)
    trained = Counter(t for shard in dataset.manifest.train.shards for t in dataset.load(shard).tokens.tolist())
    module = make(prepared, validation_rows=validation_rows)
    scored = [token for batch in module.val_dataloader() for token in batch.input_ids.flatten().tolist()]
    total = trained.total() + dataset.manifest.vocab_size
    expected = -sum(math.log((trained[token] + 1) / total) for token in scored) / len(scored)
    assert module.unigram_cross_entropy() == pytest.approx(expected, rel=1e-12)
    own = -sum(n / len(scored) * math.log(n / len(scored)) for n in Counter(scored).values())
    assert expected > own, "the text's own entropy is lower: it knows the text"


def test_tokens_of_large_training_split_are_counted_on_evenly_spaced_shards(prepared, monkeypatch):
    dataset = open_dataset(prepared.dir)
    records = dataset.manifest.train.shards
    monkeypatch.setattr("lit_illada.data.datamodule._COUNTED_TOKENS", -(-dataset.manifest.train.tokens // 3))
    assert make(prepared).training_counts().sum() == sum(record.tokens for record in records[::3])


def test_unigram_cross_entropy_is_nan_without_validation(prepared):
    assert math.isnan(make(prepared, validation_rows=0).unigram_cross_entropy())


def test_only_validation_rows_have_document_ids(prepared):
    module = make(prepared)
    assert all(batch.document_ids.shape == batch.input_ids.shape for batch in module.val_dataloader())
    assert next(iter(module.train_dataloader())).document_ids is None


def test_missing_data_set_is_prepared_and_existing_one_is_opened(tmp_path, make_config, make_texts):
    config = make_config(tmp_path / "set", make_texts(60))
    with pytest.raises(UserError, match="no prepared data set"):
        _ = make(config).manifest
    make(config).prepare_data()
    fingerprint = make(config).manifest.fingerprint
    opened = make(replace(config, source=PreparedSource()))
    opened.prepare_data()
    assert opened.manifest.fingerprint == fingerprint
    with pytest.raises(UserError, match=r"data\.validation_fraction: 0\.2 there, 0\.5 here"):
        make(replace(config, validation_fraction=0.5)).prepare_data()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("row_length", 0),
        ("num_streams", 0),
        ("num_workers", -1),
        ("validation_fraction", 0.0),
        ("shard_tokens", 1),
        ("dir", ""),
    ],
)
def test_invalid_settings_are_rejected(field, value):
    with pytest.raises(UserError, match=f"data.{field} is "):
        DataConfig(**{field: value})
    with pytest.raises(UserError, match=r"data\.shortening\.probability"):
        SplitRow(1.5)
