"""A damaged training shard stops the run or is replaced, equally on every rank and after a resume."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_illada.cli import main
from lit_illada.data.config import OnBadShard
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.dataset.reading import BadShardError, open_dataset
from lit_illada.data.packing import PackedStream
from lit_illada.errors import UserError


@pytest.fixture
def copy(prepared, tmp_path):
    return Path(shutil.copytree(prepared.dir, tmp_path / "copy"))


def spoil(folder, index):
    shard = folder / open_dataset(folder).manifest.train.shards[index].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return shard.name


def stream(folder, **options):
    return PackedStream(open_dataset(folder), "train", row_length=32, num_streams=2, seed=5, **options)


def test_bad_shard_raises_with_its_name(copy):
    name = spoil(copy, 1)
    with pytest.raises(BadShardError, match=f"{name} was altered"):
        stream(copy).rows(np.arange(stream(copy).rows_per_epoch))


def test_skipping_changes_only_rows_of_the_bad_shard_in_any_reading_order(copy, prepared, caplog):
    honest = stream(prepared.dir)
    ids = np.arange(honest.rows_per_epoch)
    tokens, _ = honest.rows(ids)
    _, shards, _ = honest._order.locate(ids)
    name = spoil(copy, 1)
    skipping = stream(copy, skips_bad=True)
    assert skipping.rows_per_epoch == honest.rows_per_epoch
    got, _ = skipping.rows(ids)
    np.testing.assert_array_equal(got[shards != 1], tokens[shards != 1])
    others = {row.tobytes() for row in tokens[shards == 2]}
    assert all(row.tobytes() in others for row in got[shards == 1])
    assert skipping.is_bad.tolist() == [int(index == 1) for index in range(len(skipping.is_bad))]
    assert f"skipped: {copy}/{name} was altered" in caplog.text
    # another rank, or a resume, that begins elsewhere
    later = stream(copy, skips_bad=True)
    np.testing.assert_array_equal(later.rows(ids[::-1])[0][::-1], got)


def test_data_set_without_good_shards_is_rejected(copy):
    for index in range(len(open_dataset(copy).manifest.train.shards)):
        spoil(copy, index)
    with pytest.raises(UserError, match=r"every training shard at .* is bad"):
        stream(copy, skips_bad=True).rows(np.arange(4))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shards_skipped_by_loader_process_are_counted_in_parent(num_workers, copy, prepared):
    spoil(copy, 1)
    config = replace(prepared, dir=str(copy), on_bad_shard=OnBadShard.SKIP, num_workers=num_workers, row_length=32)
    options = {"seed": 0, "batch_rows": 8, "micro_batch_rows": 8, "validation_rows": 0}
    module = PackedDataModule(config, total_steps=-(-stream(copy).rows_per_epoch // 8), **options)
    assert sum(len(batch.row_ids) for batch in module.train_dataloader()) >= stream(copy).rows_per_epoch
    assert int(module.is_bad_shard.sum()) == 1


def test_validation_raises_on_bad_shard(copy, prepared):
    shard = copy / open_dataset(copy).manifest.validation.shards[0].file
    shard.unlink()
    config = replace(prepared, dir=str(copy), on_bad_shard=OnBadShard.SKIP)
    options = {"seed": 0, "batch_rows": 8, "micro_batch_rows": 8, "validation_rows": 2, "total_steps": 1}
    with pytest.raises(BadShardError, match=f"{shard.name} is missing"):
        PackedDataModule(config, **options).unigram_cross_entropy()


def test_run_that_skips_bad_shard_finishes_and_logs_their_number(copy, tiny_run, tmp_path, caplog):
    name = spoil(copy, 0)
    run = tmp_path / "run"
    words = [*tiny_run, "data=prepared", f"data.dir={copy}", f"run_dir={run}", "trainer.log_every_steps=1"]
    stopped = CliRunner().invoke(main, ["pretrain", *words])
    assert stopped.exit_code == 1
    assert f"{name} was altered" in stopped.output
    shutil.rmtree(run)
    result = CliRunner().invoke(main, ["pretrain", *words, "data.on_bad_shard=skip"])
    assert result.exit_code == 0, result.output
    assert f"{name} was altered" in caplog.text
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    assert events.Scalars("data/skipped_shards")[-1].value == 1
