"""Text statistics against values worked by hand and a definition written afresh."""

from __future__ import annotations

import doctest
import random
from functools import cache

import pytest

from mogu.evaluate import text as module
from mogu.evaluate.text import distinct, rouge_l, words


def subsequence(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Length of the longest common subsequence, as the recursion defines it."""

    @cache
    def of(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if a[i - 1] == b[j - 1]:
            return of(i - 1, j - 1) + 1
        return max(of(i - 1, j), of(i, j - 1))

    return of(len(a), len(b))


@pytest.mark.parametrize("seed", range(8))
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(seed: int) -> None:
    draw = random.Random(seed)
    a, b = (tuple(draw.choice("abcde") for _ in range(draw.randint(1, 15))) for _ in range(2))
    shared = subsequence(a, b)
    precision, recall = shared / len(a), shared / len(b)
    expected = 2 * precision * recall / (precision + recall) if shared else 0.0
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)


def test_rouge_l_at_the_ends() -> None:
    assert rouge_l("The cat, sat!", "the CAT sat") == 1.0
    assert rouge_l("", "...") == 1.0
    assert rouge_l("", "a") == 0.0


def test_distinct_counts_over_all_texts() -> None:
    assert distinct(["a b a b", "a b"], 1) == 2 / 6
    assert distinct(["a b a b", "a b"], 2) == 2 / 4
    assert distinct(["a", ""], 2) is None


def test_words_are_lower_case_with_their_apostrophes() -> None:
    assert words("It's 5 o'clock, Dr. No_one.") == ["it's", "5", "o'clock", "dr", "no", "one"]


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(module).failed == 0
