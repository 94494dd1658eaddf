"""Answers that have not begun: put in from any thread, taken out by the engine's."""

from __future__ import annotations

import threading
from collections import deque

from mogu.errors import QueueFullError
from mogu.serve.rows import Row

CLOSED = "the engine is closed"


class Waiting:
    """A queue in the order of asking, and the wish to close."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closing: str | None = None
        self._number = 0

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, row: Row) -> None:
        """At the end, with the next number.

        Raises:
            QueueFullError: As many wait as may, or nothing is taken any more.
        """
        with self._changed:
            if self._closing is not None:
                raise QueueFullError(CLOSED)
            self._rows = deque(row for row in self._rows if not row.cancelled)
            if len(self._rows) >= self.most:
                raise QueueFullError(f"{len(self._rows)} answers wait already; come back later")
            self._number += 1
            row.number = self._number
            self._rows.append(row)
            self._changed.notify_all()

    def put_back(self, row: Row) -> None:
        """At the head: it had begun."""
        with self._changed:
            self._rows.appendleft(row)

    def first(self) -> Row | None:
        """The row that waits for longest, left in the queue; it may be cancelled, and gone, at any time."""
        with self._changed:
            while self._rows and self._rows[0].cancelled:
                self._rows.popleft()
            return self._rows[0] if self._rows else None

    def take(self, row: Row) -> bool:
        """Take out ``row``, which was the first; false if it is gone meanwhile."""
        with self._changed:
            if not self._rows or self._rows[0] is not row:
                return False
            self._rows.popleft()
            return True

    def wait(self, busy: bool) -> bool:
        """Until there is something to do, which is at once if ``busy``; false when the engine is to end."""
        with self._changed:
            while not busy and not self._rows and self._closing is None:
                self._changed.wait()
            return self._closing is None or (self._closing == "drain" and (busy or bool(self._rows)))

    def close(self, drain: bool) -> None:
        """Take no more; with ``drain``, not before all are answered."""
        with self._changed:
            self._closing = "drain" if drain and self._closing != "now" else "now"
            self._changed.notify_all()

    def end(self) -> list[Row]:
        """Take no more, and give up those that wait."""
        with self._changed:
            left, self._closing = list(self._rows), "now"
            self._rows.clear()
            return left
