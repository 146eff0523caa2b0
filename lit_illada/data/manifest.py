"""What does a prepared data set hold, and with which settings was it made?

manifest.json is written last and at once, so a folder with a manifest is a finished data set.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from lit_illada.choice import choice_name
from lit_illada.data.config import SOURCES, TOKENIZERS, DataConfig
from lit_illada.errors import UserError

FORMAT = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class ShardRecord:
    """One shard. text_bytes: UTF-8 bytes of its documents. file_bytes, sha256: of the tar."""

    file: str
    documents: int
    tokens: int
    text_bytes: int
    file_bytes: int
    sha256: str

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Self:
        return cls(**{f.name: tree[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Split:
    """The shards of `train` or `validation`, in the order of the corpus."""

    shards: list[ShardRecord]

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(shard.text_bytes for shard in self.shards)

    def to_tree(self) -> dict[str, Any]:
        totals = {"documents": self.documents, "tokens": self.tokens, "text_bytes": self.text_bytes}
        return {**totals, "shards": [asdict(shard) for shard in self.shards]}


@dataclass(frozen=True)
class Manifest:
    """A finished data set.

    dtype: of the token arrays. tokenizer_folder: beside the shards. duplicates, empty: documents left out for having
    been seen already, or having no text.
    bad_documents: how many could not be read; bad_examples: the messages of the first of them.
    settings: what made the data set, flat: `source.paths` and so on.
    """

    dtype: str
    vocab_size: int
    tokenizer_sha256: str
    train: Split
    validation: Split
    duplicates: int
    empty: int
    bad_documents: int
    bad_examples: list[str]
    settings: dict[str, Any]
    tokenizer_folder: str = TOKENIZER_FOLDER

    def split(self, name: str) -> Split:
        assert name in (TRAIN, VALIDATION), name
        return self.train if name == TRAIN else self.validation

    @property
    def fingerprint(self) -> str:
        """Names the content: the tokenizer and every shard. Two data sets with one fingerprint are the same."""
        hashes = [shard.sha256 for split in (self.train, self.validation) for shard in split.shards]
        return hashlib.sha256(" ".join([self.tokenizer_sha256, *hashes]).encode()).hexdigest()

    def to_json(self) -> str:
        splits = {TRAIN: self.train.to_tree(), VALIDATION: self.validation.to_tree()}
        tree = {"format": FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)}, **splits}
        return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str) -> Self:
        """Raises UserError for anything but a manifest of this format; origin: where the text came from."""
        try:
            tree = json.loads(text)
            if tree["format"] != FORMAT:
                raise UserError(
                    f"{origin} has format {tree['format']}; this version reads format {FORMAT}: prepare it again"
                )
            tree.setdefault("tokenizer_folder", TOKENIZER_FOLDER)  # which older manifests do not name
            values = {f.name: tree[f.name] for f in fields(cls)}
            for name in (TRAIN, VALIDATION):
                values[name] = Split([ShardRecord.from_tree(shard) for shard in tree[name]["shards"]])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{origin} is not a manifest ({error!r}): prepare the data set again") from error
        return cls(**values)


def preparation_settings(config: DataConfig) -> dict[str, Any]:
    """The settings that decide what a data set holds, flat and as JSON knows them."""
    return {
        "source": choice_name(SOURCES, config.source),
        **{f"source.{key}": value for key, value in asdict(config.source).items()},
        "tokenizer": choice_name(TOKENIZERS, config.tokenizer),
        **{f"tokenizer.{key}": value for key, value in asdict(config.tokenizer).items()},
        "validation_fraction": config.validation_fraction,
        "shard_tokens": config.shard_tokens,
        "on_bad_document": config.on_bad_document.value,
    }


def require_same_settings(folder: str | Path, seen: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises UserError that names every setting of a finished data set which is not as asked."""
    names = [name for name in {**seen, **asked} if seen.get(name) != asked.get(name)]
    if names:
        differing = "; ".join(f"data.{name} is {seen.get(name)!r} there, {asked.get(name)!r} asked" for name in names)
        raise UserError(
            f"{folder} holds a data set of other settings ({differing}): choose another data.dir, "
            "or replace it (lit-illada data prepare --overwrite)"
        )


def is_url(location: str) -> bool:
    """Whether webdataset would fetch it rather than open it: `https://...`, `pipe:cat ...`."""
    return location.startswith("pipe:") or "://" in location
