"""What a response is: refusal, degenerate, complied or unclear. Pure functions on strings."""

from mogu.judge.keywords import is_keyword_refusal
from mogu.judge.label import LABELS, Label, Verdict, judge_response, label_response

__all__ = ["LABELS", "Label", "Verdict", "is_keyword_refusal", "judge_response", "label_response"]
