"""Statistics, samples and verification of a prepared data set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_illada.data.dataset.manifest import TRAIN, VALIDATION, Manifest, ShardRecord, is_url
from lit_illada.data.dataset.reading import Dataset, open_dataset
from lit_illada.data.prepare.work_folder import WORK_FOLDER
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError


@dataclass(frozen=True)
class LengthBin:
    """Number of documents with a length in [low, high) tokens, EOS included."""

    low: int
    high: int
    documents: int


@dataclass(frozen=True)
class Inspection:
    """Statistics and samples of a data set. `str()` formats them as a report."""

    location: str
    """Folder or URL."""
    manifest: Manifest
    length_bins: list[LengthBin]
    """Lengths of the training documents, in powers of two."""
    samples: list[str]
    """Beginnings of training documents, decoded from their tokens."""

    def __str__(self) -> str:
        return "\n".join([*self._figures(), "", *self._histogram(), "", *self._samples()])

    def _figures(self) -> list[str]:
        m = self.manifest
        lines = [f"{self.location}  ({m.dtype}, vocabulary {m.vocab_size:,}, tokenizer {m.tokenizer_sha256[:12]})"]
        lines.append(f"{'split':<12}{'shards':>8}{'documents':>14}{'tokens':>18}{'text bytes':>18}{'bytes/token':>13}")
        for name in (TRAIN, VALIDATION):
            s = m.split(name)
            ratio = s.text_bytes / s.tokens if s.tokens else 0.0
            lines.append(
                f"{name:<12}{len(s.shards):>8,}{s.documents:>14,}{s.tokens:>18,}{s.text_bytes:>18,}{ratio:>13.3f}"
            )
        lines.append(f"removed: {m.duplicates:,} duplicates, {m.empty:,} empty, {m.bad_documents:,} unreadable")
        return [*lines, *(f"  {message}" for message in m.bad_examples)]

    def _histogram(self) -> list[str]:
        most = max((b.documents for b in self.length_bins), default=1)
        bars = [
            (f"{b.low:,}–{b.high - 1:,}", b.documents, "█" * round(40 * b.documents / most)) for b in self.length_bins
        ]
        return ["training documents by tokens", *(f"{span:>20} {count:>12,} {bar}" for span, count, bar in bars)]

    def _samples(self) -> list[str]:
        return ["samples", *(f"  {sample!r}" for sample in self.samples)]


def inspect(location: str | Path, *, num_samples: int = 3, sample_tokens: int = 64) -> Inspection:
    """Reads every training shard once. Raises UserError for a missing data set or a damaged shard."""
    dataset = open_dataset(location)
    tokenizer = dataset.tokenizer()
    counts = np.zeros(64, np.int64)
    samples: list[str] = []
    for record in dataset.manifest.train.shards:
        shard = dataset.load(record)
        # frexp gives floor(log2(length)) + 1
        counts += np.bincount(np.frexp(shard.lengths)[1] - 1, minlength=64)
        ends = np.cumsum(shard.lengths)
        for end, length in zip(ends[: num_samples - len(samples)], shard.lengths, strict=False):
            ids = shard.tokens[end - length : end][:sample_tokens]
            samples.append(tokenizer.decode(ids.tolist()))
    bins = [LengthBin(2**k, 2 ** (k + 1), int(counts[k])) for k in range(64) if counts[k]]
    return Inspection(dataset.location, dataset.manifest, bins, samples)


def verify(location: str | Path) -> list[str]:
    """All problems of a data set, each with the file and the fix; empty if there are none.

    Reads every shard and checks sizes, sha256, counts, ids within the vocabulary and EOS at the end of each document.
    """
    dataset = open_dataset(location)
    problems = []
    tokenizer = None
    try:
        tokenizer = dataset.tokenizer()
    except UserError as error:
        problems.append(str(error))
    for split in (TRAIN, VALIDATION):
        for record in dataset.manifest.split(split).shards:
            problems += _shard_problems(dataset, record, tokenizer)
    if not is_url(dataset.location):
        problems += _strays(Path(dataset.location), dataset.manifest)
    return problems


def _shard_problems(dataset: Dataset, record: ShardRecord, tokenizer: Tokenizer | None) -> list[str]:
    try:
        shard = dataset.load(record)
    except UserError as error:
        return [str(error)]
    where = f"{dataset.location}/{record.file}"
    problems = []
    if tokenizer and (shard.tokens[np.cumsum(shard.lengths) - 1] != tokenizer.eos_token_id).any():
        problems.append(f"{where}: a document does not end with EOS; prepare the data set again")
    return problems


def _strays(folder: Path, manifest: Manifest) -> list[str]:
    known = {shard.file for split in (manifest.train, manifest.validation) for shard in split.shards}
    if (folder / WORK_FOLDER).is_dir():  # the other tars belong to an unfinished preparation
        return []
    return [
        f"{path}: not in the manifest; delete it" for path in sorted(folder.glob("*.tar")) if path.name not in known
    ]
