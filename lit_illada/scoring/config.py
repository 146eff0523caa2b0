"""Settings of scoring: the rule, the masks of the bound, the windows of a long text, and the wording of items."""

from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.errors import UserError
from lit_illada.schema import choice


class ScoreRule(StrEnum):
    """How an answer is scored: a sum over its tokens in nats, higher is better.

    `exact` is for causal models, the others for diffusion models. `all` stands for every rule of the model; texts and
    lm-eval tasks take one rule, the first of these: bound or exact.
    """

    ALL = "all"  # every rule that the model supports
    BOUND = "bound"  # Monte-Carlo bound on the log-likelihood (LLaDA)
    LEFT_TO_RIGHT = "left_to_right"  # chain rule, tokens revealed in reading order
    CONFIDENCE_ORDER = "confidence_order"  # chain rule, the most confident position is revealed first
    CONFIDENCE = "confidence"  # iLLaDA: the most probable true token is revealed first; not a likelihood
    EXACT = "exact"  # teacher forcing


DIFFUSION_RULES = (ScoreRule.BOUND, ScoreRule.LEFT_TO_RIGHT, ScoreRule.CONFIDENCE_ORDER, ScoreRule.CONFIDENCE)


@dataclass(frozen=True)
class Plain:
    """An item as text that a base model continues."""

    prompt: str = "Question: {question}\nAnswer:"  # {question} stands for the item's question
    choice: str = " {choice}"  # {choice} stands for the text of one choice
    stop_texts: list[str] = field(default_factory=lambda: ["\nQuestion:"])
    """Texts that end a generated answer, besides the end-of-text token."""

    def __post_init__(self) -> None:
        for name, placeholder in (("prompt", "{question}"), ("choice", "{choice}")):
            if placeholder not in getattr(self, name):
                raise UserError(f"score.wording.{name} is {getattr(self, name)!r}; it must contain {placeholder}")
        if "" in self.stop_texts:
            raise UserError("score.wording.stop_texts contains an empty text, which would end every answer at once")


@dataclass(frozen=True)
class Chat(Plain):
    """An item as a user's message in the model's chat template; the answer is the assistant's message."""

    prompt: str = "{question}"
    choice: str = "{choice}"
    stop_texts: list[str] = field(default_factory=list)


WORDINGS: dict[str, type] = {"plain": Plain, "chat": Chat}


@dataclass(frozen=True)
class ScoringConfig:
    """Settings of scores, of answers given prompts and of whole texts."""

    rule: ScoreRule = ScoreRule.ALL  # how an answer is scored
    num_draws: int = 128  # masks per answer, rule bound only
    seed: int = 0  # of the masks
    batch_tokens: int = 16384
    """Tokens of one forward pass, padding included; a question's choices share one even if they exceed it. Lower it
    where memory is short: confidence_order stores the logits of all masked tokens of a pass."""
    window_length: int | None = None  # tokens of one window of a long text; None: as many as the model has positions
    context_length: int = 1  # tokens of a window that repeat the end of the previous one and are not scored again
    limit: int | None = None  # read only this many items of each task file; None: all
    batch_prompts: int = 32  # answers generated together
    wording: Plain | Chat = choice(WORDINGS, "plain")  # how an item is put to the model

    def __post_init__(self) -> None:
        smallest = {"num_draws": 2, "batch_tokens": 1, "window_length": 1, "context_length": 0}
        smallest |= {"limit": 1, "batch_prompts": 1}
        for name, allowed in smallest.items():
            value = getattr(self, name)
            if value is not None and value < allowed:
                raise UserError(f"score.{name} is {value}; it must be {allowed} or more")

    def rules(self, is_causal: bool) -> tuple[ScoreRule, ...]:
        """The rules to score by. Raises UserError for a rule that models of this kind do not support."""
        supported = (ScoreRule.EXACT,) if is_causal else DIFFUSION_RULES
        if self.rule is ScoreRule.ALL:
            return supported
        if self.rule not in supported:
            kind = "causal" if is_causal else "bidirectional"
            raise UserError(f"score.rule is {self.rule}, but the model is {kind}: use {', '.join(supported)} or all")
        return (self.rule,)
