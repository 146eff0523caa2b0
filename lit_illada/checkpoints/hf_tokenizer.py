"""Tokenizer files of Hugging Face checkpoints: read with mask and end tokens named, and written for export."""

import json
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lit_illada.checkpoints.hf import CONFIG_FILE, HfCheckpoint
from lit_illada.checkpoints.hf_layouts import HfLayout, Json
from lit_illada.data.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from lit_illada.data.tokenizer import TOKENIZER_FILE
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.runtime.files import read_json, read_text, write_atomically, write_json

_PLAIN_MODULE, _PLAIN_CLASS = "tokenization_plain", "PlainTokenizer"
_PLAIN_CODE = f"""from transformers import PreTrainedTokenizerFast


class {_PLAIN_CLASS}(PreTrainedTokenizerFast):
    pass
"""


class Published(Protocol):
    """A checkpoint in a published format."""

    @property
    def origin(self) -> Path:
        """Its folder or file."""

    @property
    def layout(self) -> HfLayout: ...

    @property
    def content(self) -> Json:
        """Its config.json."""

    @property
    def config(self) -> ModelConfig: ...


def tokenizer_files(checkpoint: HfCheckpoint, mask_token: str | None, eos_token: str | None) -> dict[str, str]:
    """The contents of tokenizer.json and tokenizer_config.json by file name, with mask and end tokens named.

    tokenizer.json changes only where the given mask token has to be added. mask_token, eos_token: given by the user,
    None: as the checkpoint names them. Raises UserError if a token is unknown or named differently by two files.
    """
    folder = checkpoint.folder
    path, config_path = folder / TOKENIZER_FILE, folder / TOKENIZER_CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no {TOKENIZER_FILE}, the only tokenizer format that is supported")
    config = read_json(config_path) if config_path.is_file() else {}
    text = read_text(path)
    try:
        Backend.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not readable by the tokenizers library ({error})") from error
    return with_named_tokens(checkpoint, text, config, mask_token, eos_token)


def with_named_tokens(
    checkpoint: Published, text: str, config: dict[str, Any], mask_token: str | None, eos_token: str | None
) -> dict[str, str]:
    """`tokenizer_files` from the contents of the two files. text: tokenizer.json. config: tokenizer_config.json."""
    origin, backend = checkpoint.origin, Backend.from_str(text)
    mask = _named(checkpoint, backend, config, "mask_token", mask_token)
    if mask is None and (known := checkpoint.layout.mask_token) and backend.token_to_id(known) is not None:
        mask = known
    if mask is None:
        raise UserError(
            f"{origin}: no file names the mask token: give --mask-token; '<|mask|>' adds one in an unused row of the "
            "embedding"
        )
    if backend.token_to_id(mask) is None:
        text = _with_token(backend, mask, checkpoint.config.known_vocab_size, origin)
    eos = _named(checkpoint, backend, config, "eos_token", eos_token)
    if eos is None:
        raise UserError(f"{origin}: no file names the end-of-text token: give --eos-token")
    if eos_token and backend.token_to_id(eos_token) is None:
        raise UserError(f"{origin} has no token {eos_token!r}: give one of its tokens by --eos-token")
    config |= {"mask_token": mask, "eos_token": eos}
    for kind in ("bos_token", "pad_token"):  # config.json may be the only file that names them
        if config.get(kind) is None and (token := _named(checkpoint, backend, config, kind, None)) is not None:
            config[kind] = token
    if (config.get("auto_map") or {}) == {"AutoTokenizer": [None, f"{_PLAIN_MODULE}.{_PLAIN_CLASS}"]}:
        del config["auto_map"]  # written by our own export; its code is not copied
    return {TOKENIZER_FILE: text, TOKENIZER_CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}


def _named(
    checkpoint: Published, backend: Backend, tokenizer_config: dict[str, object], kind: str, given: str | None
) -> str | None:
    """The token as named by the user, the tokenizer config or the model config, in this order; for the mask token they
    must agree."""
    entry = tokenizer_config.get(kind)
    text = given or (entry.get("content") if isinstance(entry, dict) else entry)
    index = checkpoint.content.get(f"{kind}_id")
    index = index[0] if isinstance(index, list) and index else index
    by_model = backend.id_to_token(index) if isinstance(index, int) else None
    if kind == "mask_token" and isinstance(index, int) and by_model is None:
        raise UserError(
            f"{checkpoint.origin}: {CONFIG_FILE} names mask token {index}, which the tokenizer does not have"
        )
    if kind == "mask_token" and text is not None and by_model not in (None, text):
        raise UserError(
            f"{checkpoint.origin}: the mask token is {text!r} in the {'command' if given else 'tokenizer'} and "
            f"{by_model!r} ({index}) in {CONFIG_FILE}"
        )
    return str(text) if text is not None else by_model


def _with_token(backend: Backend, token: str, rows: int, origin: Path) -> str:
    """tokenizer.json with the token added, which needs an unused row of the embedding of `rows` rows."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    index = backend.token_to_id(token)
    if index is None or index >= rows:
        raise UserError(
            f"{origin}: the embedding of {rows} rows has no unused one for {token!r}: give a reserved token"
        )
    return backend.to_str()


def bos_and_pad_ids(folder: Path) -> dict[str, int | None]:
    """Ids of the BOS and padding tokens that the tokenizer of a folder names, None where it names none."""
    config = read_json(folder / TOKENIZER_CONFIG_FILE)
    backend = Backend.from_file(str(folder / TOKENIZER_FILE))
    ids = {}
    for kind in ("bos_token", "pad_token"):
        entry = config.get(kind)
        text = entry.get("content") if isinstance(entry, dict) else entry
        ids[f"{kind}_id"] = backend.token_to_id(text) if isinstance(text, str) else None
    return ids


def use_plain_tokenizer(folder: Path) -> None:
    """Makes transformers load tokenizer.json unchanged for a model of type qwen2.

    For that type transformers 5 ignores a generic `tokenizer_class` and pre-tokenizes as Qwen2 does, which gives other
    ids. It respects `auto_map`, which names a class in the folder and needs `trust_remote_code`.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    config = read_json(path)
    if config.get("tokenizer_class") not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return
    write_json(path, {**config, "auto_map": {"AutoTokenizer": [None, f"{_PLAIN_MODULE}.{_PLAIN_CLASS}"]}})
    write_atomically(folder / f"{_PLAIN_MODULE}.py", _PLAIN_CODE)
