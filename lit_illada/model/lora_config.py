"""Config of adapters; `lora.py` implements them."""

from dataclasses import dataclass, field

from lit_illada.errors import UserError, unknown

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class FullWeights:
    """No adapter: every weight is trained."""


@dataclass(frozen=True)
class LoraConfig:
    """rank: of each update. alpha: the update is scaled by alpha / rank. targets: the linear layers of every block."""

    rank: int = 16
    alpha: float = 32.0
    targets: list[str] = field(default_factory=lambda: list(TARGETS))

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"adapter.rank is {self.rank}: it must be 1 or more")
        if not self.alpha > 0:
            raise UserError(f"adapter.alpha is {self.alpha}: it must be above 0")
        if not self.targets:
            raise UserError(f"adapter.targets is empty: name some of {', '.join(TARGETS)}")
        for target in self.targets:
            if target not in TARGETS:
                raise unknown("adapter.targets", target, TARGETS)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


ADAPTERS: dict[str, type] = {"none": FullWeights, "lora": LoraConfig}
