"""The chat template: writes conversations as tokens and reads responses back.

    <system> text <user> text <assistant> <think> reasoning </think> text <eos>

The response is the assistant's text with its reasoning and the final EOS; the mark of the assistant's role ends the
prompt. Marks are special tokens or texts, which may contain special tokens. Messages are tokenised separately from
them, so a prompt at generation equals the training prompt token for token, and no text can forge a mark that is a
special token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from lit_illada.data.sft.config import RoleTexts, RoleTokens
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError


class Role(StrEnum):
    """The speaker of a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str  # without the reasoning
    reasoning: str = ""  # of an assistant; empty where it has none


@dataclass(frozen=True)
class Response:
    """A model's response."""

    reasoning: str | None  # None where there is none, or it is not closed
    answer: str  # empty where the reasoning is not closed


class ChatTemplate:
    """Writes conversations as tokens and reads responses back."""

    def __init__(self, config: RoleTokens | RoleTexts, tokenizer: Tokenizer) -> None:
        """Raises UserError if the tokenizer has no token for a mark of the template."""
        self._tokenizer = tokenizer
        match config:
            case RoleTokens():
                self._texts = _token_marks(tokenizer)
                self._marks = {name: [getattr(tokenizer, f"{name}_token_id")] for name in _MARKS}
                self._message_end = []
            case RoleTexts():
                self._texts = {name: getattr(config, name) for name in _MARKS}
                self._marks = {name: tokenizer.encode_marks(text) for name, text in self._texts.items()}
                self._message_end = tokenizer.encode_marks(config.message_end)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """(prompt ids, response ids) of a conversation that ends with an assistant's message; EOS included."""
        return self.encode_batch([messages])[0]

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[list[int], list[int]]]:
        """`encode` for several conversations, with the tokenizer's threads."""
        texts = [text for messages in conversations for m in messages for text in (m.reasoning, m.content)]
        ids = iter(self._tokenizer.encode_batch(texts))
        return [
            self._split([(message.role, next(ids), next(ids)) for message in messages]) for messages in conversations
        ]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The prompt ids that a model continues: the conversation and the mark of the assistant's turn."""
        return self.encode([*messages, Message(Role.ASSISTANT, "")])[0]

    def read(self, response_ids: Sequence[int]) -> Response:
        """Splits a generated response, up to its first EOS, into reasoning and answer."""
        ids = list(response_ids)
        if self._tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(self._tokenizer.eos_token_id)]
        text = self._tokenizer.decode(ids)
        # reasoning may itself contain the closing mark as text, so the last one counts
        reasoning, is_closed, answer = text.rpartition(self._texts["think_close"])
        if is_closed:
            return Response(reasoning.removeprefix(self._texts["think_open"]), answer)
        return Response(None, "" if text.startswith(self._texts["think_open"]) else text)

    def _split(self, messages: list[tuple[Role, list[int], list[int]]]) -> tuple[list[int], list[int]]:
        *context, (role, reasoning, content) = messages
        assert role is Role.ASSISTANT, role
        prompt = [token for message in context for token in self._message(*message)]
        return prompt + self._marks[role], self._response(reasoning, content)

    def _message(self, role: Role, reasoning: list[int], content: list[int]) -> list[int]:
        if role is Role.ASSISTANT:
            return self._marks[role] + self._response(reasoning, content)
        return self._marks[role] + content + self._message_end

    def _response(self, reasoning: list[int], content: list[int]) -> list[int]:
        segment = self._marks["think_open"] + reasoning + self._marks["think_close"] if reasoning else []
        return [*segment, *content, self._tokenizer.eos_token_id]


_MARKS = ("system", "user", "assistant", "think_open", "think_close")


def _token_marks(tokenizer: Tokenizer) -> dict[str, str]:
    """The text of each mark's special token. Raises UserError for missing tokens."""
    marks = {name: getattr(tokenizer.names, f"{name}_token") for name in _MARKS}
    if missing := [f"{name}_token" for name, mark in marks.items() if mark is None]:
        raise UserError(
            f"the tokenizer defines no {', '.join(missing)}: set sft_data/template=role_texts to mark roles by text, "
            "or define these tokens in its tokenizer_config.json"
        )
    return marks
