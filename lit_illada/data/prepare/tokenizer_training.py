"""The tokenizer of a data set: loaded, or trained on a sample of the training split."""

import heapq
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from lit_illada.data.config import DataConfig, LoadTokenizer, TrainTokenizer
from lit_illada.data.corpora.assignment import digest_of, documents, split_of
from lit_illada.data.corpora.tally import Tally
from lit_illada.data.dataset.manifest import TOKENIZER_FOLDER, VALIDATION
from lit_illada.data.tokenizer import Tokenizer

OnProgress = Callable[[str, int, int | None], None]
"""Called with the stage, bytes of text done, and all bytes where known."""

_SCANNED_PER_SAMPLED = 16  # bytes read per byte of the sample
_log = logging.getLogger(__name__)


def build_tokenizer(config: DataConfig, work: Path, total: int | None, on_progress: OnProgress) -> Tokenizer:
    """The tokenizer of the config, saved in the work folder. total: bytes of the corpus, for `on_progress`."""
    folder = work / TOKENIZER_FOLDER
    if folder.is_dir():  # of a killed preparation with the same settings
        return Tokenizer.load(folder)
    match config.tokenizer:
        case LoadTokenizer(path, token_names):
            tokenizer = Tokenizer.load(path, token_names)
        case TrainTokenizer(vocab_size, sample_bytes):
            sample = _sample_documents(config, sample_bytes, lambda done: on_progress("sampling", done, total))
            on_progress("training the tokenizer", 0, None)
            tokenizer = Tokenizer.train(sample, vocab_size)
            if tokenizer.vocab_size < vocab_size:
                _log.warning("the text gives a vocabulary of %d, not %d", tokenizer.vocab_size, vocab_size)
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer.save(temporary)
    temporary.replace(folder)
    return tokenizer


def _sample_documents(config: DataConfig, sample_bytes: int, on_scanned: Callable[[int], None]) -> list[str]:
    """The documents of the training split with the smallest content hashes: a random, reproducible sample.

    on_scanned: called with the bytes of text read so far.
    """
    sample: dict[bytes, str] = {}
    held_out: set[bytes] = set()
    largest_first: list[tuple[int, bytes]] = []
    sampled_bytes = scanned_bytes = 0
    tally = Tally(config.on_bad_document)
    for document, raw in documents(config, tally):
        digest = digest_of(raw)
        scanned_bytes += len(raw)
        if scanned_bytes > _SCANNED_PER_SAMPLED * sample_bytes and sample:
            break
        if digest in sample:
            continue
        if split_of(digest, config.validation_fraction) == VALIDATION:
            held_out.add(digest)
            continue
        # the split depends on the first bytes of the hash, the sample on the last, so that the two are independent
        heapq.heappush(largest_first, (-int.from_bytes(digest[8:], "big"), digest))
        sample[digest] = document.text
        sampled_bytes += len(raw)
        while sampled_bytes > sample_bytes and len(sample) > 1:
            sampled_bytes -= len(sample.pop(heapq.heappop(largest_first)[1]).encode())
        on_scanned(scanned_bytes)
    if not sample:
        tally.documents[VALIDATION] = len(held_out)
        error = tally.empty_split(config)
        assert error is not None
        raise error
    return list(sample.values())
