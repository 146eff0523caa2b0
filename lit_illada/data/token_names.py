"""Texts of the special tokens."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TokenNames:
    """The texts of the special tokens; None: the tokenizer has no such token, or its own config defines it."""

    mask_token: str | None = None
    """Stands for a masked token."""
    eos_token: str | None = None
    """Ends documents and responses."""
    system_token: str | None = None
    """Starts a system message."""
    user_token: str | None = None
    """Starts a user message."""
    assistant_token: str | None = None
    """Starts an assistant message."""
    think_open_token: str | None = None
    """Opens a reasoning segment."""
    think_close_token: str | None = None
    """Closes a reasoning segment."""


OUR_TOKENS = TokenNames(
    mask_token="<|mask|>",
    eos_token="<|eos|>",
    system_token="<|system|>",
    user_token="<|user|>",
    assistant_token="<|assistant|>",
    think_open_token="<|think|>",
    think_close_token="<|/think|>",
)
NO_NAMES = TokenNames()
MIN_VOCAB_SIZE = 256 + len(asdict(OUR_TOKENS))  # every byte and the special tokens
