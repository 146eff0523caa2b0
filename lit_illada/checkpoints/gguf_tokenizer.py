"""Tokenizers of GGUF files: byte-level BPE from tokens and merges."""

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lit_illada.errors import UserError, unknown


class _Kind(IntEnum):
    """Values of tokenizer.ggml.token_type that differ from ordinary tokens."""

    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


# what precedes the byte-level step, by tokenizer.ggml.pre; both patterns split words, digits and line breaks
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {"qwen2": _WORDS.format(digits=r"\p{N}"), "llama-bpe": _WORDS.format(digits=r"\p{N}{1,3}")}
_SINGLE_DIGITS = {"gpt-2": False, "smollm": True}


def tokenizer_of(fields: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """The contents of tokenizer.json and tokenizer_config.json, with the chat template.

    fields: the file's metadata. Raises UserError for a kind of tokenizer that is not supported.
    """
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise UserError(f"{path}: tokenizer.ggml.model is {model!r}, but only 'gpt2', byte-level BPE, is supported")
    if pre not in (allowed := [*_SINGLE_DIGITS, *_PATTERNS]):
        raise unknown(f"tokenizer.ggml.pre in {path}:", pre, allowed)
    tokens, kinds = _tokens(fields, path)
    merges: list[Any] = [tuple(str(merge).split(" ")) for merge in _list(fields, "tokenizer.ggml.merges", [], path)]
    try:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        backend = Backend(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: the tokenizers library refuses its tokens and merges ({error})") from error
    steps: list[Any] = []
    if pre in _PATTERNS:
        steps.append(pre_tokenizers.Split(Regex(_PATTERNS[pre]), "isolated"))
    elif _SINGLE_DIGITS[pre]:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _PATTERNS))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    for kind, is_special in ((_Kind.CONTROL, True), (_Kind.USER_DEFINED, False)):
        named = [token for token, its in zip(tokens, kinds, strict=True) if its == kind]
        backend.add_tokens([AddedToken(token, special=is_special, normalized=False) for token in named])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if isinstance(template := fields.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    return backend.to_str(), config


def _tokens(fields: Mapping[str, Any], path: Path) -> tuple[list[str], list[int]]:
    """Tokens by id and their kinds, without the unused ones at the end, whose rows of the embedding are spare."""
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{path}: no field tokenizer.ggml.tokens")
    kinds = _list(fields, "tokenizer.ggml.token_type", [1] * len(tokens), path)
    if len(kinds) != len(tokens):
        raise UserError(f"{path}: {len(tokens)} tokens, but tokenizer.ggml.token_type has {len(kinds)} values")
    while tokens and kinds[-1] == _Kind.UNUSED:
        tokens, kinds = tokens[:-1], kinds[:-1]
    if len(set(tokens)) != len(tokens):
        raise UserError(f"{path}: {len(tokens) - len(set(tokens))} of its {len(tokens)} tokens occur twice")
    return tokens, kinds


def _list(fields: Mapping[str, Any], key: str, absent: list[Any], path: Path) -> list[Any]:
    value = fields.get(key, absent)
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} is {str(value)[:80]}, not a list")
    return value
