"""What a response is: refusal, degenerate, complied or unclear. Pure functions on strings.

Beside them, each imported by its own name: `calibration` (agreement with people), `rubrics` and `models` (judges that
ask a language model or a classifier).
"""

from mogu.judge.keywords import is_keyword_refusal
from mogu.judge.label import LABELS, Label, Verdict, explain, judge_response, label_response

__all__ = ["LABELS", "Label", "Verdict", "explain", "is_keyword_refusal", "judge_response", "label_response"]
