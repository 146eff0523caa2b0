"""How is a task's item put to a model: as text to continue, or as a user's message to answer?"""

from dataclasses import dataclass, field

from lit_illada.errors import UserError


@dataclass(frozen=True)
class Plain:
    """Text that a base model continues.

    prompt, choice: `{question}` and `{choice}` stand for the item's fields. stop_texts: where a generated answer ends,
    besides the end-of-text token.
    """

    prompt: str = "Question: {question}\nAnswer:"
    choice: str = " {choice}"
    stop_texts: list[str] = field(default_factory=lambda: ["\nQuestion:"])

    def __post_init__(self) -> None:
        for name, field_name in (("prompt", "{question}"), ("choice", "{choice}")):
            if field_name not in getattr(self, name):
                raise UserError(f"score.wording.{name} is {getattr(self, name)!r}: it must hold {field_name}")
        if "" in self.stop_texts:
            raise UserError("score.wording.stop_texts holds an empty text, which would end every answer at once")


@dataclass(frozen=True)
class Chat(Plain):
    """A user's message, in the chat template that a fine-tuned model was trained on; the answer is the assistant's."""

    prompt: str = "{question}"
    choice: str = "{choice}"
    stop_texts: list[str] = field(default_factory=list)


WORDINGS: dict[str, type] = {"plain": Plain, "chat": Chat}
