"""How the terminal shows a long job and its results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table
from rich.text import Text

from mogu import processes
from mogu.progress import Progress


class View(Progress):
    """Writes a line when a step begins and one when it is over: for logs."""

    def __init__(self) -> None:
        self._step, self._text, self._start = "", "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, step: str, text: str) -> None:
        """As :meth:`Progress.begin`."""
        self._step, self._text, self._start = step, text, time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def end(self, text: str) -> None:
        """As :meth:`Progress.end`."""
        print(self._done(self._step, text), file=sys.stderr, flush=True)

    def _done(self, what: str, result: str) -> str:
        took = _duration(time.monotonic() - self._start)
        return f"{what}: {result} ({took})" if result else f"{what}: done ({took})"


class Silent(View):
    """Says nothing: for processes that work beside the main one."""

    def begin(self, step: str, text: str) -> None:
        """As :meth:`Progress.begin`."""

    def end(self, text: str) -> None:
        """As :meth:`Progress.end`."""


class _TimeLeft(ProgressColumn):
    """What is done of how much, and a time left that runs down between two updates."""

    def render(self, task: Task) -> Text:
        """The column of one task."""
        if task.total is None:
            return Text("")
        end = task.fields["end"]
        left = "" if end is None else f", {_duration(max(end - time.monotonic(), 0))} left"
        return Text(f"{task.completed:.0f}/{task.total:.0f}{left}")


class LiveView(View):
    """Draws the running step with a bar and the time that is left."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def __exit__(self, *_: object) -> None:
        self._close()

    def begin(self, step: str, text: str) -> None:
        """As :meth:`Progress.begin`."""
        self._close()
        self._step, self._text, self._start, self._first = step, text, time.monotonic(), None
        self._last = (0, self._start)
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=20),
            _TimeLeft(table_column=Column(no_wrap=True)),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(text, total=None, end=None)
        self._bar.start()

    def update(self, done: int, total: int) -> None:
        """As :meth:`Progress.update`."""
        if self._bar is None:
            return
        now = time.monotonic()
        if self._first is None or done <= self._last[0]:
            # The first piece took since the step began, however many an earlier run had done; a part of a step that
            # counts from 1 again starts where the one before it ended.
            self._first = (done - 1, self._last[1])
        self._last = (done, now)
        left = time_left(self._first, (done, now), total)
        self._bar.update(self._task, completed=done, total=total, end=None if left is None else now + left)

    def end(self, text: str) -> None:
        """As :meth:`Progress.end`."""
        self._close()
        self._console.print(f"✓ {self._done(self._text, text)}", markup=False, highlight=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_view() -> View:
    """What fits the terminal; progress goes to stderr, so that stdout holds results only."""
    if not processes.is_main():
        return Silent()
    return LiveView() if sys.stderr.isatty() else View()


def time_left(first: tuple[int, float], now: tuple[int, float], total: int) -> float | None:
    """Seconds until ``total``, at the pace between two (done, seconds) marks; ``None`` before anything moved."""
    done, seconds = now[0] - first[0], now[1] - first[1]
    return None if done <= 0 or seconds <= 0 else (total - now[0]) * seconds / done


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Header and rows on stdout: a table on a terminal, aligned columns elsewhere."""
    header, *body = rows
    if sys.stdout.isatty():
        table = Table(*header)
        for row in body:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(row[index]) for row in rows) for index in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def cost_table(out: Path) -> list[list[str]]:
    """Rows for :func:`print_table` of what each defence of an evaluation cost on this machine."""
    costs = json.loads((out / "cost.json").read_text(encoding="utf-8"))["defenses"]
    columns = {
        "tokens_per_second": "tokens/s",
        "seconds_to_first_token": "first token (s)",
        "forwards": "forwards/answer",
        "tokens_forwarded": "tokens forwarded/answer",
        "peak_memory_mib": "peak memory (MiB)",
    }
    rows = [["system", *columns.values()]]
    for name, cost in costs.items():
        values = [cost[key] for key in columns]
        rows.append(["base" if name == "none" else name, *["–" if v is None else f"{v:g}" for v in values]])
    return rows
