"""The scorer: one interface for every scoring rule, which also counts forward passes."""

from collections.abc import Callable, Sequence

from lit_illada.data.sft.chat_template import ChatTemplate, Message, Role
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.model.transformer import Transformer
from lit_illada.scoring.candidates import Candidate, Encode, Score, encode_pair, rolling_windows
from lit_illada.scoring.conditional import bound_scores, exact_scores, num_masks
from lit_illada.scoring.confidence import chain_rule_scores, greedy_answers
from lit_illada.scoring.config import Chat, ScoreRule, ScoringConfig
from lit_illada.scoring.mask_grid import MaskGrid
from lit_illada.scoring.model import ScoringModel

OnWork = Callable[[int], None]
"""Called with the amount of work, in units of `Scorer.work`, done since the last call."""


class Scorer:
    """Scores candidates by any rule that the model supports. `num_forwards` counts its forward passes."""

    def __init__(self, model: ScoringModel, encode: Encode, config: ScoringConfig, chat: Encode | None = None) -> None:
        """encode: text to token ids. chat: a user's message to the ids that the model continues; None: prompts are
        plain text."""
        self.model = model
        self.config = config
        self.encode = encode
        self._chat = chat
        self.num_forwards = 0
        self.rules = config.rules(model.is_causal)
        # a block of one token has only one mask
        num_draws = 1 if model.block_length == 1 else config.num_draws
        self._grid = MaskGrid(num_draws, config.seed, model.block_length)

    def answer(self, prompt: str, answer: str) -> Candidate:
        """The candidate of two texts. Raises UserError for an empty answer and for texts that exceed the model."""
        candidate = Candidate.answering(*self.encode_pair(prompt, answer))
        if not candidate.answer_ids:
            raise UserError("an answer is empty: give it a text, or remove the item")
        if len(candidate) > self.model.max_length:
            raise UserError(
                f"prompt and answer have {len(candidate)} tokens, more than the {self.model.max_length} positions of "
                "the model: shorten them"
            )
        return candidate

    def encode_pair(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of its answer; plain text is tokenized as a whole."""
        if self._chat is None:
            return encode_pair(self.encode, prompt, answer)
        return self._chat(prompt), self.encode(answer)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids that the model continues."""
        return self.encode(prompt) if self._chat is None else self._chat(prompt)

    def positions_after(self, prompt: str) -> int:
        """Number of tokens that fit after a prompt; 0 where the prompt itself is too long."""
        return max(0, self.model.max_length - len(self.encode_prompt(prompt)))

    def windows(self, text: str) -> list[Candidate]:
        """The windows of a text. Raises UserError for an empty text and for windows that exceed the model."""
        ids = self.encode(text)
        if not ids:
            raise UserError("the text is empty: leave its file out")
        max_length, window_length = self.model.max_length, self.config.window_length
        if window_length is not None and window_length > max_length:
            raise UserError(
                f"score.window_length is {window_length}, more than the {max_length} positions of the model"
            )
        return rolling_windows(ids, window_length or max_length, self.config.context_length)

    def scores(
        self, groups: Sequence[Sequence[Candidate]], rule: ScoreRule, on_work: OnWork = lambda amount: None
    ) -> list[list[Score]]:
        """Scores by group. The candidates of a group, such as a question's choices, share their forward passes."""
        flat = [candidate for group in groups for candidate in group]
        batch_tokens, on_forward = self.config.batch_tokens, self._counting(on_work)
        match rule:
            case ScoreRule.BOUND:
                scores = iter(bound_scores(self.model, flat, self._grid, batch_tokens, on_forward))
            case ScoreRule.EXACT:
                scores = iter(exact_scores(self.model, flat, batch_tokens, on_forward)[0])
            case _:
                return chain_rule_scores(self.model, groups, rule, batch_tokens, on_forward)
        return [[next(scores) for _ in group] for group in groups]

    def greedy(self, candidates: Sequence[Candidate]) -> list[bool]:
        """Whether each answer is the model's greedy continuation of its prompt."""
        batch_tokens, on_forward = self.config.batch_tokens, self._counting(lambda amount: None)
        if self.model.is_causal:
            return exact_scores(self.model, candidates, batch_tokens, on_forward)[1]
        return greedy_answers(self.model, candidates, batch_tokens, on_forward)

    def work(self, groups: Sequence[Sequence[Candidate]], rule: ScoreRule) -> int:
        """Tokens that `rule` passes through the model, without padding."""
        flat = [candidate for group in groups for candidate in group]
        match rule:
            case ScoreRule.EXACT:
                return sum(map(len, flat))
            case ScoreRule.BOUND:
                return sum(len(one) * num_masks(len(one.answer_ids), self._grid) for one in flat)
        return sum(len(one) * len(one.answer_ids) for one in flat)

    def _counting(self, on_work: OnWork) -> OnWork:
        def on_forward(num_tokens: int) -> None:
            self.num_forwards += 1
            on_work(num_tokens)

        return on_forward


def build_scorer(
    model: Transformer, tokenizer: Tokenizer, config: ScoringConfig, template: ChatTemplate | None = None
) -> Scorer:
    """The scorer of a model. template: formats prompts where `config.wording` is a chat; unused otherwise."""

    def encode_message(text: str) -> list[int]:
        assert template is not None
        return template.encode_prompt([Message(Role.USER, text)])

    scored = ScoringModel(
        score=model,
        logits=model,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_length=model.config.max_position_embeddings,
        is_causal=model.config.is_causal,
        device=model.lm_head_weight.device,
        block_length=model.config.block_length,
    )
    return Scorer(scored, tokenizer.encode, config, encode_message if isinstance(config.wording, Chat) else None)
