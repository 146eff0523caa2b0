"""Config of the records that a run's curves are written to; `training/loggers.py` builds the loggers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.errors import UserError


class WandbMode(StrEnum):
    """Whether curves are uploaded while the run trains, or written to the run folder alone."""

    offline = "offline"
    online = "online"


@dataclass(frozen=True)
class WandbConfig:
    """A run of Weights & Biases. A resumed run continues it."""

    project: str = "lit-illada"
    # user or team; None: the default of the account
    entity: str | None = None
    # groups runs in the web page; None: no group
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: WandbMode = WandbMode.offline

    def __post_init__(self) -> None:
        if not self.project or set(self.project) & set("/\\#?%:"):
            raise UserError(f"logger.wandb.project is {self.project!r}; it must be a name without / \\ # ? % :")


@dataclass(frozen=True)
class LoggerConfig:
    """Records of the curves, beside TensorBoard's event files."""

    # metrics.csv in the run folder: a row for each set of values, with the step; blank where a row lacks a value
    csv: bool = False
    # None: none
    wandb: WandbConfig | None = None
