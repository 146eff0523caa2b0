"""The tokenizer and its special tokens.

Folders have Hugging Face's format (tokenizer.json, tokenizer_config.json), so transformers' PreTrainedTokenizerFast
loads them too. No token id is hard-coded: they all come from here.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lit_illada.data.config import NO_NAMES, OUR_TOKENS, TokenNames
from lit_illada.data.tokenizer_regex import check_patterns
from lit_illada.errors import UserError
from lit_illada.runtime.files import MissingFileError, parse_json, read_text, write_atomically

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
# special tokens of other tools: not used here, but saved again so that a converted tokenizer stays complete
_FOREIGN_NAMES = ("bos_token", "pad_token", "unk_token", "sep_token", "cls_token")
_STANDARD_NAMES = ("mask_token", "eos_token")  # the others are under `extra_special_tokens` in the config


class Tokenizer:
    """Converts text to token ids and back.

    Text never becomes a special token: the characters `<|mask|>` in a corpus stay text. The ids of optional special
    tokens (system, user, assistant, think_open, think_close) are None where the tokenizer has no such token.

    sha256: hash of tokenizer.json and the names of the special tokens.
    """

    def __init__(self, tokenizer_json: str, names: TokenNames, origin: str = "the tokenizer") -> None:
        """origin: folder or URL, for messages. Raises UserError when a special token is missing."""
        check_patterns(parse_json(tokenizer_json, f"{origin}/{TOKENIZER_FILE}"), f"{origin}/{TOKENIZER_FILE}")
        try:
            self._backend = Backend.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{origin}: {TOKENIZER_FILE} cannot be read by the tokenizers library ({error})") from error
        self._json = tokenizer_json
        self._foreign_tokens: dict[str, str] = {}
        self.names = names
        for name in _STANDARD_NAMES:
            if getattr(names, name) is None:
                raise UserError(
                    f"{origin} defines no {name}: set data.tokenizer.token_names.{name} to one of its tokens"
                )
        ids = {name: self._special_id(name, token, origin) for name, token in asdict(names).items()}
        if ids["mask_token"] == ids["eos_token"]:
            raise UserError(
                f"{origin}: {names.mask_token!r} is both mask_token and eos_token: name another as one of them"
            )
        self.mask_token_id: int = ids["mask_token"]  # type: ignore[assignment]
        self.eos_token_id: int = ids["eos_token"]  # type: ignore[assignment]
        self.system_token_id = ids["system_token"]
        self.user_token_id = ids["user_token"]
        self.assistant_token_id = ids["assistant_token"]
        self.think_open_token_id = ids["think_open_token"]
        self.think_close_token_id = ids["think_close_token"]
        special = [token for token in asdict(names).values() if token is not None]
        # A tokenizer from elsewhere may have these as plain added tokens, which would match in text.
        self._backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        self._backend.encode_special_tokens = True  # the library's flag to encode their text as plain text
        self._backend.no_padding()
        self._backend.no_truncation()
        self.vocab_size: int = max(self._backend.get_vocab().values()) + 1
        content = json.dumps([tokenizer_json, asdict(names)])
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Trains a byte-level BPE; it is smaller than `vocab_size` where the texts have too few pairs."""
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(asdict(OUR_TOKENS).values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend.to_str(), OUR_TOKENS)

    @classmethod
    def load(cls, folder: str | Path, names: TokenNames = NO_NAMES) -> Self:
        """Loads a folder; `names` override its tokenizer_config.json. Raises UserError where it has no tokenizer."""
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise MissingFileError(f"no tokenizer at {folder}: {path} does not exist")
        config = path.with_name(CONFIG_FILE)
        config_json = read_text(config) if config.is_file() else "{}"
        return cls.from_files(read_text(path), config_json, str(folder), names)

    @classmethod
    def from_files(cls, tokenizer_json: str, config_json: str, origin: str, names: TokenNames = NO_NAMES) -> Self:
        """Builds a tokenizer from the contents of the two files."""
        config = parse_json(config_json, f"{origin}/{CONFIG_FILE}")
        extra = config.get("extra_special_tokens") or {}
        known = {**(extra if isinstance(extra, dict) else {}), **config}
        overrides = {name: token for name, token in asdict(names).items() if token is not None}
        config_file = f"{origin}/{CONFIG_FILE}"
        defined = {
            name: _token_text(known[name], f"{config_file}: {name}")
            for name in asdict(names)
            if known.get(name) is not None
        }
        tokenizer = cls(tokenizer_json, TokenNames(**{**defined, **overrides}), origin)
        tokenizer._foreign_tokens = {
            name: _token_text(config[name], f"{config_file}: {name}")
            for name in _FOREIGN_NAMES
            if config.get(name) is not None
        }
        return tokenizer

    def save(self, folder: str | Path) -> None:
        """Writes the two files; tokenizer.json is byte for byte the one that was loaded or trained."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            write_atomically(folder / name, content)

    def files(self) -> dict[str, str]:
        """The contents of tokenizer.json and tokenizer_config.json by file name."""
        named = {name: token for name, token in asdict(self.names).items() if token is not None}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{name: token for name, token in named.items() if name in _STANDARD_NAMES},
            **self._foreign_tokens,
            "extra_special_tokens": {name: token for name, token in named.items() if name not in _STANDARD_NAMES},
        }
        return {TOKENIZER_FILE: self._json, CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without added special tokens."""
        with _failures_named():
            return self._backend.encode(text, add_special_tokens=False).ids

    def encode_marks(self, text: str) -> list[int]:
        """Token ids of a chat template's own text, in which the characters of special tokens become these tokens."""
        self._backend.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self._backend.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, as by `encode`; multi-threaded unless TOKENIZERS_PARALLELISM is false."""
        with _failures_named():
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of the ids; incomplete UTF-8 sequences become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Text of each token, with the white space that it has behind the token before it.

        Their concatenation is the text of the ids, except for characters that consist of several tokens.
        """
        alone = self._backend.decode_batch([[index] for index in ids], skip_special_tokens=False)
        if self._is_byte_level:
            return alone
        # other decoders, such as SentencePiece's, drop the white space at the beginning of what they decode
        pairs = self._backend.decode_batch([list(pair) for pair in pairwise(ids)], skip_special_tokens=False)
        return alone[:1] + [text[len(first) :] for text, first in zip(pairs, alone, strict=False)]

    def decode_parts(self, parts: Sequence[Sequence[int]]) -> list[str]:
        """Texts of consecutive parts of one text, with the white space between them."""
        if self._is_byte_level:
            return [self.decode(ids) for ids in parts]
        texts = [self.decode(list(chain.from_iterable(parts[:num]))) for num in range(len(parts) + 1)]
        return [text[len(before) :] for before, text in pairwise(texts)]

    @cached_property
    def _is_byte_level(self) -> bool:
        return isinstance(self._backend.decoder, decoders.ByteLevel) or '"ByteLevel"' in self._json

    def bytes_per_token(self) -> NDArray[np.int64]:
        """(vocab_size,): bytes of UTF-8 text per id; 0 for special tokens and unused ids.

        Exact for byte-level tokenizers. For others, `▁` counts as a space and `<0xNN>` as one byte.
        """
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            sizes[index] = len(token) if self._is_byte_level else _utf8_size(token)
        for index, added in self._backend.get_added_tokens_decoder().items():
            sizes[index] = 0 if added.special else len(added.content.encode())
        return sizes

    @cached_property
    def wordless_ids(self) -> list[int]:
        """Ids of tokens without a letter: digits, punctuation, white space and special tokens."""
        texts = self._backend.decode_batch([[index] for index in range(self.vocab_size)], skip_special_tokens=True)
        return [index for index, text in enumerate(texts) if not any(map(_is_letter, text))]

    def _special_id(self, name: str, token: str | None, origin: str) -> int | None:
        if token is None:
            return None
        index = self._backend.token_to_id(token)
        if index is None:
            raise UserError(
                f"{origin} has no token {token!r}: set data.tokenizer.token_names.{name} to one of its tokens"
            )
        return index


@contextmanager
def _failures_named() -> Iterator[None]:
    """A pattern that exceeds the library's limit of attempts panics in Rust; that is no Exception in Python."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{TOKENIZER_FILE}: its pattern cannot split a text ({error}): use another tokenizer"
        ) from error


def _token_text(entry: object, where: str) -> str:
    """The text of a token in tokenizer_config.json: a string, or an object with the text under `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise UserError(f"{where} must be a string, or an object with one under 'content'")
    return text


def _is_letter(character: str) -> bool:
    """Combining marks count as letters, and so does U+FFFD, which is most likely a part of one."""
    return unicodedata.category(character)[0] in "LM" or character == "\ufffd"


def _utf8_size(token: str) -> int:
    return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode())
