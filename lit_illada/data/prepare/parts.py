"""How is a preparation divided among machines that share a file system, to the same bytes as one of them would write?

In four steps, each given the part that it is to do. `scan`: the hashes and lengths of the documents in the part's
files. `plan`, once: the tokenizer, and the place of every document, for only the whole corpus tells what is a duplicate
and where a shard ends. `write`: the shards that begin in the part's files, read on beyond them where such a shard goes
on. `merge`, once: the manifest. A step that is killed is done again; what it had finished is kept.
"""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_illada.data.config import DataConfig
from lit_illada.data.corpora.grouping import Assignment, Group, Tally, digest_of, documents, gather, split_of
from lit_illada.data.corpora.sources import files_of, total_bytes
from lit_illada.data.dataset.manifest import (
    FORMAT,
    MANIFEST_FILE,
    TOKENIZER_FOLDER,
    TRAIN,
    VALIDATION,
    Manifest,
    is_url,
    preparation_settings,
)
from lit_illada.data.dataset.shards import write_whole
from lit_illada.data.prepare.prepare import (
    SETTINGS_FILE,
    WORK_FOLDER,
    OnProgress,
    explained,
    finish,
    finished,
    finished_shard,
    locked,
    manifest_of,
    prepared_tokenizer,
    shard_files,
    work_folder,
    write_shards,
)
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.runtime.files import read_bytes, read_json, write_atomically

_DUPLICATE = -1
_DIGEST_BYTES = 16


class Step(StrEnum):
    """In the order they are done."""

    scan = "scan"
    plan = "plan"
    write = "write"
    merge = "merge"


