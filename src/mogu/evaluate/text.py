"""How two texts compare: pure functions on strings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """Words in lower case, in order."""
    return _WORD.findall(text.lower())


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Distinct-n: different n-grams of words by all n-grams of all texts (Li et al. 2016); None without any."""
    grams = [tuple(found[i : i + n]) for found in map(words, texts) for i in range(len(found) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin 2004, β = 1); 1 for two texts without words.

    >>> rouge_l("the cat sat", "the cat sat down")
    0.8571428571428571
    """
    a, b = words(text), words(reference)
    if not a or not b:
        return float(a == b)
    shared = _longest_common_subsequence(a, b)
    return 2 * shared / (len(a) + len(b))


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
