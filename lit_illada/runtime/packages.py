"""Checks that the packages every run needs are installed, before any of them is imported.

Uses the standard library only, so that `doctor` can report a missing package instead of failing on its import.
"""

import importlib.metadata
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from lit_illada.runtime.terminal import print_lines


class Verdict(StrEnum):
    """Result of one check."""

    good = "ok"
    """Present and usable."""
    absent = "absent"
    """Missing or unusable, and needed by some runs only."""
    broken = "broken"
    """Missing or unusable, and needed by every run."""


@dataclass(frozen=True)
class Finding:
    """What one check found; the field names are the keys of `doctor --json`."""

    section: str  # heading of the table, such as "devices"
    name: str  # what was checked
    seen: str  # what was found
    verdict: Verdict = Verdict.good  # whether runs can use it
    fix: str | None = None  # command or action that fixes it; None: nothing to fix, or no way to


# the same as in pyproject.toml; an installation's metadata may be older than the code
REQUIRED = (
    "torch>=2.11,<2.14",
    "lightning>=2.6,<3,!=2.6.2,!=2.6.3",
    "torchmetrics>=1.8",
    "webdataset>=1.0.2",
    "omegaconf>=2.3,<2.4",
    "hydra-core>=1.3.2,<1.4",
    "tensorboard>=2.19",
    "tokenizers>=0.22",
    "safetensors>=0.6",
    "huggingface-hub>=0.34",
    "numpy>=2.0",
    "scipy>=1.14",
    "click>=8.1",
    "rich>=13.9",
    "filelock>=3.15",
    "zstandard>=0.23",
    "matplotlib>=3.9",
    "jinja2>=3.1",
    "plotly>=6.0",
    "pyarrow>=18.0",
    "rapidfuzz>=3.10",
)


def examine() -> Iterator[Finding]:
    """Yield a finding for each required package."""
    for requirement in REQUIRED:
        name = re.split(r"[<>=!]", requirement, maxsplit=1)[0]
        try:
            yield Finding("packages", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", name, "not installed", Verdict.broken, f"pip install '{requirement}'")


def missing() -> list[Finding]:
    """Return the findings of required packages that are not installed."""
    return [finding for finding in examine() if finding.verdict is Verdict.broken]


def print_missing(findings: Sequence[Finding], json_file: Path | None) -> None:
    """Print missing packages as plain lines, since rich may be among them, and write `json_file` if given."""
    for finding in findings:
        print_lines(f"{finding.name}: {finding.seen}; every run needs it")
    print_lines("\nTo fix:")
    for finding in findings:
        print_lines(f"  {finding.fix}")
    if json_file is not None:
        write(findings, json_file)


def write(findings: Sequence[Finding], json_file: Path) -> None:
    """Write findings as a JSON list of objects."""
    json_file.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8")
