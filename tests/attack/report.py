"""The table of an attack: how many cases each kind of damage has, and how they ended. Written to attack.md."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attack.sandbox import MEMORY_LIMIT_MB, Job, Outcome

# how a case ended; of these only the first three are right
REFUSED, UNCHANGED, VALID = "refused in one line", "unchanged result", "valid input"
FAULTS = (
    "silent acceptance", "traceback", "unnamed file", "several lines", "written outside", "command run", "too slow",
    "too much memory", "terminal escape", "valid input refused", "unsafe advice",
)  # fmt: skip
_LONGEST_LINE = 1500


@dataclass
class Report:
    """Every case that ran. cases: (area, kind, description, endings, the line or the end of a traceback)."""

    cases: list[tuple[str, str, str, tuple[str, ...], str]] = field(default_factory=list)

    def add(self, area: str, kind: str, what: str, endings: Sequence[str], outcome: Outcome) -> None:
        message = (outcome.raised or outcome.last_line).strip()[-700:]
        if os.environ.get("ATTACK_LOG"):
            with open(os.environ["ATTACK_LOG"], "a") as file:
                file.write(
                    json.dumps([area, kind, what, list(endings), message, outcome.elapsed_s, outcome.memory_mb]) + "\n"
                )
        self.cases.append(
            (area, kind, what, tuple(endings), f"{message} {outcome.outside or ''}{outcome.commands or ''}")
        )

    def faults(self) -> list[str]:
        """A line for each case that ended in a fault."""
        return [
            f"[{area}] {what}: {', '.join(endings)}: {message.splitlines()[-1] if message.strip() else ''}"
            for area, _, what, endings, message in self.cases
            if set(endings) & set(FAULTS)
        ]

    def table(self) -> str:
        """Markdown: one row per area and kind, one column per ending."""
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for area, kind, _, endings, _ in self.cases:
            counts[area, kind].update(("cases", *endings))
        counts["all", ""] = sum(counts.values(), Counter())
        columns = ("cases", REFUSED, UNCHANGED, VALID, *FAULTS)
        lines = [f"| area | fault | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
        for (area, kind), row in counts.items():
            lines.append(f"| {area} | {kind} | {' | '.join(str(row[name]) for name in columns)} |")
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        path.write_text(f"# Attack\n\n{self.table()}\n" + "".join(f"- {line}\n" for line in self.faults()), "utf-8")


def endings_of(outcome: Outcome, job: Job, named: Sequence[str], is_same: bool, is_same_right: bool) -> list[str]:
    """How a case with bad input ended. named: words of which the error must hold one."""
    endings = common_faults(outcome, job)
    if outcome.exit_code == 0:
        return [*endings, UNCHANGED if is_same and is_same_right else "silent acceptance"]
    if outcome.exit_code is None:
        return endings
    endings += _faults_of_line(outcome, named)
    return endings or [REFUSED]


def common_faults(outcome: Outcome, job: Job) -> list[str]:
    """Faults of any command, whether its input is good or bad."""
    faults = {
        "traceback": outcome.exit_code is None and not outcome.is_killed,
        "too slow": outcome.is_killed or outcome.elapsed_s > job.time_limit_s,
        "too much memory": outcome.memory_mb > MEMORY_LIMIT_MB,
        "written outside": bool(outcome.outside),
        "command run": bool(outcome.commands) or any("CANARY" in path for path in outcome.outside),
        "terminal escape": "\x1b" in outcome.output,
    }
    return [name for name, is_seen in faults.items() if is_seen]


def _faults_of_line(outcome: Outcome, named: Sequence[str]) -> list[str]:
    line = outcome.last_line
    faults = []
    is_report = outcome.arguments[:2] == ["data", "verify"]  # prints one line per damaged file before its error
    is_line = line.startswith("Error: ") or is_report
    if not is_line or len(line) > _LONGEST_LINE or outcome.exit_code not in (1, 2):
        faults.append("several lines")
    if not any(word in (outcome.output if is_report else line) for word in named):
        faults.append("unnamed file")
    return faults
