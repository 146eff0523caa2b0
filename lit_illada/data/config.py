"""What data does a run read, how is it prepared, and how is it packed into rows?"""

from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.data.shortening import SHORTENINGS, NoShortening, SplitRow, TruncateRow
from lit_illada.data.token_names import MIN_VOCAB_SIZE, TokenNames
from lit_illada.errors import UserError
from lit_illada.schema import choice


@dataclass(frozen=True)
class StdlibSource:
    """The source and documentation text of the running Python's standard library: nothing is downloaded.

    Its files are cut into sections of about 900 characters, which are the documents; near-duplicates are left out.
    """


@dataclass(frozen=True)
class TextSource:
    """Text files, also .gz and .zst.

    paths: files, globs, or folders (read recursively).
    document_separator: a line that holds only this ends a document; None: a file is a document.
    """

    paths: list[str] = field(default_factory=list)
    document_separator: str | None = None


@dataclass(frozen=True)
class JsonlSource:
    """One JSON object a line, also .gz and .zst.

    paths: files, globs, or folders (their *.jsonl files, recursively). text_field: the key that holds the text.
    """

    paths: list[str] = field(default_factory=list)
    text_field: str = "text"


@dataclass(frozen=True)
class HuggingFaceSource:
    """A data set of the Hugging Face hub, streamed (needs the extra `hf`).

    path, subset, split: as `datasets.load_dataset` takes them (`subset` is its `name`).
    max_documents: how many to take; None: all.
    """

    path: str = "HuggingFaceFW/fineweb-edu"
    subset: str | None = "sample-10BT"
    split: str = "train"
    text_field: str = "text"
    max_documents: int | None = None


@dataclass(frozen=True)
class PreparedSource:
    """No source: `dir` holds a prepared data set already, for instance at a URL."""


Source = StdlibSource | TextSource | JsonlSource | HuggingFaceSource | PreparedSource
SOURCES: dict[str, type] = {
    "stdlib": StdlibSource,
    "text": TextSource,
    "jsonl": JsonlSource,
    "huggingface": HuggingFaceSource,
    "prepared": PreparedSource,
}


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a byte-level BPE on a sample of the training split.

    sample_bytes: text to train on; documents are drawn by content hash out of the first 16 times as much.
    """

    vocab_size: int = 4096
    sample_bytes: int = 2**25

    def __post_init__(self) -> None:
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise UserError(
                f"data.tokenizer.vocab_size is {self.vocab_size}; it must be at least {MIN_VOCAB_SIZE}: "
                "every byte and the special tokens"
            )
        if self.sample_bytes < 1:
            raise UserError(f"data.tokenizer.sample_bytes is {self.sample_bytes}; it must be positive")


@dataclass(frozen=True)
class LoadTokenizer:
    """A tokenizer in Hugging Face's folder format (tokenizer.json, tokenizer_config.json).

    token_names: which of its tokens are the special ones; None means as its tokenizer_config.json says.
    """

    path: str = "tokenizer"
    token_names: TokenNames = field(default_factory=TokenNames)


TOKENIZERS: dict[str, type] = {"train": TrainTokenizer, "load": LoadTokenizer}


class OnBadDocument(StrEnum):
    """What to do with a document that cannot be read: stop, or go on without it, counted and listed."""

    RAISE = "raise"
    SKIP = "skip"


class OnBadShard(StrEnum):
    """What to do with a training shard that is missing, truncated or altered: stop, or go on without it, counted."""

    STOP = "stop"
    SKIP = "skip"


@dataclass(frozen=True)
class DataConfig:
    """A data set and how it is read.

    The fields from `source` to `on_bad_document` make the data set; the later ones say how it is read, and may change
    from run to run.

    dir: the folder of the prepared data set; for reading also a URL prefix (`https://...`, `pipe:cat /path`).
    validation_fraction: share of the documents, chosen by a hash of their content.
    shard_tokens: size of a shard. Decided in characters before tokenising, so it is only roughly met.
    num_processes: processes that tokenise; 0: one per core.
    row_length: tokens a packed row.
    isolate_documents: attention stays within a document; otherwise a row is one segment.
    num_streams: training rows are taken in turn from so many places of the shuffled shards. A loader keeps so many
        shards in memory; with a multiple of the number of ranks every rank reads shards of its own.
    num_workers: loader processes a rank; 0: read in the training process.
    cache_dir: keeps the shards that come from a URL; None: fetch them again every epoch.
    on_bad_shard: every shard is held against the manifest's sha256 whenever it is read. `skip` puts the rows of the
        next good shard in the place of a bad one's; validation shards always stop: arms are compared on the same rows.
    fetch_attempts: how often a URL is tried, with pauses that double from a second to a minute.
    """

    dir: str = "data/stdlib"
    source: Source = choice(SOURCES, "stdlib")
    tokenizer: TrainTokenizer | LoadTokenizer = choice(TOKENIZERS, "train")
    validation_fraction: float = 0.05
    shard_tokens: int = 2**18
    on_bad_document: OnBadDocument = OnBadDocument.RAISE
    num_processes: int = 0
    row_length: int = 256
    isolate_documents: bool = True
    shortening: NoShortening | SplitRow | TruncateRow = choice(SHORTENINGS, "split")
    num_streams: int = 8
    num_workers: int = 0
    cache_dir: str | None = None
    on_bad_shard: OnBadShard = OnBadShard.STOP
    fetch_attempts: int = 8

    def __post_init__(self) -> None:
        if not self.dir:
            raise UserError("data.dir is empty: name the folder of the data set")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"data.validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")
        minima = {"shard_tokens": 1024, "num_processes": 0, "row_length": 2, "num_streams": 1, "num_workers": 0}
        minima["fetch_attempts"] = 1
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least {minimum}")
