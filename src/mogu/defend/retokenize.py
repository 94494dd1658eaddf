"""Retokenization: the user's text reaches the base in smaller pieces, which breaks attacks that hang on exact tokens.

BPE-dropout (Provilkov et al. 2020, arXiv:1910.13267, algorithm 1): while a word is put together, each possible merge is
left out with probability p. The tokenizers library has it, too, but draws from a generator that cannot be seeded
(tokenizers 0.23: two runs of one text differ whatever is seeded), and an evaluation that is interrupted and goes on
must give the same answers. So the algorithm runs here, over the tokenizer's own merges, with numbers that depend on
nothing but the seed and the text.

Only tokens of the user's text are taken apart and put together again; the chat template's tokens, and all special ones,
stay as they are.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from mogu.chat import prompt_pieces, prompt_text
from mogu.defend.base import Conversation, Defense, Target
from mogu.errors import ConfigError

DROPOUT = 0.2
"""p, as published."""

_Span = tuple[int, int]


class Retokenize(Defense):
    """BPE-dropout on the user's turns."""

    name = "retokenize"
    summary = "BPE-dropout on the user's text"
    source = "Jain et al. 2023, arXiv:2309.00614"

    def __init__(self, target: Target, dropout: float = DROPOUT) -> None:
        super().__init__(target)
        if not 0 <= dropout <= 1:
            raise ConfigError(f"dropout must be in [0, 1], not {dropout}")
        self.dropout = dropout
        self._check()

    def _check(self) -> None:
        backend = getattr(self.target.tokenizer, "backend_tokenizer", None)
        kind = type(backend.model).__name__ if backend is not None else type(self.target.tokenizer).__name__
        affixes = (
            [getattr(backend.model, n, None) for n in ("continuing_subword_prefix", "end_of_word_suffix")]
            if (backend is not None)
            else []
        )
        if kind != "BPE" or any(affixes):
            what = "marks the parts of a word" if kind == "BPE" else f"is a {kind}"
            raise ConfigError(
                f"retokenize needs a tokenizer with plain BPE merges, and that of {self.target.name} {what}; "
                "choose another defence"
            )

    def settings(self) -> dict[str, Any]:
        """Dropout and seed."""
        return {"dropout": self.dropout, "seed": self.target.seed}

    def encode(self, conversation: Conversation) -> list[int]:
        """The prompt with the user's turns retokenized.

        Raises:
            ConfigError: The chat template rewrites the user's text.
        """
        pieces, special = prompt_pieces(self.target.tokenizer, conversation, template=self.target.template)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        words: list[tuple[int, int | None]] = []
        text = ""
        for number, piece in enumerate(pieces):
            told = self.target.tokenizer(piece, add_special_tokens=special and number == 0, return_offsets_mapping=True)
            ids += told["input_ids"]
            offsets += [(start + len(text), end + len(text)) for start, end in told["offset_mapping"]]
            words += [(number, word) for word in told.word_ids()]
            text += piece
        out: list[int] = []
        done = 0
        for start, end, said in _user_spans(self.target, conversation, text):
            mine = [n for n, (a, b) in enumerate(offsets) if a < end and b > start and ids[n] not in self._special]
            generator = random.Random(f"{self.target.seed} {said}")
            for group in self._groups(mine, ids, words):
                out += ids[done : group[0]]
                out += self._retokenized([ids[n] for n in group], generator)
                done = group[-1] + 1
        return [*out, *ids[done:]]

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.target.tokenizer.added_tokens_encoder.values())

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self.target.tokenizer.get_vocab())

    @cached_property
    def _merges(self) -> dict[tuple[str, str], int]:
        """Rank of each merge, lower first."""
        table = json.loads(self.target.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        pairs = (tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in table)
        return {(left, right): rank for rank, (left, right) in enumerate(pairs)}

    def _groups(self, indices: Sequence[int], ids: Sequence[int], words: Sequence[Any]) -> Iterator[list[int]]:
        """Runs of neighbouring tokens that belong to one word."""
        group: list[int] = []
        for n in indices:
            token = str(self.target.tokenizer.convert_ids_to_tokens(ids[n]))
            # A tokenizer of the sentencepiece kind takes the whole text for one word and marks where words begin.
            if group and (n != group[-1] + 1 or words[n] != words[group[-1]] or token.startswith("▁")):
                yield group
                group = []
            group.append(n)
        if group:
            yield group

    def _retokenized(self, ids: Sequence[int], generator: random.Random) -> list[int]:
        """One word's ids anew. Bytes of characters outside the vocabulary, and such, stay whole."""
        symbols: list[str] = []
        for token in map(str, self.target.tokenizer.convert_ids_to_tokens(list(ids))):
            whole = not all(character in self._vocabulary for character in token)
            symbols += [token] if whole or token.startswith("<0x") else list(token)
        return [self._vocabulary[s] for s in bpe_dropout(symbols, self._merges, self.dropout, generator)]


def bpe_dropout(
    symbols: Sequence[str], merges: dict[tuple[str, str], int], dropout: float, generator: random.Random
) -> list[str]:
    """One word put together by BPE, where at every step each possible merge is left out with probability ``dropout``.

    Args:
        symbols: What the word begins as, its characters.
        merges: Rank of each pair that may be merged; the lowest goes first.
        dropout: p; 0 is plain BPE, 1 leaves the symbols as they are.
        generator: Where chance comes from.

    >>> merges = {("a", "b"): 0, ("ab", "c"): 1}
    >>> bpe_dropout("abc", merges, 0.0, random.Random(0)), bpe_dropout("abc", merges, 1.0, random.Random(0))
    (['abc'], ['a', 'b', 'c'])
    """
    word = list(symbols)
    while True:
        possible = [
            (merges[pair], n)
            for n, pair in enumerate(itertools.pairwise(word))
            if pair in merges and generator.random() >= dropout
        ]
        if not possible:
            return word
        _, n = min(possible)
        word[n : n + 2] = [word[n] + word[n + 1]]


def _user_spans(target: Target, conversation: Conversation, text: str) -> list[tuple[int, int, str]]:
    """Where in ``text`` the user's turns begin and end, and what they say.

    The conversation is rendered once more with marks in the place of the user's words.
    """
    said = [message["content"] for message in conversation if message["role"] == "user"]
    marks = iter(f"\ue000{n}\ue001" for n in range(len(said)))
    disguised = [{**m, "content": next(marks)} if m["role"] == "user" else m for m in conversation]
    marked, _ = prompt_text(target.tokenizer, disguised, template=target.template)
    frame = [marked]
    for n in range(len(said)):
        frame[-1:] = frame[-1].split(f"\ue000{n}\ue001", 1)
    for change in (str, str.strip):  # templates may trim what was said
        spans, at, rebuilt = [], 0, frame[0]
        for words, rest in zip(map(change, said), frame[1:], strict=False):
            at = len(rebuilt)
            spans.append((at, at + len(words), words))
            rebuilt += words + rest
        if rebuilt == text and len(frame) == len(said) + 1:
            return spans
    raise ConfigError(
        f"retokenize cannot find the user's text in the prompt: the chat template of {target.name} edits it"
    )
