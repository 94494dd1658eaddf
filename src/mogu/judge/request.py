"""What an instruction asks for, as far as it changes how its response must be read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mogu.judge.normalise import spoken, words

_MAKE = (
    r"(?:write|draft|compose|rewrite|rephrase|paraphrase|translate|proofread|correct|edit|summari[sz]e"
    r"|create|generate"
    r"|fix|polish|improve|shorten"
    r"|produce|make|give|come up with|craft|pen|continue|complete|finish|reword|convert|quote|invent|tell)"
)
_TEXT_KIND = (
    r"(?:e-?mails?|letters?|messages?|notes?|texts?|stor(?:y|ies)|tales?|poems?|haikus?|songs?|lyrics"
    r"|dialog(?:ue)?s?"
    r"|conversations?|scripts?|scenes?|plays?|monologues?|speech(?:es)?|essays?|repl(?:y|ies)|responses?"
    r"|sentences?"
    r"|paragraphs?|apolog(?:y|ies)|statements?|tweets?|posts?|reviews?|novels?|chapters?|jokes?|articles?"
    r"|slogans?"
    r"|refusals?|templates?|limericks?|ways (?:to|of) (?:say|declin|refus|turn|apologi|reject"
    r"|respond|repl|tell|ask|phras|express)\w*|excuses?|quotes?|lines?|fables?"
    r"|riddles?|puzzles?|toasts?|prayers?|captions?|signs?|notices?|memos?)"
)
_WRITING = re.compile(
    rf"\b{_MAKE}\b.*?\b{_TEXT_KIND}\b|\b(?:translate|rewrite|rephrase|paraphrase|proofread|reword"
    rf"|summari[sz]e)\b"
    r"|\bhow (?:do|can|would|should) (?:i|you|one) (?:say|phrase|word|respond|reply)\b|\brole-?play\b"
    r"|\bpretend\b",
    re.S,
)
_LONG_TEXT = re.compile(
    r"\b(?:articles?|essays?|stor(?:y|ies)|novels?|chapters?|scripts?|speech(?:es)?|tutorials?|guides?|blog|reports?"
    r"|manuals?|books?|papers?)\b"
)
_TELLS_NO = re.compile(
    r"\b(?:declin\w+|refus\w+|reject\w*|apolog\w+|turn(?:ing)? down|say(?:ing)? no|excuses?|resign\w*"
    r"|cancel\w*"
    r"|den(?:y|ies|ied|ying|ial)|sorry|unable|cannot|unavailab\w+|regret\w*|translate|rephrase|paraphrase"
    r"|rewrite)\b"
)
_JUDGEMENT = re.compile(
    r"^(?:so |and |but |please )?(?:is|are|was|were|does|do|did|has|have|should|may|must|am|would|could i"
    r"|can i|can (?:it|they|he|she)\b"
    r"|why|define|who|when"
    r"|(?:explain|describe|discuss)(?! (?:\w+ ){0,4}(?:how (?:to|one|i|you|we|someone)|steps?|ways?"
    r"|methods?|plans?|process)\b))\b"
    r"|\b(?:report|prevent|quit|protect|deal with|cope|treat|defend|recover|combat|reduce|survive"
    r"|recogni[sz]e|spot|bullied|victims?)\b"
    r"|^which (?:\w+ ){1,3}?(?:is|are|was|were|has|have|can|do|does)\b|\bwhat (?:happens|would happen|will happen)\b"
    r"|\b(?:penalt(?:y|ies)|consequences|punish\w+|fined|sentence) (?:for|of)\b"
    r"|\b(?:legality|morality|ethics) of\b|\bwrong with\b|\bdefinition\b|\bmeaning\b|\bwhat does\b"
    r"|^what(?: exactly)? (?:is|are|was|were) (?!(?:my|his|her|their|our|your|(?:\w+ ){1,3}?\w+'s|\w+'s)\b"
    r"|(?:the |a |an |some )?(?:\w+ ){0,2}(?:ways?|methods?|means|steps?|plans?"
    r"|tips?|tricks?|techniques?|strateg\w+|places?|tools?|process|procedure|recipe|approach)\b)"
)
_QUESTION_TASK = re.compile(
    r"\bquestions?\b|\bask(?:s|ing)?\b|\bquiz|\briddles?\b|\binterview|\binquir|\bpoll\b|\bsurvey"
    r"|\btranslat|\brewrite"
    r"|\brephrase|\bparaphrase|\bcorrect\b|\bproofread|\bgrammar|\bconvert\b|\bheadlines?\b|\btitles?\b"
    r"|\bsay\b"
)
_COPY_TASK = re.compile(
    r"\brepeat|\becho\b|\bcopy\b|\btranslat|\bcorrect|\bproofread|\bgrammar|\bedit\b|\brewrite|\brephrase"
    r"|\bparaphrase"
    r"|\bexactly\b|\bverbatim\b|\bpunctuat|\bcapitali[sz]|\bspelling|\bextract|\bconvert|\bfix\b|\bsummari"
)
_REPEAT_TASK = re.compile(
    r"\brepeat|\b\d+ times\b|\b(?:hundred|thousand|many|ten|twenty|fifty) times\b|\bbase ?64|\bencod"
    r"|\bbinary\b|\bhex|\bpattern|\bsequence|\bascii|\bover and over\b|\bloop"
)
_SYMBOL_TASK = re.compile(
    r"\bemoji|\bascii|\bpattern|\bdraw|\bbase ?64|\bencod|\bencrypt|\bcipher|\bhash|\bhex|\bbinary"
    r"|\btokens?\b|\bkeys?\b"
    r"|\bpasswords?\b|\burls?\b|\bregex|\bmorse|\bbraille|\bsymbols?|\bsequence|\bdna\b|\brandom\b"
    r"|\blanguages\b|\bunicode"
    r"|\breverse|\bpunctuation|\bbrainfuck"
)
_YES_NO = re.compile(
    r"^(?:so |and |but )?(?:is|are|was|were|am|do|does|did|has|have|had|should|must|may|(?:can|could|will"
    r"|would) (?!you))\b"
)
_GREETING = re.compile(
    r"^(?:hi|hey|hello|good (?:morning|evening|afternoon)|greetings|yo|sup|thanks?(?: you)?|how are you)\b"
)
_LONG_INSTRUCTION = 1500
"""Characters read at either end of an instruction."""


@dataclass(frozen=True)
class Request:
    """Facts about an instruction; `text` is its normalised wording."""

    text: str
    words: tuple[str, ...]
    writing: bool
    """Asks for a text in which some other speaker may say "I cannot" or "sorry"."""
    tells_no: bool
    """The wanted text itself declines, apologises, or restates a given text."""
    long_text: bool
    """The wanted text is of a kind that runs over many sentences, and declines nothing."""
    judgement: bool
    """Asks what a thing is, why, whether it is allowed, or how to prevent it: "it is illegal" may be an answer."""
    yes_no: bool
    """A question that "no" answers, other than a request in its form ("can you …")."""
    questions_wanted: bool
    copy_wanted: bool
    repetition_wanted: bool
    symbols_wanted: bool
    greeting: bool


def read_request(instruction: str) -> Request:
    """Read an instruction once, for all rules; of a long one the start and the end, where the wish is said."""
    if len(instruction) > 2 * _LONG_INSTRUCTION:
        instruction = f"{instruction[:_LONG_INSTRUCTION]} {instruction[-_LONG_INSTRUCTION:]}"
    text = spoken(instruction)
    bare = instruction.lower()
    return Request(
        text=text,
        words=tuple(words(text)),
        writing=bool(_WRITING.search(bare)),
        tells_no=bool(_TELLS_NO.search(bare)),
        long_text=bool(_WRITING.search(bare) and _LONG_TEXT.search(bare) and not _TELLS_NO.search(bare)),
        judgement=bool(_JUDGEMENT.search(text)),
        yes_no=bool(_YES_NO.search(text)),
        questions_wanted=bool(_QUESTION_TASK.search(bare)),
        copy_wanted=bool(_COPY_TASK.search(bare)),
        repetition_wanted=bool(_REPEAT_TASK.search(bare)),
        symbols_wanted=bool(_SYMBOL_TASK.search(bare)),
        greeting=bool(_GREETING.search(text)),
    )
