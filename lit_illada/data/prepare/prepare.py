"""Preparation of a data set from text.

Two passes over the source: a bounded sample trains the tokenizer; then every document is deduplicated, assigned to its
split by a hash of its content, and tokenised in groups by parallel processes. A group's shard is named by its content
and tokenizer, so that after a kill the text is read again but finished shards are reused. An existing data set stays
complete until the manifest of its successor replaces its own.
"""

import shutil
from contextlib import closing
from pathlib import Path

from lit_illada.data.config import DataConfig
from lit_illada.data.corpora.assignment import group_documents
from lit_illada.data.corpora.sources import total_bytes
from lit_illada.data.corpora.tally import Tally
from lit_illada.data.dataset.manifest import (
    Manifest,
)
from lit_illada.data.prepare.shard_writing import write_shards
from lit_illada.data.prepare.tokenizer_training import OnProgress, build_tokenizer
from lit_illada.data.prepare.work_folder import (
    disk_errors_explained,
    finish,
    finished_manifest,
    local_folder,
    lock,
    make_work_folder,
)


def prepare(
    config: DataConfig, *, overwrite: bool = False, on_progress: OnProgress = lambda stage, done, total: None
) -> Manifest:
    """Prepares `config.dir` from `config.source`, unless it is already prepared with the same settings.

    overwrite: replace a finished data set. Raises UserError for a bad source, a data set with other settings, a split
    without documents, or a full disk. After a kill, calling it again resumes.
    """
    folder = local_folder(config)
    with disk_errors_explained(folder):
        if not overwrite and (manifest := finished_manifest(config)):
            return manifest
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            if not overwrite and (manifest := finished_manifest(config)):  # another process may have prepared it
                return manifest
            return _prepare(config, folder, on_progress)


def _prepare(config: DataConfig, folder: Path, on_progress: OnProgress) -> Manifest:
    total = total_bytes(config.source)
    work = make_work_folder(folder, config)
    tokenizer = build_tokenizer(config, work, total, on_progress)
    tally = Tally(config.on_bad_document)
    with closing(group_documents(config, work / "seen.sqlite", tally)) as groups:
        records = write_shards(groups, tokenizer, folder, config, lambda done: on_progress("tokenising", done, total))
    if error := tally.empty_split(config):
        shutil.rmtree(work)  # more files would give another tokenizer
        raise error
    return finish(folder, config, tokenizer, records, tally)
