"""Configuration of a data set: its source, tokenizer, preparation and packing into rows."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum

from lit_illada.data.shortening import SHORTENINGS, NoShortening, SplitRow, TruncateRow
from lit_illada.errors import UserError
from lit_illada.schema import choice


@dataclass(frozen=True)
class StdlibSource:
    """Source and documentation text of the running Python's standard library; nothing is downloaded.

    Each file is split into sections of about 900 characters, one document each; near-duplicates are left out.
    """


@dataclass(frozen=True)
class TextSource:
    """Text files, also .gz and .zst."""

    paths: list[str] = field(default_factory=list)
    """Files, globs or folders (read recursively)."""
    document_separator: str | None = None
    """A line with only this text ends a document, e.g. <|endoftext|>; None: each file is one document."""


@dataclass(frozen=True)
class JsonlSource:
    """JSON lines (one object per line), also .gz and .zst."""

    paths: list[str] = field(default_factory=list)
    """Files, globs or folders (their *.jsonl files, recursively)."""
    text_field: str = "text"
    """Key of the document's text."""


@dataclass(frozen=True)
class HuggingFaceSource:
    """A data set of the Hugging Face hub, streamed (requires the extra `hf`)."""

    path: str = "HuggingFaceFW/fineweb-edu"
    """Repository on the hub, as for `datasets.load_dataset`."""
    subset: str | None = "sample-10BT"
    """Configuration of the data set (`name` of `datasets.load_dataset`); None: its default."""
    split: str = "train"
    """Split of the data set."""
    text_field: str = "text"
    """Column of the document's text."""
    max_documents: int | None = None
    """Documents to read; None: all."""


@dataclass(frozen=True)
class PreparedSource:
    """No source: `data.dir` is already a prepared data set, a folder or a URL."""


Source = StdlibSource | TextSource | JsonlSource | HuggingFaceSource | PreparedSource
SOURCES: dict[str, type] = {
    "stdlib": StdlibSource,
    "text": TextSource,
    "jsonl": JsonlSource,
    "huggingface": HuggingFaceSource,
    "prepared": PreparedSource,
}


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


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a byte-level BPE on a sample of the training split."""

    vocab_size: int = 4096
    """Tokens of the vocabulary, special tokens included; fewer where the text has too few pairs."""
    sample_bytes: int = 2**25
    """Bytes of text to train on, drawn by content hash from the first 16 times as many bytes."""

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
    """Load a tokenizer in Hugging Face's folder format (tokenizer.json, tokenizer_config.json)."""

    path: str = "tokenizer"
    """Folder of the tokenizer."""
    token_names: TokenNames = field(default_factory=TokenNames)
    """Texts of its special tokens; a None is taken from its tokenizer_config.json."""


TOKENIZERS: dict[str, type] = {"train": TrainTokenizer, "load": LoadTokenizer}


class OnBadDocument(StrEnum):
    """What to do with a document that cannot be read."""

    RAISE = "raise"
    """Stop with an error."""
    SKIP = "skip"
    """Leave it out; the manifest counts and lists such documents."""


class OnBadShard(StrEnum):
    """What to do with a training shard that is missing, truncated or altered."""

    STOP = "stop"
    """Stop with an error."""
    SKIP = "skip"
    """Replace its rows by rows of the next good shard, and count it."""


@dataclass(frozen=True)
class DataConfig:
    """A data set and how it is read.

    The fields from `source` to `on_bad_document` determine the content of the data set; the later ones may change from
    run to run.
    """

    dir: str = "data/stdlib"
    """Folder of the prepared data set; for reading also a URL prefix (`https://...`, `pipe:cat /path`)."""
    source: Source = choice(SOURCES, "stdlib")
    """Text to prepare."""
    tokenizer: TrainTokenizer | LoadTokenizer = choice(TOKENIZERS, "train")
    """Tokenizer to train or load."""
    validation_fraction: float = 0.05
    """Fraction of the documents held out for validation, chosen by a hash of their content."""
    shard_tokens: int = 2**18
    """Approximate tokens per shard: estimated from characters, before tokenising."""
    on_bad_document: OnBadDocument = OnBadDocument.RAISE
    """What to do with a document that cannot be read."""
    num_processes: int = 0
    """Processes that tokenise; 0: one per core."""
    row_length: int = 256
    """Tokens per packed row."""
    isolate_documents: bool = True
    """Whether attention stays within a document; otherwise the whole row is one segment."""
    shortening: NoShortening | SplitRow | TruncateRow = choice(SHORTENINGS, "split")
    """How some rows are shortened, so that the model also learns short sequences."""
    num_streams: int = 8
    """Shards read alternately, all in memory per loader; with a multiple of the ranks, ranks read different shards."""
    num_workers: int = 0
    """Loader processes per rank; 0: read in the training process."""
    cache_dir: str | None = None
    """Folder that caches shards from a URL; None: download them every epoch."""
    on_bad_shard: OnBadShard = OnBadShard.STOP
    """What to do with a training shard that does not match its sha256; validation shards always stop the run."""
    fetch_attempts: int = 8
    """Attempts per URL; the pauses between them double from a second to a minute."""

    def __post_init__(self) -> None:
        if not self.dir:
            raise UserError("data.dir is empty; set it to the folder of the data set")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"data.validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")
        minima = {"shard_tokens": 1024, "num_processes": 0, "row_length": 2, "num_streams": 1, "num_workers": 0}
        minima["fetch_attempts"] = 1
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least {minimum}")
