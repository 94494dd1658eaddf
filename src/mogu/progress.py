"""What a long job tells whoever watches it. The command line draws it; by default nobody watches."""

from __future__ import annotations


class Progress:
    """Receives the course of a job; this one ignores it."""

    def begin(self, step: str, text: str) -> None:
        """A step begins: its name and what it does, for people."""

    def update(self, done: int, total: int) -> None:
        """So much of the step is done."""

    def end(self, text: str) -> None:
        """The step is over: what came of it."""
