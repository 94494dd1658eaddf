"""Near duplicates, against comparing every pair."""

from __future__ import annotations

import random
import re

import pytest

from mogu.evaluate.overlap import THRESHOLD, Seen, words_of


def jaccard(a: str, b: str) -> float:
    """Of the sets of words, word by word."""
    left, right = ({w for w in re.split(r"[^a-z0-9']+", text.lower()) if w} for text in (a, b))
    return len(left & right) / len(left | right) if left | right else 0.0


def text(draw: random.Random, vocabulary: int) -> str:
    return " ".join(f"w{int(draw.expovariate(6 / vocabulary))}" for _ in range(draw.randint(1, 12)))


@pytest.mark.parametrize("vocabulary", [5, 20, 200])
@pytest.mark.parametrize("threshold", [0.5, THRESHOLD, 0.9])
def test_the_index_finds_what_comparing_all_pairs_finds(vocabulary: int, threshold: float) -> None:
    draw = random.Random(vocabulary)
    training = [text(draw, vocabulary) for _ in range(150)]
    prompts = [text(draw, vocabulary) for _ in range(150)] + [" ".join(t.split()[:-1]) or t for t in training[:50]]
    seen = Seen(training, threshold)
    expected = [any(jaccard(prompt, row) >= threshold - 1e-12 for row in training) for prompt in prompts]
    assert [seen.is_near(prompt) for prompt in prompts] == expected
    assert any(expected)
    assert vocabulary < 200 or not all(expected)


def test_exact_is_word_for_word_and_near_is_not() -> None:
    seen = Seen(["How do I paint a big garden shed?", "Привет, как дела?"])
    assert seen(
        [
            "how do I paint a big garden shed",
            "How would I paint a big garden shed?",
            "How do I burn down a shed?",
            "привет как дела",
            "",
        ]
    ) == ["exact", "near", None, "exact", None]


def test_order_and_repetition_do_not_hide_a_copy() -> None:
    assert Seen(["open the door now please"])(["please please open now the the door"]) == ["near"]


def test_nothing_seen_excludes_nothing() -> None:
    assert Seen([])(["a b c", "?"]) == [None, None]


def test_words() -> None:
    assert words_of("Don’t stop_me, Zoë 2x!") == {"don't", "stop", "me", "zoë", "2x"}


def test_a_common_word_does_not_make_it_slow() -> None:
    """10,000 prompts against 2,000 rows that all share their first words look at few pairs."""
    draw = random.Random(0)
    rows = [f"how do i make a {' '.join(f'x{draw.randrange(4000)}' for _ in range(6))}" for _ in range(2000)]
    prompts = [f"how do i make a {' '.join(f'x{draw.randrange(4000)}' for _ in range(6))}" for _ in range(10000)]
    seen = Seen(rows)
    looked = sum(len(seen._index.get(word, ())) for prompt in prompts for word in seen._prefix(words_of(prompt)))
    assert looked < 0.01 * len(rows) * len(prompts)
    assert seen(prompts).count("exact") == 0
