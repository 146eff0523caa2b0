"""Thresholds of the loop detectors, each with the default at which false alarms were measured.

Lengths and periods are in units: words and signs of the text, or the model's own tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.errors import require


def _require_at_least(rule: str, least: float, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        require(value >= least, f"loops.{rule}.{name}", value, f"{least} or more")


def _require_copies(rule: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        require(value > 1, f"loops.{rule}.{name}", value, "above 1")


class Unit(StrEnum):
    """What lengths are measured in."""

    words = "words"  # words and signs by a regular expression; comparable across models
    tokens = "tokens"  # the model's own, where a file holds them with their texts; words elsewhere


@dataclass(frozen=True)
class FloodRule:
    """One or two units over and over, such as "we, we, we,".

    Fewer copies than min_cycles of so short a unit are neither a flood nor an exact run: "na na na" is no loop.
    """

    max_period: int = 2  # units of a copy, at most
    min_cycles: float = 16  # copies

    def __post_init__(self) -> None:
        _require_at_least("flood", 1, {"max_period": self.max_period})
        _require_copies("flood", {"min_cycles": self.min_cycles})


@dataclass(frozen=True)
class ExactRule:
    """The same units again and again, with a period above flood.max_period.

    Copies without any letter or digit, such as empty table cells, count from flood.min_cycles copies on.
    """

    min_cycles: float = 3  # copies
    min_length: int = 24  # units of all copies together
    min_cycles_in_code: float = 5  # copies inside code fences, tables and rows of data

    def __post_init__(self) -> None:
        _require_at_least("exact", 1, {"min_length": self.min_length})
        _require_copies("exact", {"min_cycles": self.min_cycles, "min_cycles_in_code": self.min_cycles_in_code})


@dataclass(frozen=True)
class NearExactRule:
    """As exact, with some units exchanged.

    Copies that differ in what they say (in a number, an operator or a word that is no filler) are different fillings of
    a template. A run is a loop only where consecutive copies repeat earlier fillings often enough: running sums,
    drills, enumerations and forms are not. Closed code fences, tables and rows of data are left out.
    """

    mismatch: float = 0.1  # fraction of units that differ from the copy before, at most
    max_gap: int = 2  # differing units in a row, at most
    min_cycles: float = 3  # copies, and copies of each filling
    min_length: int = 32  # units of all copies together
    min_cycles_in_code: float = 5  # copies inside a code fence that is not closed

    def __post_init__(self) -> None:
        require(0 <= self.mismatch < 0.5, "loops.near_exact.mismatch", self.mismatch, "in [0, 0.5)")
        _require_at_least("near_exact", 0, {"max_gap": self.max_gap})
        _require_at_least("near_exact", 1, {"min_length": self.min_length})
        _require_copies("near_exact", {"min_cycles": self.min_cycles, "min_cycles_in_code": self.min_cycles_in_code})


@dataclass(frozen=True)
class StatementRule:
    """Sentences that repeat an earlier sentence.

    A sentence revisits one of the `lookback` sentences before it when their rapidfuzz ratio reaches `ratio` and they
    agree in numbers, operators and all words but fillers ("next", "however"). A streak is min_revisits revisits in each
    `window` consecutive sentences.
    """

    min_length: int = 6  # units of a sentence; shorter ones are skipped
    ratio: float = 90  # of 100
    lookback: int = 32  # sentences
    window: int = 10  # sentences
    min_revisits: int = 8  # of `window`
    min_cycles: float = 2.5  # units of a streak over units of its first copies: the third copy may be cut off
    max_new: int = 1  # new sentences in a row; more of them, such as a verse between two refrains, end a streak
    self_correction: float = 0.5  # fraction of sentences with a phrase of doubt that makes a streak self-correction
    min_cycles_in_code: float = 5  # copies inside a code fence that is not closed; in closed ones none count

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 100, "loops.statement.ratio", self.ratio, "in (0, 100]")
        least_one = {"min_length": self.min_length, "lookback": self.lookback, "min_revisits": self.min_revisits}
        _require_at_least("statement", 1, least_one)
        allowed = f"loops.statement.window={self.window} or less"
        require(self.min_revisits <= self.window, "loops.statement.min_revisits", self.min_revisits, allowed)
        _require_copies("statement", {"min_cycles": self.min_cycles, "min_cycles_in_code": self.min_cycles_in_code})
        _require_at_least("statement", 0, {"max_new": self.max_new})
        require(0 <= self.self_correction <= 1, "loops.statement.self_correction", self.self_correction, "in [0, 1]")


@dataclass(frozen=True)
class EndingRule:
    """How a text ends."""

    overflow_fraction: float = 0.5  # fraction of the canvas that end-of-text tokens fill without an answer
    runaway_length: int = 20  # units after the answer
    escaped_fraction: float = 0.05  # fraction of the text that is new and follows the last loop
    terminal_slack: int = 3  # units after a loop that still reaches the text's end
    closure_blocks: int = 2  # blocks at the end of a full canvas within which a forced answer lies
    block_length: int = 32  # units of such a block

    def __post_init__(self) -> None:
        for name in ("overflow_fraction", "escaped_fraction"):
            require(0 <= getattr(self, name) <= 1, f"loops.ending.{name}", getattr(self, name), "in [0, 1]")
        _require_at_least("ending", 1, {"runaway_length": self.runaway_length, "block_length": self.block_length})
        _require_at_least("ending", 0, {"terminal_slack": self.terminal_slack, "closure_blocks": self.closure_blocks})


@dataclass(frozen=True)
class WarningRule:
    """The CUSUM that warns early."""

    kappa: float = 0.5  # slack per step, in standard deviations
    false_alarms: float = 0.01  # fraction of texts without loops that may alarm; sets the threshold
    min_texts: int = 20  # fewer texts without loops set no threshold
    ngram: int = 4  # units whose novelty is followed

    def __post_init__(self) -> None:
        require(0 < self.false_alarms < 1, "loops.warning.false_alarms", self.false_alarms, "in (0, 1)")
        _require_at_least("warning", 0, {"kappa": self.kappa})
        _require_at_least("warning", 1, {"min_texts": self.min_texts, "ngram": self.ngram})


@dataclass(frozen=True)
class LoopConfig:
    """All thresholds."""

    unit: Unit = Unit.tokens  # what is compared
    max_period: int = 256  # units of the longest period that is looked for
    flood: FloodRule = field(default_factory=FloodRule)  # one or two units over and over
    exact: ExactRule = field(default_factory=ExactRule)  # equal copies
    near_exact: NearExactRule = field(default_factory=NearExactRule)  # copies with few differences
    statement: StatementRule = field(default_factory=StatementRule)  # repeated sentences
    ending: EndingRule = field(default_factory=EndingRule)  # texts that do not end well
    warning: WarningRule = field(default_factory=WarningRule)  # alarm while a text is generated
    stop_texts: list[str] = field(
        default_factory=lambda: [
            "<|eot_id|>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eos|>", "</s>", "<eos>", "<pad>",
        ]
    )  # fmt: skip
    """Texts of end-of-text tokens."""

    def __post_init__(self) -> None:
        require(self.max_period >= 3, "loops.max_period", self.max_period, "3 or more")
        require("" not in self.stop_texts, "loops.stop_texts", self.stop_texts, "a list without an empty text")


@dataclass(frozen=True)
class LoopsConfig:
    """The configuration of `loops analyze`."""

    loops: LoopConfig = field(default_factory=LoopConfig)  # thresholds of the detectors
