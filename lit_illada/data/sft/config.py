"""What is a model fine-tuned on, how is a conversation written in tokens, and how do examples become rows?"""

from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.data.config import OnBadDocument
from lit_illada.data.shortening import SHORTENINGS, NoShortening, SplitRow, TruncateRow
from lit_illada.errors import UserError
from lit_illada.schema import choice
from lit_illada.tasks.arithmetic import MAX_DEPTH, ProblemRange


@dataclass(frozen=True)
class ReasoningSource:
    """Chained arithmetic with computed truth, made on the spot: nothing is downloaded.

    seed: of the examples, apart from the run's, so that every run and every arm of a sweep learns the same ones.
    operations: of `+`, `-` and `*`, drawn alike.
    recheck_fraction: ρ, the share of traces that re-check one to three different steps in words, each step once; at
        most half of the steps, so that a trace of a single step never does.
    slip_fraction: the share of those re-checks that find a wrong result and correct it.
    min_recheck_depth: shorter chains are never re-checked, as easy problems seldom are.
    easy: the range of training and validation. harder: of the test beyond it.
    """

    seed: int = 0
    num_train: int = 20_000
    num_validation: int = 500
    num_harder: int = 500
    operations: str = "+"
    recheck_fraction: float = 0.25
    slip_fraction: float = 0.0
    min_recheck_depth: int = 1
    easy: ProblemRange = field(default_factory=ProblemRange)
    harder: ProblemRange = field(default_factory=lambda: ProblemRange(min_depth=5, max_depth=8))

    def __post_init__(self) -> None:
        for name in ("num_train", "num_validation", "num_harder"):
            if getattr(self, name) < 1:
                raise UserError(f"sft_data.source.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.operations or set(self.operations) - set("+-*"):
            raise UserError(f"sft_data.source.operations is {self.operations!r}; allowed are the characters + - *")
        for name in ("recheck_fraction", "slip_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"sft_data.source.{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if not 1 <= self.min_recheck_depth <= MAX_DEPTH:
            raise UserError(
                f"sft_data.source.min_recheck_depth is {self.min_recheck_depth}; it must lie in 1 … {MAX_DEPTH}"
            )


@dataclass(frozen=True)
class ReasoningTask:
    """Chained arithmetic to be solved: problems of the test portion, so of no training with the same fraction.

    depths: steps of the chain; max_numbers: the largest number; both make the difficulty, and every pair is a level.
    num_problems: of each level; the same ones for every model and every setting. seed: of the problems. The rest as in
    `ReasoningSource` and `ProblemRange`.
    """

    seed: int = 0
    depths: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8])
    num_problems: int = 32
    operations: str = "+"
    moduli: list[int] = field(default_factory=lambda: [2])
    operands: int = 2
    digits: int = 1
    max_numbers: list[int] | None = None
    held_out_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not self.depths:
            raise UserError("reasoning.depths is empty; name the depths of the chains, such as [2,4,8]")
        if self.num_problems < 1:
            raise UserError(f"reasoning.num_problems is {self.num_problems}; it must be at least 1")
        if not 0 < self.held_out_fraction < 0.5:
            raise UserError(f"reasoning.held_out_fraction is {self.held_out_fraction}; it must lie between 0 and 0.5")
        self.levels()

    def source(self) -> ReasoningSource:
        return ReasoningSource(seed=self.seed, operations=self.operations, recheck_fraction=0.0)

    def levels(self) -> dict[str, ProblemRange]:
        """By name: `depth_4`, or `max_3_depth_4` where there are several largest numbers."""
        largest = self.max_numbers or [10**self.digits - 1]
        return {
            (f"max_{most}_" if len(largest) > 1 else "") + f"depth_{depth}": ProblemRange(
                self.moduli, depth, depth, self.operands, self.digits, [most]
            )
            for most in largest
            for depth in self.depths
        }


@dataclass(frozen=True)
class InstructionFiles:
    """Files of examples, one JSON object a line, also .gz and .zst.

    paths: files, globs, or folders (their *.jsonl files, recursively).
    validation_paths: the held-out examples; empty: a share of those in `paths`, by a hash of the prompt.
    """

    paths: list[str] = field(default_factory=list)
    validation_paths: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MessagesSource(InstructionFiles):
    """Conversations: {"messages": [{"role": …, "content": …}, …]}, roles system, user and assistant.

    The reasoning of an assistant stands in <think> … </think> before its content, or under `reasoning_content`. An
    optional `answer` beside `messages` is the truth for exact match.
    """


@dataclass(frozen=True)
class ShareGptSource(InstructionFiles):
    """ShareGPT's conversations: {"conversations": [{"from": …, "value": …}, …]}, one JSON object per line.

    `from` is human (or user), gpt (or assistant) or system; an optional `system` beside `conversations` is the system
    message. Reasoning stands in <think> … </think> before an answer, and `answer` is the truth, as for `messages`.
    """


@dataclass(frozen=True)
class AlpacaSource(InstructionFiles):
    """The columns `instruction`, `input` (may be empty) and `output`."""


@dataclass(frozen=True)
class Gsm8kSource(InstructionFiles):
    """GSM8K's own files (arXiv 2110.14168): `question`, and `answer` with the truth after `####`.

    What stands before it becomes the reasoning, without the calculator's notes in double angle brackets.
    """


SftSource = ReasoningSource | MessagesSource | ShareGptSource | AlpacaSource | Gsm8kSource
SFT_SOURCES: dict[str, type] = {
    "reasoning": ReasoningSource,
    "messages": MessagesSource,
    "sharegpt": ShareGptSource,
    "alpaca": AlpacaSource,
    "gsm8k": Gsm8kSource,
}


@dataclass(frozen=True)
class RoleTokens:
    """Every message begins with its role's own token; reasoning stands between two tokens. The tokenizer has them."""


@dataclass(frozen=True)
class RoleTexts:
    """Messages begin with words, for tokenizers without role tokens. An assistant's message ends with EOS.

    message_end: after a system's or a user's message.
    """

    system: str = "System: "
    user: str = "User: "
    assistant: str = "Assistant: "
    message_end: str = "\n"
    think_open: str = "<think>"
    think_close: str = "</think>"

    def __post_init__(self) -> None:
        for name in ("user", "assistant", "think_open", "think_close"):
            if not getattr(self, name).strip():
                raise UserError(f"sft_data.template.{name} is empty; without it nothing tells the parts apart")


TEMPLATES: dict[str, type] = {"role_tokens": RoleTokens, "role_texts": RoleTexts}


class PadTo(StrEnum):
    """How far a row is padded: to the longest of its optimizer step (over all ranks), or to `row_length`."""

    BATCH = "batch"
    ROW = "row"


@dataclass(frozen=True)
class Packed:
    """Examples end to end, cut into windows of `row_length` (iLLaDA, arXiv 2606.25331).

    is_prompt_maskable: prompts are learnt like responses; otherwise they stay visible and carry no loss.
    isolate_examples: attention stays within an example; otherwise a row is one segment. In isolation a segment ends
        where its response does, which a model that sees both ways notices: examples much shorter than a row then teach
        it that the end of a block is the end of the response. Windows of one segment end anywhere.
    """

    is_prompt_maskable: bool = True
    isolate_examples: bool = True
    shortening: NoShortening | SplitRow | TruncateRow = choice(SHORTENINGS, "split")


@dataclass(frozen=True)
class Padded:
    """An example a row, padded with EOS (LLaDA, arXiv 2502.09992).

    is_padding_maskable: the padding belongs to the response, is masked and counts in the loss, so that the model
        learns to fill a fixed canvas; otherwise nobody sees it and it carries no loss.
    shortening: `truncate` ends rows anywhere, so that a model which will generate block by block does not learn that
        the end of its canvas is the end of its response.
    visible_prefix: the share of rows whose response is given up to a uniform random place, and only masked from there
        on: what block by block generation shows a model, and independent masks hardly ever do (after Blockwise SFT,
        arXiv 2508.19529).
    """

    is_prompt_maskable: bool = False
    is_padding_maskable: bool = True
    pad_to: PadTo = PadTo.BATCH
    shortening: NoShortening | SplitRow | TruncateRow = choice(SHORTENINGS, "none")
    visible_prefix: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.visible_prefix <= 1:
            raise UserError(f"sft_data.rows.visible_prefix is {self.visible_prefix}; it must lie between 0 and 1")


ROWS: dict[str, type] = {"packed": Packed, "padded": Padded}


@dataclass(frozen=True)
class SFTDataConfig:
    """Examples and how they become rows.

    validation_fraction: share of the examples that is held out, by a hash of the prompt; for `reasoning` as much again
        is kept for the harder test.
    on_bad_example: one with a missing role, an empty answer, or more than `row_length` tokens.
    row_length: tokens a packed row; no example may be longer.
    num_workers: loader processes a rank; 0: read in the training process.
    """

    source: SftSource = choice(SFT_SOURCES, "reasoning")
    template: RoleTokens | RoleTexts = choice(TEMPLATES, "role_tokens")
    rows: Packed | Padded = choice(ROWS, "packed")
    validation_fraction: float = 0.1
    on_bad_example: OnBadDocument = OnBadDocument.RAISE
    row_length: int = 128
    num_workers: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 0.5:
            raise UserError(
                f"sft_data.validation_fraction is {self.validation_fraction}; it must lie between 0 and 0.5"
            )
        for name, minimum in {"row_length": 8, "num_workers": 0}.items():
            if getattr(self, name) < minimum:
                raise UserError(f"sft_data.{name} is {getattr(self, name)}; it must be at least {minimum}")
