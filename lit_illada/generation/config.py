"""How text is generated: the sizes of the loop, the randomness, and the rule that commits tokens."""

from dataclasses import dataclass

from lit_illada.choice import choice
from lit_illada.errors import UserError
from lit_illada.generation.selection import COMMIT_RULES, CommitRule


@dataclass(frozen=True)
class GenerationConfig:
    """Block-by-block denoising.

    max_new_tokens: the budget; a last block is cut to fit it.
    block_length: tokens denoised together; blocks follow each other left to right.
    num_steps: denoising steps a block, hence forward passes; block_length of them commit one token each.
    temperature: of the Gumbel noise that draws each proposal; 0 proposes the most probable token.
    seed: of the generator that draws the noise.
    """

    max_new_tokens: int = 128
    block_length: int = 32
    num_steps: int = 32
    temperature: float = 0.0
    seed: int = 0
    commit_rule: CommitRule = choice(COMMIT_RULES, "low_confidence")

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "block_length", "num_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"generation.{name} is {getattr(self, name)}: it must be 1 or more")
        if self.block_length > self.max_new_tokens:
            raise UserError(
                f"generation.block_length is {self.block_length}: it must be at most generation.max_new_tokens, "
                f"which is {self.max_new_tokens}"
            )
        if self.num_steps > self.block_length:
            raise UserError(
                f"generation.num_steps is {self.num_steps}: it must be at most generation.block_length, "
                f"which is {self.block_length}, since every step commits a token"
            )
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"generation.temperature is {self.temperature}: it must be 0 or more")
