"""Config of the loggers that record a run's curves; `training/loggers.py` builds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.errors import UserError


class WandbMode(StrEnum):
    """When curves are uploaded to Weights & Biases."""

    offline = "offline"
    """Written to the run folder only; `wandb sync` uploads them."""
    online = "online"
    """Uploaded while the run trains."""


@dataclass(frozen=True)
class WandbConfig:
    """A run of Weights & Biases, which a resumed run continues."""

    project: str = "lit-illada"
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team; None: the account's default."""
    group: str | None = None
    """Group of runs on the project's page; None: no group."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""
    mode: WandbMode = WandbMode.offline
    """When curves are uploaded."""

    def __post_init__(self) -> None:
        if not self.project or set(self.project) & set("/\\#?%:"):
            raise UserError(f"logger.wandb.project is {self.project!r}; it must be a name without / \\ # ? % :")


@dataclass(frozen=True)
class LoggerConfig:
    """Loggers in addition to TensorBoard, which every run has."""

    csv: bool = False
    """Write metrics.csv in the run folder: one row per logged set of values, blank where a value is missing."""
    wandb: WandbConfig | None = None
    """Run of Weights & Biases; None: not logged there."""
