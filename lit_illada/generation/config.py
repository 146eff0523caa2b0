"""How text is generated: the sizes of the loop, the randomness, the rules, and what is done against endless thought."""

from dataclasses import dataclass
from enum import StrEnum

from lit_illada.errors import UserError
from lit_illada.generation.cache import CACHES, CachePlan
from lit_illada.generation.commit_rules import COMMIT_RULES, CommitRule
from lit_illada.generation.commit_schedule import COMMIT_SCHEDULES, CommitSchedule, Even
from lit_illada.generation.loop_control.early_exit import EARLY_EXITS, EarlyExit
from lit_illada.generation.loop_control.loop_response import LOOP_RESPONSES, LoopResponse
from lit_illada.generation.loop_control.repetition import REPETITIONS, Repetition
from lit_illada.generation.loop_control.thinking_stop import THINKING_STOPS, ThinkingStop
from lit_illada.generation.remasking import REMASK_RULES, RemaskRule
from lit_illada.schema import choice, choice_name


class Canvas(StrEnum):
    """When the masked tokens come: `append` a block at a time until a stop token (iLLaDA), or the whole budget at once,
    `fixed`, denoised block by block to its end (LLaDA)."""

    append = "append"
    fixed = "fixed"


@dataclass(frozen=True)
class GenerationConfig:
    """Block-by-block denoising; of a causal model, token by token.

    max_new_tokens: the budget; a last block is cut to fit it, an only one too, and its steps with it.
    block_length: tokens denoised together; blocks follow each other left to right.
    num_steps: denoising steps a block, at most so many forward passes; block_length of them commit one token each.
        None: tokens_per_step says how many.
    tokens_per_step: tokens committed in a step; None: num_steps says how many.
    temperature: of the Gumbel noise that draws each proposal; 0 proposes the most probable token.
    top_p: proposals come from the fewest tokens that have this probability together.
    guidance_scale: of classifier-free guidance; 0 is none, more costs a second pass with the prompt masked.
    min_new_tokens: no stop token before so many new tokens.
    zero_stop_confidence: stop tokens have no confidence, so that they are committed last (LLaDA's
        `confidence_eos_eot_inf`).
    seed: of every draw.
    """

    canvas: Canvas = Canvas.append
    max_new_tokens: int = 128
    block_length: int = 32
    num_steps: int | None = 32
    tokens_per_step: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    guidance_scale: float = 0.0
    min_new_tokens: int = 0
    zero_stop_confidence: bool = False
    seed: int = 0
    commit_rule: CommitRule = choice(COMMIT_RULES, "low_confidence")
    # how many tokens each step commits, for the commit rules random, low_confidence, margin and entropy
    commit_schedule: CommitSchedule = choice(COMMIT_SCHEDULES, "even")
    remask: RemaskRule = choice(REMASK_RULES, "none")
    cache: CachePlan = choice(CACHES, "none")
    thinking_stop: ThinkingStop = choice(THINKING_STOPS, "none")
    repetition: Repetition = choice(REPETITIONS, "none")
    on_loop: LoopResponse = choice(LOOP_RESPONSES, "none")
    early_exit: EarlyExit = choice(EARLY_EXITS, "none")

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "block_length", "num_steps", "tokens_per_step"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"generation.{name} is {getattr(self, name)}: it must be 1 or more")
        self._check_steps()
        self._check_schedule()
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"generation.temperature is {self.temperature}: it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"generation.top_p is {self.top_p}: it must be above 0 and at most 1")
        if self.top_p < 1 and self.temperature == 0:
            raise UserError(
                f"generation.top_p is {self.top_p}, which means nothing at generation.temperature=0: raise the "
                "temperature, or set top_p to 1"
            )
        if not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"generation.guidance_scale is {self.guidance_scale}: it must be 0 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                f"generation.min_new_tokens is {self.min_new_tokens}: it must be 0 or more and at most "
                f"generation.max_new_tokens, which is {self.max_new_tokens}"
            )
        self.thinking_stop.check(self.max_new_tokens)

    def _check_schedule(self) -> None:
        if isinstance(self.commit_schedule, Even) or self.commit_rule.counts:
            return
        schedule = choice_name(COMMIT_SCHEDULES, self.commit_schedule)
        rule = choice_name(COMMIT_RULES, self.commit_rule)
        counting = ", ".join(name for name, cls in COMMIT_RULES.items() if cls.counts)
        raise UserError(
            f"generation.commit_schedule is {schedule!r}, but commit_rule {rule!r} decides itself how many tokens a "
            f"step commits: set generation/commit_schedule=even, or one of the commit rules {counting}"
        )

    def _check_steps(self) -> None:
        if (self.num_steps is None) == (self.tokens_per_step is None):
            raise UserError(
                f"generation.num_steps is {_shown(self.num_steps)} and generation.tokens_per_step is "
                f"{_shown(self.tokens_per_step)}: give one of them and set the other to null"
            )
        if self.num_steps is not None and self.num_steps > self.block_length and not self.remask.is_on:
            raise UserError(
                f"generation.num_steps is {self.num_steps}: it must be at most generation.block_length, "
                f"which is {self.block_length}, since every step commits a token"
            )
        if self.tokens_per_step is not None and self.tokens_per_step > self.block_length:
            raise UserError(
                f"generation.tokens_per_step is {self.tokens_per_step}: it must be at most generation.block_length, "
                f"which is {self.block_length}"
            )

    def steps_for(self, block_length: int) -> int:
        """Denoising steps of a block of this length; of a cut one at most its tokens, unless some are remasked."""
        if self.num_steps is not None:
            return self.num_steps if self.remask.is_on else min(self.num_steps, block_length)
        assert self.tokens_per_step is not None
        return -(-block_length // self.tokens_per_step)


def _shown(value: int | None) -> str:
    return "null" if value is None else str(value)
