"""Division of a corpus into parts, and the files that the steps of a divided preparation exchange."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_illada.data.config import DataConfig
from lit_illada.data.corpora.assignment import ShardKey, split_of
from lit_illada.data.corpora.sources import files_of
from lit_illada.data.dataset.manifest import FORMAT, MANIFEST_FILE, preparation_settings
from lit_illada.data.prepare.work_folder import SETTINGS_FILE, WORK_FOLDER
from lit_illada.errors import UserError
from lit_illada.runtime.files import read_bytes, read_json, write_atomically

DUPLICATE = -1  # in place of a group


@dataclass(frozen=True)
class Part:
    """One of `count` parts with about equal bytes, each consisting of consecutive files."""

    index: int  # from 0
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"part {self.index}/{self.count}: the parts of {self.count} are 0 to {self.count - 1}")

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Parses INDEX/COUNT, such as 3/16."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise UserError(f"part {text!r}: write INDEX/COUNT, such as 0/16")
        return cls(int(index), int(count))


@dataclass(frozen=True)
class Scan:
    """Result of the step `scan` for the D documents of a part."""

    digests: NDArray[np.uint8]  # (D, 16)
    characters: NDArray[np.int64]  # (D,)
    empty: int  # documents without text
    bad: int  # documents that could not be read
    examples: list[str]  # messages of the first unreadable documents
    files: list[list[Any]]  # `identities` of the files


@dataclass(frozen=True)
class Division:
    """A corpus divided into parts, and the work folder in which the steps leave their results."""

    config: DataConfig
    work: Path
    files: list[list[Path]]  # of each part

    @classmethod
    def of(cls, config: DataConfig, count: int) -> "Division":
        """Divides the corpus. Raises UserError if the work folder belongs to a preparation with other settings."""
        return cls(config, _join_work_folder(config), divide(files_of(config.source), count))

    @property
    def count(self) -> int:
        """Number of parts."""
        return len(self.files)

    def scan_file(self, index: int) -> Path:
        """File of the scan of a part."""
        return self.work / f"scan-{index:05d}-of-{self.count:05d}.npz"

    def groups_file(self, index: int) -> Path:
        """(D,) int64: the group of each document of a part, or DUPLICATE."""
        return self.work / f"plan-{index:05d}-of-{self.count:05d}.npy"

    @property
    def plan_file(self) -> Path:
        """File of the plan."""
        return self.work / f"plan-of-{self.count:05d}.json"

    def scan(self, index: int) -> Scan:
        """The scan of a part. Raises UserError if it is missing or the files have changed since."""
        file = self.scan_file(index)
        if not file.is_file():
            raise UserError(
                f"part {index}/{self.count} is not scanned: lit-illada data part scan --part {index}/{self.count}"
            )
        with np.load(file, allow_pickle=False) as arrays:
            scan = Scan(arrays["digests"], arrays["characters"], **json.loads(str(arrays["about"])))
        if scan.files != identities(self.files[index]):
            raise UserError(
                f"the files of part {index}/{self.count} have changed since the scan: scan it again "
                f"(lit-illada data part scan --part {index}/{self.count}), then repeat plan and the later steps"
            )
        return scan

    def plan(self) -> dict[str, Any]:
        """The plan: `tally`, and `groups_before`.

        The latter has an entry per part and one for the end: the groups of each split that begin in earlier parts.

        Raises UserError if the plan is missing.
        """
        if not self.plan_file.is_file():
            raise UserError(f"the corpus is not planned: lit-illada data part plan --part 0/{self.count}")
        plan: dict[str, Any] = read_json(self.plan_file)
        return plan

    def shard_keys(self, index: int, scan: Scan) -> Iterator[ShardKey | None]:
        """The shard of each document of a part; None for a duplicate."""
        groups = np.load(self.groups_file(index), allow_pickle=False)
        for digest, group in zip(scan.digests, groups.tolist(), strict=True):
            if group == DUPLICATE:
                yield None
            else:
                yield split_of(digest.tobytes(), self.config.validation_fraction), group


def divide(files: list[Path], count: int) -> list[list[Path]]:
    """The files of each part; a file belongs to the part in which its middle byte lies."""
    sizes = [path.stat().st_size for path in files]
    total, before = max(1, sum(sizes)), 0
    divided: list[list[Path]] = [[] for _ in range(count)]
    for path, size in zip(files, sizes, strict=True):
        divided[min(count - 1, int((before + size / 2) / total * count))].append(path)
        before += size
    return divided


def identities(files: list[Path]) -> list[list[Any]]:
    """Path, size and modification time of each file, to recognise changed files."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _join_work_folder(config: DataConfig) -> Path:
    """The work folder, created by the first step; other steps may be using it."""
    work = Path(config.dir) / WORK_FOLDER
    settings = json.dumps([FORMAT, preparation_settings(config)])
    if not (work / SETTINGS_FILE).is_file():
        if (work.parent / MANIFEST_FILE).is_file():
            raise UserError(
                f"{work.parent} contains a finished data set: choose another data.dir, or replace it "
                "(lit-illada data prepare --overwrite)"
            )
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(work / SETTINGS_FILE, settings)
    if read_bytes(work / SETTINGS_FILE) != settings.encode():
        raise UserError(f"{work} belongs to a preparation with other settings: finish that one, or remove the folder")
    return work
