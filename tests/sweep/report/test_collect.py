"""Reading the files of a sweep's runs: finished, failed, running and not started."""

import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lit_illada.errors import UserError
from lit_illada.sweep.folder import RunState
from lit_illada.sweep.report import events
from lit_illada.sweep.report.collect import collect
from lit_illada.sweep.report.events import read_all, read_curves


def write(folder, points, wall_time):
    writer = EventFileWriter(str(folder), filename_suffix=f".{wall_time}")
    for step, value in points:
        summary = Summary(value=[Summary.Value(tag="val/x", simple_value=value)])
        writer.add_event(Event(step=step, wall_time=wall_time + step, summary=summary))
    writer.close()


def test_curves_match_those_read_by_tensorboard(finished_sweep):
    folder = finished_sweep.runs / "pretrain-band-s1"
    reference = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reference.Reload()
    curves = read_curves(folder)
    assert set(curves) == set(reference.Tags()["scalars"])
    for tag, curve in curves.items():
        assert list(zip(curve.steps, curve.values, strict=True)) == [
            (event.step, event.value) for event in reference.Scalars(tag)
        ]


def test_later_value_of_a_repeated_step_counts(tmp_path):
    write(tmp_path, [(1, 1.0), (2, 2.0), (3, 3.0)], wall_time=0)
    write(tmp_path, [(2, 20.0), (3, 30.0), (4, float("nan"))], wall_time=100)
    curve = read_curves(tmp_path)["val/x"]
    assert (list(curve.steps), list(curve.values)) == ([1, 2, 3], [1.0, 20.0, 30.0])


def test_curve_of_only_nan_is_omitted(tmp_path):
    write(tmp_path, [(0, float("nan")), (1, float("nan"))], wall_time=0)
    assert read_curves(tmp_path) == {}


def test_parallel_reading_gives_the_same_curves(finished_sweep, monkeypatch):
    folders = sorted(finished_sweep.runs.iterdir())
    serial = read_all(folders)
    monkeypatch.setattr(events, "_WORTH_A_POOL", 0)
    assert read_all(folders) == serial == [read_curves(folder) for folder in folders]


def test_incomplete_last_record_is_ignored(tmp_path):
    write(tmp_path, [(step, float(step)) for step in range(5)], wall_time=0)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    lengths = set()
    for end in range(0, len(content), 3):
        file.write_bytes(content[:end])
        curves = read_curves(tmp_path)
        lengths.add(len(curves["val/x"]) if curves else 0)
    assert lengths == {0, 1, 2, 3, 4}


def test_only_finished_runs_have_final_metrics(half_finished_sweep):
    records = {record.run.id: record for record in collect(half_finished_sweep.path).records}
    states = {
        "pretrain-uniform-s0": RunState.FINISHED,
        "pretrain-cosine-s2": RunState.FAILED,
        "pretrain-band-s1": RunState.INTERRUPTED,
        "pretrain-fixed-1.0-s0": RunState.PENDING,
    }
    for run_id, state in states.items():
        assert records[run_id].state is state
        assert bool(records[run_id].figures) == (state is RunState.FINISHED)
    assert records["pretrain-cosine-s2"].failure["last_lines"][-1] == "ValueError: <boom>"
    assert max(records["pretrain-band-s1"].curves["val/nll_bound"].steps) == 30


def test_provenance_has_config_commit_data_and_checkpoint(finished_sweep):
    record = collect(finished_sweep.path).records[0]
    origin = record.provenance
    assert origin.config == finished_sweep.runs / record.run.id / "config.yaml"
    assert origin.commits == ["c0ffee" * 6 + "beef"]
    assert origin.data_sha256 == ["ab" * 32]
    assert (origin.checkpoint.name, origin.checkpoint_step) == ("step=00000060.ckpt", 60)
    assert (record.elapsed_s, record.memory_bytes, record.flops) == (31.0, 700_000_000, 3.0e12)


def test_run_resumed_at_another_commit_has_both(finished_sweep):
    file = finished_sweep.runs / "pretrain-uniform-s0" / "provenance.jsonl"
    file.write_text(file.read_text() + '{"commit": "deadbeef", "data_sha256": null}\n')
    assert collect(finished_sweep.path).records[0].provenance.commits == ["c0ffee" * 6 + "beef", "deadbeef"]


def test_run_is_labelled_by_arms_axis_values_and_seed(make_grid):
    spec = make_grid().read_spec()
    assert spec.labels(["u+y"], 1) == {"arm": "u+y", "ratio": "u", "weight": "y", "seed": 1}
    assert spec.labels(["u+y", "v+y"], None) == {"arm": "u+y, v+y", "ratio": "u, v", "weight": "y"}


def test_runs_without_files_are_read(finished_sweep):
    shutil.rmtree(finished_sweep.runs)
    sweep = collect(finished_sweep.path)
    assert {record.state for record in sweep.records} == {RunState.PENDING}
    assert sweep.num_finished == 0


def test_folder_without_a_sweep_is_rejected(tmp_path):
    with pytest.raises(UserError, match="not the folder of a sweep"):
        collect(tmp_path)
