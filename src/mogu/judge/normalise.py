"""One spelling for what models spell in many ways: quotes, contractions, markdown, quoted and code text."""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "ʼ": "'", "´": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'}
    | {"–": "-", "—": " - ", "…": "..."}
)
_FENCE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.S)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_BLOCK_QUOTE = re.compile(r"^\s*>.*$", re.M)
_QUOTED = re.compile(r'"[^"\n]{1,400}"|(?<!\w)\'(?=[A-Za-z])[^"\n]{2,400}?[\w.,!?]\'(?!\w)')
_MARKDOWN = re.compile(r"\*+|(?<!\w)_+|_+(?!\w)|^\s*#+\s*", re.M)
_SPACED = re.compile(r"[ \t\u00a0]+")
_CONTRACTIONS = [
    (re.compile(pattern), text)
    for pattern, text in (
        (r"\bcan ?not\b|\bcan'?t\b", "cannot"),
        (r"\bwon'?t\b", "will not"),
        (r"\bshan'?t\b", "shall not"),
        (r"\bain'?t\b", "is not"),
        (r"\b(do|does|did|could|would|should|is|are|was|were|has|have|must|need)n'?t\b", r"\1 not"),
        (r"\b(?:i'm|im|ima)\b", "i am"),
        (r"\b(you|we|they)'re\b", r"\1 are"),
        (r"\b(i|you|we|they)'ve\b", r"\1 have"),
        (r"\b(i|you|we|they|it|that)'ll\b", r"\1 will"),
        (r"\b(i|you|we|they)'d\b", r"\1 would"),
        (r"\b(it|that|this|there|here|what|he|she)'s\b", r"\1 is"),
        (r"\blet's\b", "let us"),
        (r"\bgonna\b", "going to"),
        (r"\bwanna\b", "want to"),
    )
]
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])[\"')\]]*\s+|\n+")
_LIST_MARK = re.compile(r"^\s*(?:[-•*+]|\(?\d{1,3}[.):]|\(?[a-h][.)])[ \t]+", re.M)


def clean(text: str) -> str:
    """Unicode, quotes and invisible characters made plain; case, code and markdown kept."""
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES))
    return "".join(c for c in text if unicodedata.category(c) != "Cf" or c == "\n")


def without_code(text: str) -> str:
    """Text with fenced and inline code taken out."""
    return _INLINE_CODE.sub(" CODE ", _FENCE.sub("\nCODE\n", text))


def spoken(text: str) -> str:
    """What the writer says in their own voice: lower case, no code or quotations, contractions written out."""
    text = without_code(clean(text))
    text = _MARKDOWN.sub("", _BLOCK_QUOTE.sub("", text)).replace("`", "'").strip()
    if text.count('"') == 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    text = _QUOTED.sub(_unquote, text).lower()
    for pattern, replacement in _CONTRACTIONS:
        text = pattern.sub(replacement, text)
    return _SPACED.sub(" ", text).strip()


def _unquote(match: re.Match[str]) -> str:
    """Keep a single quoted word (emphasis or irony); take longer quotations out."""
    inner = match.group()[1:-1]
    return f" {inner} " if re.fullmatch(r"\w+[,.!?]?", inner) else " QUOTE "


def sentences(text: str) -> list[str]:
    """Sentences and lines of a text, in order; a list item is one of them."""
    parts = (part.strip() for part in _SENTENCE_END.split(_LIST_MARK.sub("- ", text)))
    return [part for part in parts if re.search(r"\w", part)]


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())
