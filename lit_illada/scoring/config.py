"""How texts are scored: the rule, its draws, the windows of a long text, and the wording of a task's items."""

from dataclasses import dataclass
from enum import StrEnum

from lit_illada.errors import UserError
from lit_illada.schema import choice
from lit_illada.scoring.wording import WORDINGS, Chat, Plain


class ScoreRule(StrEnum):
    """What a score is. All are sums over the scored tokens in nats, higher is better.

    The first four are a diffusion model's, `exact` is a causal model's. `all`: every rule that the model has;
    for texts and lm-eval, which take one, its first: bound or exact.
    """

    ALL = "all"
    BOUND = "bound"  # Monte-Carlo bound on the log-likelihood (LLaDA)
    LEFT_TO_RIGHT = "left_to_right"  # chain rule, tokens revealed in reading order
    CONFIDENCE_ORDER = "confidence_order"  # chain rule, where the model is surest is revealed first
    CONFIDENCE = "confidence"  # iLLaDA's: the true token that is the most probable is revealed first; no likelihood
    EXACT = "exact"  # teacher forcing


DIFFUSION_RULES = (ScoreRule.BOUND, ScoreRule.LEFT_TO_RIGHT, ScoreRule.CONFIDENCE_ORDER, ScoreRule.CONFIDENCE)


@dataclass(frozen=True)
class ScoringConfig:
    """Scores of answers given prompts, and of whole texts.

    num_draws: masks an answer in the bound. seed: of these masks.
    batch_tokens: tokens of one forward pass, padding included; the choices of one question are never split.
        confidence_order holds the logits of all that are masked among them: lower it where memory is short.
    window_length: tokens of a long text seen at once, None: as many as the model has positions.
    context_length: how many of them are the end of the window before, visible and not scored again.
    limit: the first items of a task only, None: all.
    batch_prompts: how many answers are generated together.
    """

    rule: ScoreRule = ScoreRule.ALL  # how an answer is scored
    num_draws: int = 128
    seed: int = 0
    batch_tokens: int = 16384
    window_length: int | None = None
    context_length: int = 1
    limit: int | None = None
    batch_prompts: int = 32
    wording: Plain | Chat = choice(WORDINGS, "plain")  # how a task's item is put to the model

    def __post_init__(self) -> None:
        least = {"num_draws": 2, "batch_tokens": 1, "window_length": 1, "context_length": 0}
        least |= {"limit": 1, "batch_prompts": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UserError(f"score.{name} is {value}: it must be {lowest} or more")

    def rules(self, is_causal: bool) -> tuple[ScoreRule, ...]:
        """The rules to score by. Raises UserError for a rule that a model of this kind does not have."""
        has = (ScoreRule.EXACT,) if is_causal else DIFFUSION_RULES
        if self.rule is ScoreRule.ALL:
            return has
        if self.rule not in has:
            kind = "causal" if is_causal else "bidirectional"
            raise UserError(f"score.rule is {self.rule}, but the model is {kind}: use {', '.join(has)} or all")
        return (self.rule,)
