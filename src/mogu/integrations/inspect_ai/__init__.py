"""inspect_ai: ``inspect eval TASK --model mogu/RUN``, and our suites as its tasks with our judge as scorer.

`registry` is what inspect finds through its entry-point group, `provider` the model, `suite` the task and the scorer.
"""

from mogu.integrations import require

require("inspect_ai", "inspect")
