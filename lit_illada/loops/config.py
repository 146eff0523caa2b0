"""When is a text called a loop? Every threshold, with the default that the false-alarm rates were measured at.

Lengths and periods are in units: words and signs of the text, or the model's own tokens.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.errors import UserError


class Unit(StrEnum):
    """words: a regular expression's, which compare across models. tokens: the model's, where a file holds them with
    their texts, and words elsewhere."""

    words = "words"
    tokens = "tokens"


@dataclass(frozen=True)
class FloodRule:
    """One or two units over and over."""

    max_period: int = 2
    min_cycles: float = 16


@dataclass(frozen=True)
class ExactRule:
    """The same units again and again; inside code fences only min_cycles_in_code of them count."""

    min_cycles: float = 3
    min_length: int = 24
    min_cycles_in_code: float = 5


@dataclass(frozen=True)
class NearExactRule:
    """As exact, with some units exchanged. mismatch: which share at most. max_gap: how many in a row at most. What
    changes a number in every copy, as a running sum does, is a template and no loop."""

    mismatch: float = 0.1
    max_gap: int = 2
    min_cycles: float = 3
    min_length: int = 32
    min_cycles_in_code: float = 5


@dataclass(frozen=True)
class StatementRule:
    """Sentences that say what was said before.

    A sentence of min_length units revisits one of the `lookback` before it when their rapidfuzz ratio reaches `ratio`
    and their numbers are equal; a streak is `min_revisits` of `window` in a row. Where `self_correction` of its
    sentences hold a phrase of self-correction, it is of that subtype. min_cycles_in_code: how often, inside code
    fences, each sentence must stand there.
    """

    min_length: int = 6
    ratio: float = 90
    lookback: int = 32
    window: int = 10
    min_revisits: int = 8
    self_correction: float = 0.5
    min_cycles_in_code: float = 5


@dataclass(frozen=True)
class EndingRule:
    """How a text ends.

    overflow_share: of the canvas, end-of-text tokens. runaway_length: units after the answer. escaped_share: new text
    behind the loop, of the whole. terminal_slack: units behind the loop that still count as its end. closure_blocks:
    an answer that a full canvas forces lies within so many blocks of block_length at its end.
    """

    overflow_share: float = 0.5
    runaway_length: int = 20
    escaped_share: float = 0.05
    terminal_slack: int = 3
    closure_blocks: int = 2
    block_length: int = 32


@dataclass(frozen=True)
class WarningRule:
    """The CUSUM that warns early. kappa: the slack a step, in standard deviations. false_alarms: of texts that do not
    loop, which set the threshold. min_texts: fewer of them set none. ngram: the length whose novelty is followed."""

    kappa: float = 0.5
    false_alarms: float = 0.01
    min_texts: int = 20
    ngram: int = 4


@dataclass(frozen=True)
class LoopConfig:
    """All rules. max_period: the longest period that is looked for. stop_texts: what ends a text."""

    unit: Unit = Unit.tokens
    max_period: int = 256
    flood: FloodRule = field(default_factory=FloodRule)
    exact: ExactRule = field(default_factory=ExactRule)
    near_exact: NearExactRule = field(default_factory=NearExactRule)
    statement: StatementRule = field(default_factory=StatementRule)
    ending: EndingRule = field(default_factory=EndingRule)
    warning: WarningRule = field(default_factory=WarningRule)
    stop_texts: list[str] = field(
        default_factory=lambda: [
            "<|eot_id|>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eos|>", "</s>", "<eos>", "<pad>",
        ]
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.max_period < 3:
            raise UserError(f"loops.max_period is {self.max_period}; it must be 3 or more")
        if not 0 <= self.near_exact.mismatch < 0.5:
            raise UserError(f"loops.near_exact.mismatch is {self.near_exact.mismatch}; it must lie in [0, 0.5)")
        if not 0 < self.statement.ratio <= 100:
            raise UserError(f"loops.statement.ratio is {self.statement.ratio}; it must lie in (0, 100]")
        if not 0 < self.statement.min_revisits <= self.statement.window:
            raise UserError(
                f"loops.statement.min_revisits is {self.statement.min_revisits}; it must lie between 1 and "
                f"loops.statement.window={self.statement.window}"
            )
        for name, cycles in (("flood", self.flood), ("exact", self.exact), ("near_exact", self.near_exact)):
            if cycles.min_cycles <= 1:
                raise UserError(f"loops.{name}.min_cycles is {cycles.min_cycles}; it must be above 1")
        if "" in self.stop_texts:
            raise UserError("loops.stop_texts holds an empty text")


@dataclass(frozen=True)
class LoopsConfig:
    """What `loops` is told."""

    loops: LoopConfig = field(default_factory=LoopConfig)
