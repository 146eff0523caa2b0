"""Builds the loggers of a run: TensorBoard always, a CSV file and Weights & Biases if configured.

A resumed run continues the records of the run it resumes.
"""

import csv
import importlib.util
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import TensorBoardLogger as FabricTensorBoardLogger
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.files import open_to_append, write_atomically
from lit_illada.training.config.loggers import LoggerConfig, WandbConfig, WandbMode
from lit_illada.training.record import wait_for_later_name

_STEP = "step"


def require_loggers(config: LoggerConfig) -> None:
    """Raise UserError if the package of a configured logger is not installed."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError("logger=wandb, but wandb is not installed: pip install 'lit-illada[wandb]'")


def build_loggers(config: LoggerConfig, folder: RunFolder) -> list[Logger]:
    """Build the configured loggers, TensorBoard's first: `Trainer.logger` returns the first one."""
    require_loggers(config)
    if is_rank_zero():
        wait_for_later_name(folder.path)
    loggers: list[Logger] = [_Curves(folder.path.parent, name=folder.path.name, version="", default_hp_metric=False)]
    if config.csv:
        loggers.append(CsvCurves(folder.path / "metrics.csv"))
    if config.wandb is not None:
        loggers.append(_wandb(config.wandb, folder))
    return loggers


class _Curves(TensorBoardLogger):
    """TensorBoard's logger without Lightning's hparams.yaml, which would be empty: the run has its config.yaml.

    One event file serves all calls of the trainer: TensorBoard reads files in the order of their names, and files
    created in the same second differ only in a counter, which it compares as text (10 before 9).
    """

    def save(self) -> None:
        FabricTensorBoardLogger.save(self)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status != "success":
            super().finalize(status)  # closes the file, which a rollback truncates
        elif self._experiment is not None:
            self._experiment.flush()


def begin_records(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    """Start the records of a new run: log its config, and drop rows of a process killed before its first checkpoint."""
    continue_records(loggers, -1)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_hyperparams(dict(config))


def continue_records(loggers: Iterable[Logger], step: int) -> None:
    """Drop rows logged after `step`, from which the run resumes."""
    for logger in loggers:
        if isinstance(logger, CsvCurves):
            logger.drop_after(step)


def is_rank_zero() -> bool:
    """Whether this process is rank 0 of the run, as Lightning counts it before and during training."""
    return getattr(rank_zero_only, "rank", 0) == 0


def end_records(loggers: Iterable[Logger]) -> None:
    """Close the event file and finish the Weights & Biases run, so that another run in this process starts new ones."""
    for logger in loggers:
        if is_rank_zero() and isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
        if is_rank_zero() and isinstance(logger, WandbLogger):
            logger.experiment.finish()


class CsvCurves(Logger):
    """Appends one row per logged set of values to a CSV file, flushed at once; new names add columns.

    Unlike Lightning's CSVLogger it continues an existing file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml of the run folder has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {_STEP: step, **metrics}
        if self._columns is None:
            self._columns = list(self._read()[0]) if self._file.is_file() else [_STEP]
        if missing := [name for name in row if name not in self._columns]:
            self._columns += missing
            self._write(self._read()[1])
        with open_to_append(self._file, newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Remove the rows of later steps, and an incomplete last line left by a kill."""
        if not self._file.is_file():
            return
        self._columns, rows = self._read()
        self._write([row for row in rows if int(row[_STEP]) <= step])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """The columns and the complete rows of the file."""
        if not self._file.is_file():
            return [_STEP], []
        lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
        reader = csv.DictReader(line for line in lines if line.endswith("\n"))
        rows = list(reader)
        return list(reader.fieldnames or [_STEP]), rows

    def _write(self, rows: Sequence[Mapping[str, str]]) -> None:
        assert self._columns is not None
        lines = [self._columns, *([row.get(name, "") for name in self._columns] for row in rows)]
        write_atomically(self._file, "".join(",".join(values) + "\n" for values in lines))


def _wandb(config: WandbConfig, folder: RunFolder) -> WandbLogger:
    return WandbLogger(
        name=folder.path.name,
        save_dir=str(folder.path),
        id=_run_id(folder),
        resume="allow",
        project=config.project,
        entity=config.entity,
        group=config.group,
        tags=list(config.tags),
        offline=config.mode is WandbMode.offline,
        settings={"silent": True, "console": "off"},
    )


def _run_id(folder: RunFolder) -> str:
    """The run's id at Weights & Biases, stored in the run folder so that a resume continues the same run."""
    file = folder.path / "wandb" / "run_id"
    if not file.is_file() and is_rank_zero():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, uuid.uuid4().hex[:12])
    return file.read_text(encoding="utf-8") if file.is_file() else ""
