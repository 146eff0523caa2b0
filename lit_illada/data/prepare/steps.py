"""Divided preparation in four steps, for machines that share a file system; the bytes equal those of one process.

1. `scan`, per part: hashes and lengths of the documents in the part's files.
2. `plan`, once: the tokenizer, and the shard of every document, since duplicates and the borders of shards depend on
   the whole corpus.
3. `write`, per part: the shards that begin in the part's files, reading on in later files where a shard continues.
4. `merge`, once: the manifest.

A step that was killed is repeated; it reuses what it had finished.
"""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path

import numpy as np

from lit_illada.data.config import DataConfig
from lit_illada.data.corpora.assignment import Assignment, Group, ShardKey, digest_of, documents, gather
from lit_illada.data.corpora.sources import files_of, total_bytes
from lit_illada.data.corpora.tally import Tally
from lit_illada.data.dataset.manifest import (
    TOKENIZER_FOLDER,
    TRAIN,
    VALIDATION,
    Manifest,
)
from lit_illada.data.dataset.shards import write_whole
from lit_illada.data.prepare.division import DUPLICATE, Division, Part, identities
from lit_illada.data.prepare.shard_writing import finished_shard, shard_files, write_shards
from lit_illada.data.prepare.tokenizer_training import OnProgress, build_tokenizer
from lit_illada.data.prepare.work_folder import (
    disk_errors_explained,
    finish,
    finished_manifest,
    local_folder,
    lock,
    make_work_folder,
)
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.runtime.files import write_atomically

_DIGEST_BYTES = 16


class Step(StrEnum):
    """The steps in their order."""

    scan = "scan"
    plan = "plan"
    write = "write"
    merge = "merge"


def begin(config: DataConfig, *, overwrite: bool = False) -> Manifest | None:
    """Sets up the folder before the first step; returns the manifest where the data set is already prepared.

    The state of unfinished work with the same settings is reused.
    """
    folder = local_folder(config)
    files_of(config.source)
    if not overwrite and (manifest := finished_manifest(config)):
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        make_work_folder(folder, config)
    return None


def run_step(
    step: Step, config: DataConfig, part: Part, on_progress: OnProgress = lambda stage, done, total: None
) -> Manifest | None:
    """Runs one step; `plan` and `merge` only use the number of parts. `merge` returns the manifest.

    Raises UserError for a step before its predecessors, and for a corpus that has changed in between.
    """
    with disk_errors_explained(Path(config.dir)):
        division = Division.of(config, part.count)
        match step:
            case Step.scan:
                _scan(division, part.index)
            case Step.plan:
                _plan(division, on_progress)
            case Step.write:
                _write(division, part.index, on_progress)
            case Step.merge:
                return _merge(division)
    return None


def _scan(division: Division, index: int) -> None:
    files = division.files[index]
    scanned = identities(files)  # before reading, so that a change while reading is noticed
    try:
        division.scan(index)
    except UserError:
        pass  # missing or outdated
    else:
        return
    tally = Tally(division.config.on_bad_document)
    digests, characters = bytearray(), []
    for document, raw in documents(division.config, tally, files):
        digests += digest_of(raw)
        characters.append(len(document.text))
    about = {"empty": tally.empty, "bad": tally.bad, "examples": tally.examples, "files": scanned}
    content = io.BytesIO()
    np.savez(
        content,
        digests=np.frombuffer(bytes(digests), np.uint8).reshape(-1, _DIGEST_BYTES),
        characters=np.array(characters, np.int64),
        about=np.array(json.dumps(about)),
    )
    write_whole(division.scan_file(index), content.getvalue())