@dataclass(frozen=True)
class Part:
    """The index-th (from 0) of count parts of about as many bytes, each of whole files that follow one another."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"part {self.index}/{self.count}: the parts of {self.count} are 0 to {self.count - 1}")

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Of a text like `3/16`."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise UserError(f"part {text!r}: write INDEX/COUNT, such as 0/16")
        return cls(int(index), int(count))


def begin(config: DataConfig, *, overwrite: bool = False) -> Manifest | None:
    """Make the folder ready for a preparation in parts, before any of them; the manifest where it is finished already.

    What is there of an unfinished preparation with the same settings is kept.
    """
    if is_url(config.dir):
        raise UserError(f"data.dir is {config.dir}: a data set is prepared in a local folder, then copied")
    files_of(config.source)
    if not overwrite and (manifest := finished(config)):
        return manifest
    folder = Path(config.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        work_folder(folder, preparation_settings(config))
    return None


def do_step(
    step: Step, config: DataConfig, part: Part, on_progress: OnProgress = lambda stage, done, total: None
) -> Manifest | None:
    """One step; of `plan` and `merge` the part only says how many there are. The last one returns the manifest.

    Raises UserError for a step whose predecessors are not done, and for a corpus that has changed meanwhile.
    """
    with explained(Path(config.dir)):
        preparation = _Preparation(config, _joined(config), _divided(files_of(config.source), part.count))
        match step:
            case Step.scan:
                _scan(preparation, part.index)
            case Step.plan:
                _plan(preparation, on_progress)
            case Step.write:
                _write(preparation, part.index, on_progress)
            case Step.merge:
                return _merge(preparation)
    return None


@dataclass(frozen=True)
class _Scan:
    """What `scan` found. files: the path, size and time of each it read."""

    digests: NDArray[np.uint8]
    characters: NDArray[np.int64]
    empty: int
    bad: int
    examples: list[str]
    files: list[list[Any]]


@dataclass(frozen=True)
class _Preparation:
    """The division of a corpus, and what the steps leave for one another in the work folder."""

    config: DataConfig
    work: Path
    divided: list[list[Path]]

    @property
    def count(self) -> int:
        return len(self.divided)

    def scan_file(self, index: int) -> Path:
        return self.work / f"scan-{index:05d}-of-{self.count:05d}.npz"

    def plan_file(self, index: int) -> Path:
        return self.work / f"plan-{index:05d}-of-{self.count:05d}.npy"

    @property
    def tally_file(self) -> Path:
        return self.work / f"plan-of-{self.count:05d}.json"

    def scan(self, index: int) -> _Scan:
        file = self.scan_file(index)
        if not file.is_file():
            raise UserError(
                f"part {index}/{self.count} is not scanned: lit-illada data part scan --part {index}/{self.count}"
            )
        with np.load(file, allow_pickle=False) as arrays:
            scan = _Scan(arrays["digests"], arrays["characters"], **json.loads(str(arrays["about"])))
        if scan.files != _identities(self.divided[index]):
            raise UserError(f"the files of part {index}/{self.count} have changed since they were scanned: begin again")
        return scan

    def plan(self) -> dict[str, Any]:
        if not self.tally_file.is_file():
            raise UserError(f"the corpus is not planned: lit-illada data part plan --part 0/{self.count}")
        plan: dict[str, Any] = read_json(self.tally_file)
        return plan

    def places(self, index: int, scan: _Scan) -> Iterator[tuple[str, int] | None]:
        """The split and group of each document of a part; None for a duplicate."""
        groups = np.load(self.plan_file(index), allow_pickle=False)
        for digest, group in zip(scan.digests, groups.tolist(), strict=True):
            if group == _DUPLICATE:
                yield None
            else:
                yield split_of(digest.tobytes(), self.config.validation_fraction), group


def _scan(preparation: _Preparation, index: int) -> None:
    files = preparation.divided[index]
    identities = _identities(files)
    try:
        preparation.scan(index)
    except UserError:
        pass  # not scanned, or not as the files are now
    else:
        return
    tally = Tally(preparation.config.on_bad_document)
    digests, characters = bytearray(), []
    for document, raw in documents(preparation.config, tally, files):
        digests += digest_of(raw)
        characters.append(len(document.text))
    about = {"empty": tally.empty, "bad": tally.bad, "examples": tally.examples, "files": identities}
    content = io.BytesIO()
    np.savez(
        content,
        digests=np.frombuffer(bytes(digests), np.uint8).reshape(-1, _DIGEST_BYTES),
        characters=np.array(characters, np.int64),
        about=np.array(json.dumps(about)),
    )
    write_whole(preparation.scan_file(index), content.getvalue())


def _plan(preparation: _Preparation, on_progress: OnProgress) -> None:
    config, work = preparation.config, preparation.work
    preparation.tally_file.unlink(missing_ok=True)
    prepared_tokenizer(config, work, total_bytes(config.source), on_progress)
    tally = Tally(config.on_bad_document)
    begun: list[dict[str, int]] = []
    with Assignment(config, work / "seen.sqlite", tally) as assignment:
        for index in range(preparation.count):
            scan = preparation.scan(index)
            tally.add(scan.empty, scan.bad, scan.examples)
            begun.append(dict(assignment.begun))
            groups = np.full(len(scan.digests), _DUPLICATE, np.int64)
            for row, (digest, characters) in enumerate(zip(scan.digests, scan.characters.tolist(), strict=True)):
                if place := assignment.place(digest.tobytes(), characters):
                    groups[row] = place[1]
            content = io.BytesIO()
            np.save(content, groups)
            write_whole(preparation.plan_file(index), content.getvalue())
        begun.append(dict(assignment.begun))
    if error := tally.empty_split(config):
        shutil.rmtree(work)  # with more files the tokenizer is another one
        raise error
    write_atomically(preparation.tally_file, json.dumps({"tally": asdict(tally), "begun": begun}))


def _write(preparation: _Preparation, index: int, on_progress: OnProgress) -> None:
    config = preparation.config
    begun = preparation.plan()["begun"]
    wanted = {split: range(begun[index][split], begun[index + 1][split]) for split in (TRAIN, VALIDATION)}
    groups = (
        Group(split, group, [text for text, _ in members], [digest for _, digest in members])
        for (split, group), members in gather(_wanted_documents(preparation, index, wanted))
    )
    tokenizer = Tokenizer.load(preparation.work / TOKENIZER_FOLDER)
    folder = Path(config.dir)
    write_shards(groups, tokenizer, folder, config, lambda done: on_progress("tokenising", done, None))


def _wanted_documents(
    preparation: _Preparation, first: int, wanted: dict[str, range]
) -> Iterator[tuple[tuple[str, int], tuple[str, bytes]]]:
    """The documents of these groups, from the first part on until each split has come to a later group."""
    config = preparation.config
    unfinished = {split for split, groups in wanted.items() if groups}
    for index in range(first, preparation.count):
        if not unfinished:
            return
        scan = preparation.scan(index)
        places = preparation.places(index, scan)
        found = documents(config, Tally(config.on_bad_document), preparation.divided[index])
        for (document, raw), expected, place in zip(found, scan.digests, places, strict=True):
            digest = digest_of(raw)
            if digest != expected.tobytes():
                raise UserError(f"{document.origin} has changed since it was scanned: begin again")
            if place is None:
                continue
            split, group = place
            if group in wanted[split]:
                yield place, (document.text, digest)
            elif group >= wanted[split].stop:
                unfinished.discard(split)
                if not unfinished:
                    return


def _merge(preparation: _Preparation) -> Manifest:
    config, folder = preparation.config, Path(preparation.config.dir)
    with locked(folder):
        plan = preparation.plan()
        tokenizer = Tokenizer.load(preparation.work / TOKENIZER_FOLDER)
        tally = Tally(config.on_bad_document)
        for name, value in plan["tally"].items():
            if name != "policy":
                setattr(tally, name, value)
        records, missing = {}, []
        for place, digests in gather(_placed_digests(preparation)):
            record = finished_shard(*shard_files(folder, place, tokenizer, digests))
            if record is None:
                missing.append(place)
            else:
                records[place] = record
        if missing:
            parts = sorted({_part_of(place, plan["begun"]) for place in missing})
            again = ", ".join(f"lit-illada data part write --part {index}/{preparation.count}" for index in parts)
            raise UserError(f"{len(missing)} shards are not written: {again}")
        for leftover in folder.rglob("*.tmp"):  # of a step that was killed
            if leftover.is_file():
                leftover.unlink()
        return finish(folder, tokenizer, manifest_of(config, tokenizer, records, tally))


def _placed_digests(preparation: _Preparation) -> Iterator[tuple[tuple[str, int], bytes]]:
    for index in range(preparation.count):
        scan = preparation.scan(index)
        for digest, place in zip(scan.digests, preparation.places(index, scan), strict=True):
            if place is not None:
                yield place, digest.tobytes()


def _part_of(place: tuple[str, int], begun: list[dict[str, int]]) -> int:
    """The part in which a group begins."""
    return next(index for index, later in enumerate(begun[1:]) if place[1] < later[place[0]])


def _divided(files: list[Path], count: int) -> list[list[Path]]:
    sizes = [path.stat().st_size for path in files]
    total, before = max(1, sum(sizes)), 0
    divided: list[list[Path]] = [[] for _ in range(count)]
    for path, size in zip(files, sizes, strict=True):
        divided[min(count - 1, int((before + size / 2) / total * count))].append(path)
        before += size
    return divided


def _identities(files: list[Path]) -> list[list[Any]]:
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _joined(config: DataConfig) -> Path:
    """The work folder, which the first one makes; other steps are at work in it."""
    work = Path(config.dir) / WORK_FOLDER
    wanted = json.dumps([FORMAT, preparation_settings(config)])
    if not (work / SETTINGS_FILE).is_file():
        if (work.parent / MANIFEST_FILE).is_file():
            raise UserError(f"{work.parent} holds a finished data set: choose another data.dir")
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(work / SETTINGS_FILE, wanted)
    if read_bytes(work / SETTINGS_FILE) != wanted.encode():
        raise UserError(f"{work} is of a preparation with other settings: end that one, or remove the folder")
    return work
