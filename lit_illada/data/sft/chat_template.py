"""How is a conversation written in tokens, and how is an answer read back?

    <system> text <user> text <assistant> <think> reasoning </think> text <eos>

What an assistant says, with its reasoning and the EOS that ends it, is the response; the mark of its role is the end of
the prompt. The marks are the tokenizer's own tokens, or words; text is tokenised apart from them, so a prompt given to
a model is token for token the prompt it was trained on, and no text can forge a mark that is a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from lit_illada.data.sft.config import RoleTexts, RoleTokens
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Message:
    """content: without the reasoning, which only an assistant has."""

    role: Role
    content: str
    reasoning: str = ""


@dataclass(frozen=True)
class Response:
    """What a model answered. reasoning: None where it gave none, or did not end it (then `answer` is empty)."""

    reasoning: str | None
    answer: str


class ChatTemplate:
    def __init__(self, config: RoleTokens | RoleTexts, tokenizer: Tokenizer) -> None:
        """Raises UserError when the tokenizer lacks a token that the template needs."""
        self._tokenizer = tokenizer
        match config:
            case RoleTokens():
                self._texts = _own_marks(tokenizer)
                self._marks = {name: [getattr(tokenizer, f"{name}_token_id")] for name in _MARKS}
                self._message_end = []
            case RoleTexts():
                self._texts = {name: getattr(config, name) for name in _MARKS}
                self._marks = {name: tokenizer.encode(text) for name, text in self._texts.items()}
                self._message_end = tokenizer.encode(config.message_end)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """(prompt, response) of a conversation that ends with an assistant's message; EOS included."""
        return self.encode_batch([messages])[0]

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[list[int], list[int]]]:
        """`encode` of each, with the tokenizer's threads."""
        texts = [text for messages in conversations for m in messages for text in (m.reasoning, m.content)]
        ids = iter(self._tokenizer.encode_batch(texts))
        return [
            self._split([(message.role, next(ids), next(ids)) for message in messages]) for messages in conversations
        ]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """What a model continues: the conversation so far and the mark of the assistant's turn."""
        return self.encode([*messages, Message(Role.ASSISTANT, "")])[0]

    def read(self, response_ids: Sequence[int]) -> Response:
        """A generated response, up to its EOS, taken apart."""
        ids = list(response_ids)
        if self._tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(self._tokenizer.eos_token_id)]
        text = self._tokenizer.decode(ids)
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
        thought = self._marks["think_open"] + reasoning + self._marks["think_close"] if reasoning else []
        return [*thought, *content, self._tokenizer.eos_token_id]


_MARKS = ("system", "user", "assistant", "think_open", "think_close")


def _own_marks(tokenizer: Tokenizer) -> dict[str, str]:
    marks = {name: getattr(tokenizer.names, f"{name}_token") for name in _MARKS}
    if missing := [f"{name}_token" for name, mark in marks.items() if mark is None]:
        raise UserError(
            f"the tokenizer names no {', '.join(missing)}: set sft_data/template=role_texts to write roles in words, "
            "or name its tokens in the tokenizer_config.json beside it"
        )
    return marks