def _plan(division: Division, on_progress: OnProgress) -> None:
    config, work = division.config, division.work
    # a killed plan must not leave the previous one, which may be outdated
    division.plan_file.unlink(missing_ok=True)
    build_tokenizer(config, work, total_bytes(config.source), on_progress)
    tally = Tally(config.on_bad_document)
    groups_before: list[dict[str, int]] = []  # by part: groups of each split that begin in earlier parts
    with Assignment(config, work / "seen.sqlite", tally) as assignment:
        for index in range(division.count):
            scan = division.scan(index)
            tally.add(scan.empty, scan.bad, scan.examples)
            groups_before.append(dict(assignment.num_groups))
            groups = np.full(len(scan.digests), DUPLICATE, np.int64)
            for row, (digest, characters) in enumerate(zip(scan.digests, scan.characters.tolist(), strict=True)):
                if key := assignment.assign(digest.tobytes(), characters):
                    groups[row] = key[1]
            content = io.BytesIO()
            np.save(content, groups)
            write_whole(division.groups_file(index), content.getvalue())
        groups_before.append(dict(assignment.num_groups))
    if error := tally.empty_split(config):
        shutil.rmtree(work)  # more files would give another tokenizer
        raise error
    write_atomically(division.plan_file, json.dumps({"tally": asdict(tally), "groups_before": groups_before}))


def _write(division: Division, index: int, on_progress: OnProgress) -> None:
    config = division.config
    before, after = division.plan()["groups_before"][index : index + 2]
    wanted = {split: range(before[split], after[split]) for split in (TRAIN, VALIDATION)}
    groups = (
        Group(split, group, [text for text, _ in members], [digest for _, digest in members])
        for (split, group), members in gather(_wanted_documents(division, index, wanted))
    )
    tokenizer = Tokenizer.load(division.work / TOKENIZER_FOLDER)
    folder = Path(config.dir)
    write_shards(groups, tokenizer, folder, config, lambda done: on_progress("tokenising", done, None))


def _wanted_documents(
    division: Division, first: int, wanted: dict[str, range]
) -> Iterator[tuple[ShardKey, tuple[str, bytes]]]:
    """The documents of the wanted groups, from part `first` on until each split has reached a later group."""
    config = division.config
    unfinished = {split for split, groups in wanted.items() if groups}
    for index in range(first, division.count):
        if not unfinished:
            return
        scan = division.scan(index)
        keys = division.shard_keys(index, scan)
        part_documents = documents(config, Tally(config.on_bad_document), division.files[index])
        for (document, raw), expected, key in zip(part_documents, scan.digests, keys, strict=True):
            digest = digest_of(raw)
            if digest != expected.tobytes():
                raise UserError(f"{document.origin} has changed since the scan: remove {division.work} and scan again")
            if key is None:
                continue
            split, group = key
            if group in wanted[split]:
                yield key, (document.text, digest)
            elif group >= wanted[split].stop:
                unfinished.discard(split)
                if not unfinished:
                    return


def _merge(division: Division) -> Manifest:
    config, folder = division.config, Path(division.config.dir)
    with lock(folder):
        plan = division.plan()
        tokenizer = Tokenizer.load(division.work / TOKENIZER_FOLDER)
        tally = Tally(**{**plan["tally"], "policy": config.on_bad_document})
        records, missing = {}, []
        for key, digests in gather(_digests(division)):
            record = finished_shard(*shard_files(folder, key, tokenizer, digests))
            if record is None:
                missing.append(key)
            else:
                records[key] = record
        if missing:
            parts = sorted({_part_of(key, plan["groups_before"]) for key in missing})
            again = ", ".join(f"lit-illada data part write --part {index}/{division.count}" for index in parts)
            raise UserError(f"{len(missing)} shards are not written: {again}")
        # temporary files of a killed step
        for leftover in folder.rglob("*.tmp"):
            if leftover.is_file():
                leftover.unlink()
        return finish(folder, config, tokenizer, records, tally)


def _digests(division: Division) -> Iterator[tuple[ShardKey, bytes]]:
    """The shard and the content hash of every document but duplicates."""
    for index in range(division.count):
        scan = division.scan(index)
        for digest, key in zip(scan.digests, division.shard_keys(index, scan), strict=True):
            if key is not None:
                yield key, digest.tobytes()


def _part_of(key: ShardKey, groups_before: list[dict[str, int]]) -> int:
    """The part in which a shard begins."""
    return next(index for index, later in enumerate(groups_before[1:]) if key[1] < later[key[0]])
