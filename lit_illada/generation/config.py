"""Generation config: block and step sizes, sampling parameters, decoding rules and loop control."""

from dataclasses import dataclass, replace
from enum import StrEnum

from lit_illada.errors import UserError
from lit_illada.generation.cache import CACHES, CachePlan
from lit_illada.generation.commit_rules import COMMIT_RULES, COMMIT_SCHEDULES, CommitRule, CommitSchedule, Even
from lit_illada.generation.loop_control.early_exit import EARLY_EXITS, EarlyExit
from lit_illada.generation.loop_control.loop_response import LOOP_RESPONSES, LoopResponse, RemaskSpan
from lit_illada.generation.loop_control.repetition import REPETITIONS, Repetition
from lit_illada.generation.loop_control.thinking_stop import THINKING_STOPS, ThinkingStop
from lit_illada.generation.remasking import REMASK_RULES, RemaskRule
from lit_illada.schema import choice, choice_name


class Canvas(StrEnum):
    """Number of masked tokens that the model sees."""

    append = "append"
    """Blocks are appended one at a time until a stop token (iLLaDA)."""
    fixed = "fixed"
    """All `max_new_tokens` from the start, denoised block by block (LLaDA)."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of block-by-block denoising, or of token-by-token generation where the model is causal."""

    canvas: Canvas = Canvas.append
    """Whether blocks are appended one at a time or all masked tokens are there from the start."""
    max_new_tokens: int = 128
    """Tokens to generate per prompt at most; the last block, and its steps, are shortened to fit."""
    block_length: int = 32
    """Tokens denoised together; blocks follow each other from left to right. A model trained with
    objective.block_length uses that instead, with as many tokens per step."""
    num_steps: int | None = 32
    """Denoising steps (forward passes) per block at most; None: computed from tokens_per_step."""
    tokens_per_step: int | None = None
    """Tokens committed per step; None: computed from num_steps."""
    temperature: float = 0.0
    """Temperature of the Gumbel noise that samples proposals; 0: the most probable token."""
    top_p: float = 1.0
    """Proposals are sampled from the smallest set of tokens with at least this probability; 1: from all."""
    guidance_scale: float = 0.0
    """Strength of classifier-free guidance, which needs a second forward pass per step; 0: off."""
    min_new_tokens: int = 0
    """Number of new tokens before which no stop token is allowed."""
    zero_stop_confidence: bool = False
    """Whether stop tokens get confidence 0, so that they are committed last (LLaDA's confidence_eos_eot_inf)."""
    seed: int = 0
    """Seed of the sampling noise."""
    commit_rule: CommitRule = choice(COMMIT_RULES, "low_confidence")
    """Which proposals become final in a step."""
    commit_schedule: CommitSchedule = choice(COMMIT_SCHEDULES, "even")
    """Number of tokens that each step commits, for the commit rules random, low_confidence, margin and entropy."""
    remask: RemaskRule = choice(REMASK_RULES, "none")
    """Which committed tokens are masked again."""
    cache: CachePlan = choice(CACHES, "none")
    """Which columns reuse cached keys and values."""
    thinking_stop: ThinkingStop = choice(THINKING_STOPS, "none")
    """How long reasoning segments are closed."""
    repetition: Repetition = choice(REPETITIONS, "none")
    """Penalty on repeated tokens."""
    on_loop: LoopResponse = choice(LOOP_RESPONSES, "none")
    """Response to exact loops detected during generation."""
    early_exit: EarlyExit = choice(EARLY_EXITS, "none")
    """Closes a reasoning segment once the answer has settled."""

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
                f"generation.top_p is {self.top_p}, which has no effect at generation.temperature=0: raise the "
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
        counting = ", ".join(name for name, cls in COMMIT_RULES.items() if getattr(cls, "counts", False))
        raise UserError(
            f"generation.commit_schedule is {schedule!r}, but commit_rule {rule!r} determines the number of tokens per "
            f"step itself: set generation/commit_schedule=even, or one of the commit rules {counting}"
        )

    def _check_steps(self) -> None:
        if (self.num_steps is None) == (self.tokens_per_step is None):
            raise UserError(
                f"generation.num_steps is {_as_yaml(self.num_steps)} and generation.tokens_per_step is "
                f"{_as_yaml(self.tokens_per_step)}: give one of them and set the other to null"
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

    @property
    def remasking(self) -> list[str]:
        """Names of the settings that may mask committed tokens again, so that those are committed twice."""
        is_remasking = {
            "remask": self.remask.is_on,
            "thinking_stop": self.thinking_stop.is_on,  # tokens behind the end of the reasoning segment
            "early_exit": self.early_exit.is_on,
            "on_loop": isinstance(self.on_loop, RemaskSpan),
        }
        return [name for name, is_on in is_remasking.items() if is_on]

    def with_block_length(self, block_length: int) -> "GenerationConfig":
        """The config with blocks of this length, and as many tokens per step as before."""
        if block_length == self.block_length:
            return self
        num_steps = self.num_steps and max(1, round(self.num_steps * block_length / self.block_length))
        tokens_per_step = self.tokens_per_step and min(self.tokens_per_step, block_length)
        return replace(self, block_length=block_length, num_steps=num_steps, tokens_per_step=tokens_per_step)

    def steps_for(self, block_length: int) -> int:
        """Denoising steps of a block of this length; without remasking at most one per token."""
        if self.num_steps is not None:
            return self.num_steps if self.remask.is_on else min(self.num_steps, block_length)
        assert self.tokens_per_step is not None
        return -(-block_length // self.tokens_per_step)


def _as_yaml(value: int | None) -> str:
    return "null" if value is None else str(value)
