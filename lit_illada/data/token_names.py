"""Texts of the special tokens."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TokenNames:
    """The texts of the special tokens; None: the tokenizer has none of this kind (or its own config names it)."""

    mask_token: str | None = None
    eos_token: str | None = None
    system_token: str | None = None
    user_token: str | None = None
    assistant_token: str | None = None
    think_open_token: str | None = None
    think_close_token: str | None = None


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
MIN_VOCAB_SIZE = 256 + len(asdict(OUR_TOKENS))
