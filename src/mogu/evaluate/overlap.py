"""Prompts that training has already seen, word for word or nearly: they measure memory, not defence.

Two texts are near duplicates if the Jaccard similarity of their sets of words is at least 0.7. An inverted index finds
them without comparing all pairs: sorted from rare to common, two sets A and B with J(A, B) >= t share a word among the
first |A| - ceil(t·|A|) + 1 words of A and of B alike (prefix filter, Chaudhuri et al. 2006; Bayardo et al. 2007), and
t·|A| <= |B| <= |A| / t.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

THRESHOLD = 0.7

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words_of(text: str) -> frozenset[str]:
    """The set of words of a text, in lower case."""
    return frozenset(_WORD.findall(text.casefold().replace("’", "'")))


class Seen:
    """Texts that training has seen; call it with others to learn which of them it knows."""

    def __init__(self, texts: Iterable[str], threshold: float = THRESHOLD) -> None:
        texts = list(texts)
        self.threshold = threshold
        self._exact = {_plain(text) for text in texts}
        self._sets = sorted({words for text in texts if (words := words_of(text))}, key=sorted)
        self._frequency = Counter(word for words in self._sets for word in words)
        self._index: defaultdict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(self._sets):
            for word in self._prefix(words):
                self._index[word].append(number)

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """For each text ``"exact"``, ``"near"``, or ``None``."""
        return ["exact" if _plain(text) in self._exact else "near" if self.is_near(text) else None for text in texts]

    def is_near(self, text: str) -> bool:
        """Whether a seen text has nearly the same words."""
        words = words_of(text)
        looked_at: set[int] = set()
        for word in self._prefix(words):
            for number in self._index.get(word, ()):
                if number not in looked_at:
                    looked_at.add(number)
                    if self._similar(words, self._sets[number]):
                        return True
        return False

    def _similar(self, a: frozenset[str], b: frozenset[str]) -> bool:
        if min(len(a), len(b)) < self.threshold * max(len(a), len(b)) - 1e-9:
            return False
        shared = len(a & b)
        return shared >= self.threshold * (len(a) + len(b) - shared) - 1e-9

    def _prefix(self, words: frozenset[str]) -> list[str]:
        """The rarest words, enough of them that similar sets must share one; words that were never seen come first."""
        ordered = sorted(words, key=lambda word: (self._frequency[word], word))
        return ordered[: len(ordered) - math.ceil(self.threshold * len(ordered) - 1e-9) + 1]


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold().replace("’", "'"))) or text.strip()
