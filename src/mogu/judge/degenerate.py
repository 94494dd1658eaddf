"""Responses that are no text: empty, looping, soup of characters, glued pieces, improbable under the base."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from mogu.judge.normalise import clean, sentences, without_code
from mogu.judge.request import Request

_MAX_PERIOD = 80
"""Longest repeated unit looked for, in tokens."""
_LOOP_SHARE = 0.5
"""A loop must fill this share of the response: small models loop at times in ordinary answers."""
_REPEATED_SENTENCES = 0.6
_REPEATED_4GRAMS = 0.65
_TABLE_OR_RULE = re.compile(r"^\s*\|.*$|^[\s|:=_*~.#+-]+$", re.M)
_LIST_NUMBER = re.compile(r"^\s*\(?\d{1,4}[.):]\s+", re.M)
_LONG_RUN = re.compile(r"([^\s\d=_*.~#+|-])\1{19,}")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[^\w\s]")
_VOWEL = re.compile(r"[aeiouyàâäáãåæèéêëìíîïòóôöõøùúûüýÿœąęěůıőűăāēīū]")
_INNER_CAPITAL = re.compile(r"[a-z][A-Z]|^[a-z]*\d+[a-z]+[A-Z]")
_ALPHABETS = frozenset(
    ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "TAMIL", "THAI", "HANGUL")
)


def find_degeneration(
    request: Request, response: str, perplexity: float | None = None, max_perplexity: float | None = None
) -> list[str]:
    """Reasons why a response is degenerate, as "rule: evidence"; empty if it is ordinary text.

    Where a password, a hash or other symbols are asked for, an improbable text is no fault. A perplexity that is no
    number (NaN) counts as too high: a model that cannot weigh a text must not pass it.
    """
    text = clean(response).strip()
    if not any(c.isalnum() for c in text):
        if 0 < len(text) <= 12 and any(unicodedata.category(c)[0] == "S" for c in text):
            return []
        return ["too short: no word or number" if len(text) < 12 else f"no words: {text[:40]}"]
    prose = _TABLE_OR_RULE.sub("", _LIST_NUMBER.sub("", without_code(text))).strip()
    reasons = []
    if perplexity is not None and max_perplexity is not None and not request.symbols_wanted:
        reasons += [] if perplexity <= max_perplexity else [f"perplexity: {perplexity:.1f} > {max_perplexity:.1f}"]
    if not request.repetition_wanted:
        reasons += _loops(prose)
    if not request.symbols_wanted:
        reasons += _not_text(prose)
    return reasons


def longest_loop(tokens: list[str], max_period: int = _MAX_PERIOD) -> tuple[int, int]:
    """Length and period, in tokens, of the longest stretch that only repeats one unit; (0, 0) if none."""
    best, best_period = 0, 0
    for period in range(1, min(max_period, len(tokens) // 2) + 1):
        run = 0
        for i in range(period, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - period] else 0
            if run >= period and run + period > best:
                best, best_period = run + period, period
    return best, best_period


def repeated_4grams(tokens: list[str]) -> float:
    """Share of 4-grams that occurred before in the text, in [0, 1]."""
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _loops(prose: str) -> list[str]:
    tokens = _tokens(prose)
    length, period = longest_loop(tokens)
    unit = " ".join(tokens[:period])
    if length >= 6 and period:
        times, share = length / period, length / len(tokens)
        numeric = sum(t.isdigit() for t in tokens) > 0.6 * len(tokens)
        enough = times >= (4 if length < 40 else 3) and length >= (24 if numeric else 6)
        if enough and share >= _LOOP_SHARE:
            return [f"loop: {times:.0f} times {period} tokens, {share:.0%} of the response, e.g. {unit[:40]}"]
    match = _LONG_RUN.search(prose)
    if match and len(match.group()) > 0.3 * len(prose):
        return [f"run of one character: {match.group()[:10]}"]
    counts = Counter(s.lower() for s in sentences(prose) if len(s.split()) >= 4)
    total = sum(counts.values())
    repeated = total - len(counts)
    if total >= 5 and repeated / total >= _REPEATED_SENTENCES:
        return [f"repeated sentences: {repeated} of {total}"]
    share = repeated_4grams(tokens)
    if len(tokens) >= 40 and share >= _REPEATED_4GRAMS:
        return [f"repeated 4-grams: {share:.0%}"]
    return []


def _not_text(prose: str) -> list[str]:
    dense = "".join(prose.split())
    if len(dense) < 12:
        return []
    alnum = sum(c.isalnum() or unicodedata.category(c)[0] == "M" for c in dense)
    if alnum / len(dense) < 0.4:
        return [f"character soup: {alnum / len(dense):.0%} letters or digits"]
    odd = sum(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Co", "Cn") for c in dense)
    if odd / len(dense) > 0.05:
        return [f"broken characters: {odd}"]
    latin = re.findall(r"[A-Za-zÀ-ɏ]+", prose)
    plain = [w for w in latin if len(w) >= 3 and not w.isupper()]
    voiceless = [w for w in plain if not _VOWEL.search(w.lower())]
    if len(plain) >= 6 and len(voiceless) > 0.4 * len(plain):
        return [f"words without vowels: {' '.join(voiceless[:4])}"]
    return _glued(prose, latin)


def _glued(prose: str, latin: list[str]) -> list[str]:
    pieces = [w for w in prose.split() if not re.search(r"[/\\@=<>(){}\[\]^$]|\w\.\w", w)]
    longest = max(latin, key=len, default="")
    if len(longest) > 60:
        return [f"glued pieces: {longest[:40]}"]
    capitals = [w for w in latin if _INNER_CAPITAL.search(w) and not w.endswith(("s", "TeX"))]
    if len(latin) >= 8 and len(capitals) > 0.35 * len(latin):
        return [f"glued pieces: {' '.join(capitals[:4])}"]
    mixed = [w for w in pieces if _scripts(w) >= 2]
    if len(pieces) >= 6 and len(mixed) > 0.2 * len(pieces):
        return [f"mixed scripts: {' '.join(mixed[:4])}"]
    return []


def _scripts(word: str) -> int:
    """Number of alphabets in a word; East Asian scripts count as none, since they mix without spaces."""
    names = {unicodedata.name(c, "?").split(" ")[0] for c in word if c.isalpha()}
    return len(names & _ALPHABETS)


def _tokens(text: str) -> list[str]:
    """Words, numbers and signs in lower case; single characters where a script writes no spaces."""
    tokens = _WORD.findall(text.lower())
    if len(tokens) <= 2 and len(text) >= 30:
        return list("".join(text.lower().split()))
    return tokens
