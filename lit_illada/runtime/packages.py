"""Which packages does every run need, and which of them are not here? Asked before any of them is imported."""

import importlib.metadata
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from lit_illada.runtime.terminal import print_lines


class Verdict(StrEnum):
    """absent: what some runs need and this machine has not. broken: what every run needs."""

    good = "ok"
    absent = "absent"
    broken = "broken"


@dataclass(frozen=True)
class Finding:
    """mend: the command, or the deed, that changes the verdict; None where there is nothing to mend, or no way to."""

    section: str
    name: str
    seen: str
    verdict: Verdict = Verdict.good
    mend: str | None = None


# those of pyproject.toml, whose copy in an installation may be older than the code
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
    """Every package that every run needs."""
    for requirement in REQUIRED:
        name = re.split(r"[<>=!]", requirement, maxsplit=1)[0]
        try:
            yield Finding("packages", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", name, "not installed", Verdict.broken, f"pip install '{requirement}'")


def missing() -> list[Finding]:
    return [finding for finding in examine() if finding.verdict is Verdict.broken]


def tell(findings: Sequence[Finding], json_file: Path | None) -> None:
    """In plain lines, by no package that may be missing."""
    for finding in findings:
        print_lines(f"{finding.name}: {finding.seen}, and every run needs it")
    print_lines("\nTo mend:")
    for finding in findings:
        print_lines(f"  {finding.mend}")
    if json_file is not None:
        write(findings, json_file)


def write(findings: Sequence[Finding], json_file: Path) -> None:
    json_file.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8")
