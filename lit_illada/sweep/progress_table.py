"""Progress of a sweep: a live table on a terminal, one line per change elsewhere."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from statistics import mean

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_illada.runtime.console import Console
from lit_illada.runtime.durations import duration
from lit_illada.sweep.folder import RunState
from lit_illada.sweep.progress import RunStatus

_STYLES = {
    RunState.PENDING: "dim",
    RunState.RUNNING: "bold cyan",
    RunState.FINISHED: "green",
    RunState.FAILED: "bold red",
    RunState.INTERRUPTED: "yellow",
}
# order of rows; a short terminal shows only the first ones
_ORDER = (RunState.RUNNING, RunState.FAILED, RunState.INTERRUPTED, RunState.FINISHED, RunState.PENDING)


class SweepTable:
    """Displays the statuses of runs.

    metric: heading of the third column. workers: runs at a time, which the estimate of time left is based on.
    """

    def __init__(self, title: str, metric: str, workers: int, console: Console) -> None:
        self._title = title
        self._metric = metric
        self._workers = workers
        self._console = console
        self._printed: dict[str, RunState] = {}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "SweepTable":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, statuses: Sequence[RunStatus]) -> None:
        """Update the table, or print one line per run whose state has changed."""
        if self._live is not None:
            self._live.update(self._render(statuses), refresh=True)
            return
        for status in statuses:
            known = self._printed.get(status.run.id, RunState.PENDING)
            if status.state is not known:
                self._print(status, statuses)
            self._printed[status.run.id] = status.state

    def _print(self, status: RunStatus, statuses: Sequence[RunStatus]) -> None:
        value = f"  {self._metric} {status.metric:.4f}" if status.metric is not None else ""
        ended = f"  ({summary(statuses, self._workers)})" if status.state is not RunState.RUNNING else ""
        self._console.print(f"{status.state:<12}{status.run.id}{value}{ended}", highlight=False, soft_wrap=True)
        if status.state is RunState.FAILED:
            for line in status.last_lines:
                self._console.print(f"    {line}", highlight=False, soft_wrap=True)

    def _render(self, statuses: Sequence[RunStatus]) -> Group:
        table = Table(title=self._title, title_justify="left", expand=False)
        for heading in ("run", "state", self._metric, "done", "tokens/s", "left"):
            table.add_column(heading, justify="left" if heading in ("run", "state") else "right", no_wrap=True)
        num_rows = max(4, self._console.height - 8)
        ordered = sorted(statuses, key=lambda status: _ORDER.index(status.state))
        for status in ordered[:num_rows]:
            table.add_row(*_cells(status), style=_STYLES[status.state])
        parts: list[Table | Text] = [table]
        if len(ordered) > num_rows:
            parts.append(Text(f"… and {len(ordered) - num_rows} more", style="dim"))
        for status in ordered:
            if status.state is RunState.FAILED and status.last_lines:
                parts.append(Text(f"{status.run.id}: {status.last_lines[-1]}", style="red", overflow="ellipsis"))
        return Group(*parts[:6], Text(summary(statuses, self._workers)))


def summary(statuses: Sequence[RunStatus], workers: int) -> str:
    """Counts and time left, such as `3 of 8 finished, 2 running, about 1 min left`."""
    counts = Counter(status.state for status in statuses)
    words = [f"{counts[RunState.FINISHED]} of {len(statuses)} finished"]
    words += [f"{counts[state]} {state}" for state in _ORDER if counts[state] and state is not RunState.FINISHED]
    left_s = time_left(statuses, workers)
    if left_s is not None and counts[RunState.PENDING] + counts[RunState.RUNNING]:
        words.append(f"about {duration(left_s)} left")
    return ", ".join(words)


def time_left(statuses: Sequence[RunStatus], workers: int) -> float | None:
    """Seconds until all runs end, assuming equal durations within a stage; None while nothing is known of one."""
    total_s = longest_s = 0.0
    for status in statuses:
        if status.state is RunState.FINISHED or status.waits_for is not None or status.state is RunState.FAILED:
            continue
        left_s = status.left_s if status.left_s is not None else _mean_duration_s(status, statuses)
        if left_s is None:
            return None
        total_s += left_s
        longest_s = max(longest_s, left_s)
    return max(longest_s, total_s / max(1, workers))


def _mean_duration_s(status: RunStatus, statuses: Sequence[RunStatus]) -> float | None:
    """Mean duration of runs of the same stage, seconds; None if unknown."""
    alike = [other for other in statuses if other.run.stage == status.run.stage and other.elapsed_s is not None]
    known = [s for other in alike if (s := _whole_s(other)) is not None]
    return mean(known) if known else None


def _whole_s(status: RunStatus) -> float | None:
    if status.left_s is None or status.elapsed_s is None:
        return None
    return status.elapsed_s + status.left_s


def _cells(status: RunStatus) -> list[str]:
    state = f"{status.state}: waits for {status.waits_for}" if status.waits_for else str(status.state)
    cells = [status.run.id, f"{state}, silent" if status.is_silent else state, "", "", "", ""]
    if status.metric is not None:
        cells[2] = f"{status.metric:.4f}"
    if status.state in (RunState.RUNNING, RunState.FINISHED):
        cells[3] = f"{status.fraction_done:.0%}"
    if status.tokens_per_s is not None:
        cells[4] = f"{status.tokens_per_s:,.0f}"
    with suppress(TypeError):
        cells[5] = duration(status.left_s) if status.state is RunState.RUNNING else ""  # type: ignore[arg-type]
    return cells
