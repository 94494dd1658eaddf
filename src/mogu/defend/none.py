"""No defence: what all others are compared with."""

from __future__ import annotations

from mogu.defend.base import Defense


class NoDefense(Defense):
    """The plain base."""

    name = "none"
    summary = "the plain base"
