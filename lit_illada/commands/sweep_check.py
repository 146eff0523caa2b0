"""The `sweep check` command: whether the current code gives the committed results."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from lit_illada.commands.data import prepare_dataset
from lit_illada.commands.sweep import data_configs, expanded, run_all
from lit_illada.commands.sweep_slots import Workers
from lit_illada.data.corpora.text_files import find_files
from lit_illada.data.dataset.manifest import require_dataset
from lit_illada.errors import InterruptedByUserError, UserError
from lit_illada.runtime.console import Console
from lit_illada.runtime.files import MissingFileError
from lit_illada.sweep.folder import PlannedRun, SweepFolder, read_record
from lit_illada.sweep.published import Published, published
from lit_illada.sweep.spec import SweepSpec

_FLOORS = 2.0  # a rerun with other rounding differs by more than twice the noise floor in one of twenty cases
_RELATIVE = 1e-6  # without a measured noise floor


def check_results(results: Path, workers: Workers) -> None:
    """Train one cheap run of every result that is not superseded, and compare its primary metric.

    Results whose runs need files that are absent here, such as a converted checkpoint, are named and not repeated.
    Raises SystemExit(1) if one differs by more than twice its noise floor, or cannot be planned or trained by the
    current code, and SystemExit(130) at Ctrl-C. Raises UserError for results without status.yaml.
    """
    console, num_wrong = Console(), 0
    for each in published(results):
        status = each.status
        commits = ", ".join(commit[:8] for commit in status.commits)
        origin = f"commit {commits}, {'clean' if status.is_clean else 'with uncommitted changes'}"
        if status.superseded is not None:
            text = f"superseded, not checked: {status.superseded}"
        else:
            is_equal, text = _check(each, workers)
            num_wrong += not is_equal
        console.print(f"{each.path.name:<16} {origin}; {text}", highlight=False, soft_wrap=True)
    if num_wrong:
        raise SystemExit(1)


def _check(each: Published, workers: Workers) -> tuple[bool, str]:
    """Whether a rerun agrees, and the comparison in words. Raises SystemExit(130) if the user stops the rerun."""
    try:
        spec = each.sweep.read_spec()
        chain = cheapest(spec, expanded(spec, each.sweep))
        _provide_inputs(chain)
    except InterruptedByUserError:
        raise
    except UserError as error:
        return (True, f"not repeated here: {error}") if _is_absence(error) else (False, f"cannot be repeated: {error}")
    metric = spec.metrics[0].name
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_all(spec, SweepFolder(Path(folder)), chain, workers)
        if outcome.was_stopped:
            raise SystemExit(130)
        if not outcome.is_finished:
            return False, f"{chain[-1].id} did not finish"
        summary = read_record(outcome.sweep_folder.run_folder(chain[-1]).summary) or {}
    committed, now = each.figure(chain[-1].id, metric), float(summary["end"][metric])
    floor = each.noise_floor(metric)
    limit = abs(committed) * _RELATIVE if floor is None else max(_FLOORS * floor, abs(committed) * _RELATIVE)
    is_equal = abs(now - committed) <= limit
    words = "agrees" if is_equal else "DIFFERS"
    return is_equal, f"{words}: {chain[-1].id} {metric} {committed:.6g} committed, {now:.6g} now (limit ±{limit:.2g})"


def _provide_inputs(chain: Sequence[PlannedRun]) -> None:
    """Prepare the data sets of the runs. Raises UserError, which is a MissingFileError for files that are absent."""
    for config in data_configs(chain):
        prepare_dataset(config, Console(stderr=True))
        require_dataset(config.dir)
    for run in chain:
        source = run.config.get("sft_data", {}).get("source", {})
        find_files([*source.get("paths", []), *source.get("validation_paths", [])])


def _is_absence(error: BaseException | None) -> bool:
    """Whether an error is about a missing file. Planning raises such errors again, with the arm and stage."""
    return error is not None and (isinstance(error, MissingFileError) or _is_absence(error.__cause__))


def cheapest(spec: SweepSpec, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The run with the primary metric, at the first seed, that costs least, after the runs it starts from."""
    by_id = {run.id: run for run in runs}

    def chain(run: PlannedRun) -> list[PlannedRun]:
        return [*(chain(by_id[run.parent]) if run.parent else []), run]

    arms = {arm.name for arm in spec.all_arms()}
    seeds = {spec.seeds[0], None}
    stage = spec.metrics[0].stage
    candidates = [chain(r) for r in runs if r.stage == stage and r.seed in seeds and arms & set(r.arms)]
    if not candidates:
        raise UserError(f"{spec.name}: no run of stage {stage!r} at seed {spec.seeds[0]}")
    return min(candidates, key=lambda of_run: sum(run.flops or 0.0 for run in of_run))
