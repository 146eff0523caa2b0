"""Config of adapters; `lora.py` implements them."""

from dataclasses import dataclass, field

from lit_illada.errors import UserError, unknown

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class FullWeights:
    """No adapters: every weight is trained."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers; all other weights are frozen."""

    rank: int = 16
    """Rank of each update."""
    alpha: float = 32.0
    """Scale of the updates: they are multiplied by alpha / rank."""
    targets: list[str] = field(default_factory=lambda: list(TARGETS))
    """Linear layers of every block that get an adapter."""

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
        """Factor of the updates, alpha / rank."""
        return self.alpha / self.rank


ADAPTERS: dict[str, type] = {"none": FullWeights, "lora": LoraConfig}
